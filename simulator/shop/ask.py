"""Asking search as an evaluation does: no impression is written, so nothing is learned from being measured."""

import asyncio
from collections.abc import Callable
from typing import Final

import httpx

from contracts.errors import DependencyDown
from contracts.http import SearchAnswer
from simulator.evaluation import QueryScore, score
from simulator.shop.posting import USER_AGENT
from simulator.shop.world import Split, World

K: Final = 10
AT_ONCE: Final = 4
ATTEMPTS: Final = 3


async def ask(client: httpx.AsyncClient, search_url: str, *, query: str, k: int = K) -> SearchAnswer:
    """Return the answer to a query that leaves no trace.

    Raises:
        DependencyDown: search did not answer.
    """
    body = {"query": query, "k": k, "impression": "none", "explore": False}
    error: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            response = await client.post(f"{search_url}/v1/search", json=body, headers={"User-Agent": USER_AGENT})
            response.raise_for_status()
            return _undegraded(SearchAnswer.model_validate_json(response.content))
        except (httpx.HTTPError, ValueError) as caught:
            error = caught
            await asyncio.sleep(0.2 * 2**attempt)
    raise DependencyDown(
        f"the search service at {search_url} did not answer the query {query!r}: {error}",
        fix="see `millrace status` and the search service's log",
    ) from error


def _undegraded(answer: SearchAnswer) -> SearchAnswer:
    """Return an answer that the vector store gave; a stand-in list says nothing about the model."""
    if answer.degraded is not None:
        raise ValueError(f"the answer was degraded ({answer.degraded})")
    return answer


async def evaluate(
    world: World,
    search_url: str,
    *,
    split: Split,
    k: int = K,
    progress: Callable[[int, int], None] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> tuple[QueryScore, ...]:
    """Return the scores of all queries of one split, in the world's order.

    Raises:
        DependencyDown: search did not answer one of them.
    """
    queries, done, gate = world.of_split(split), 0, asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> QueryScore:
        nonlocal done
        query = queries[number]
        async with gate:
            answer = await ask(client, search_url, query=query.query, k=k)
        done += 1
        if progress is not None:
            progress(done, len(queries))
        ranked = [result.product_id for result in answer.results]
        return score(query.query_id, ranked, query_class=query.query_class, grades=world.grades(query.query_id), k=k)

    async with httpx.AsyncClient(transport=transport, timeout=30.0) as client:
        return tuple(await asyncio.gather(*(one(number) for number in range(len(queries)))))

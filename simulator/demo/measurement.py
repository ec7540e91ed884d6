"""Search quality before and after, asked of the search service as any client asks."""

import asyncio
from typing import Any, Final

import httpx

from contracts.errors import DependencyDown
from contracts.http import SearchAnswer
from simulator.evaluation import QueryScore, by_class, choose_examples, comparison, difference, means, score
from simulator.shop.shoppers import RESULTS
from simulator.shop.site import USER_AGENT
from simulator.shop.world import SPLITS, Query, Split, World

QUERIES_AT_ONCE: Final = 4
ATTEMPTS: Final = 3


async def ask(client: httpx.AsyncClient, search_url: str, *, query: str, k: int = RESULTS) -> SearchAnswer:
    """Ask as an evaluation does: no impression is written, so nothing is learned from being measured.

    Raises:
        DependencyDown: search did not answer.
    """
    body = {"query": query, "k": k, "impression": "none", "explore": False}
    error: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            response = await client.post(f"{search_url}/v1/search", json=body, headers={"User-Agent": USER_AGENT})
            response.raise_for_status()
            answer = SearchAnswer.model_validate_json(response.content)
            if answer.degraded is None:
                return answer
            # A stand-in list says nothing about the model.
            error = ValueError(f"the answer was degraded ({answer.degraded})")
        except (httpx.HTTPError, ValueError) as caught:
            error = caught
        await asyncio.sleep(0.2 * 2**attempt)
    raise DependencyDown(
        f"the search service at {search_url} did not answer the query {query!r}: {error}",
        fix="see `millrace status` and the search service's log",
    ) from error


async def evaluate(
    world: World,
    search_url: str,
    *,
    split: Split,
    transport: httpx.AsyncBaseTransport | None = None,
) -> tuple[QueryScore, ...]:
    """Ask every query of one split and score the answers, in the world's order.

    Raises:
        DependencyDown: search did not answer one of them.
    """
    gate = asyncio.Semaphore(QUERIES_AT_ONCE)

    async def one(query: Query) -> QueryScore:
        async with gate:
            answer = await ask(client, search_url, query=query.query)
        ranked = [result.product_id for result in answer.results]
        return score(query.query_id, ranked, query_class=query.query_class, grades=world.grades(query.query_id))

    async with httpx.AsyncClient(transport=transport, timeout=30.0) as client:
        return tuple(await asyncio.gather(*map(one, world.of_split(split))))


class Measurement:
    """Asks every query of a world twice: before the first click and after the last release."""

    def __init__(self, world: World, search_url: str) -> None:
        self._world = world
        self._search_url = search_url
        self._before: dict[Split, tuple[QueryScore, ...]] = {}
        self._after: dict[Split, tuple[QueryScore, ...]] = {}

    async def before(self) -> None:
        """Ask the untrained system."""
        self._before = await self._ask()

    async def after(self) -> None:
        """Ask the trained system."""
        self._after = await self._ask()

    async def _ask(self) -> dict[Split, tuple[QueryScore, ...]]:
        return {split: await evaluate(self._world, self._search_url, split=split) for split in SPLITS.values()}

    def quality(self, *, seed: int) -> dict[str, Any]:
        """Compare both splits in the form of the demo's report."""
        return {
            name: {
                **comparison(self._before[split], self._after[split], seed=seed),
                "by_class": by_class(self._before[split], self._after[split], seed=seed),
            }
            for name, split in SPLITS.items()
        }

    def examples(self, *, seed: int) -> list[dict[str, Any]]:
        """Give three unseen queries, chosen by the rule of `choose_examples`, with their results before and after."""
        chosen = choose_examples(self._before["test"], seed=seed)
        queries = {query.query_id: query for query in self._world.queries}
        lists = {
            when: {one.query_id: one.ranked for one in scores["test"]}
            for when, scores in (("before", self._before), ("after", self._after))
        }
        return [
            {
                "query": queries[query_id].query,
                "class": queries[query_id].query_class,
                **{when: self._rows(query_id, ranked[query_id]) for when, ranked in lists.items()},
            }
            for query_id in chosen
        ]

    def _rows(self, query_id: str, ranked: tuple[str, ...]) -> list[dict[str, Any]]:
        products = self._world.by_product_id
        titles = ((product_id, products.get(product_id, {}).get("title", product_id)) for product_id in ranked)
        return [
            {"title": title, "grade": self._world.judgment(query_id, product_id).grade} for product_id, title in titles
        ]


def sample_gain(before: tuple[QueryScore, ...], after: tuple[QueryScore, ...]) -> str:
    """Say nDCG@10 of a sample and its change, for the live view."""
    change = difference(before, after)
    now = means(after)["ndcg@10"]
    return f"nDCG@10 {now:.3f} on {len(after)} unseen queries ({change.mean:+.3f} since the start)"

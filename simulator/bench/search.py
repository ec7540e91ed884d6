"""`millrace bench search`: what an answer takes, beside one encode and one ready-vector query by bare HTTP.

The search service answers over HTTP from this process, on an embedded vector store in a process of its own. One search
after the other is asked, ours and the peer's in turn, so that whatever else the machine does hits both alike. Product
vectors are drawn at random: nothing here depends on what they mean.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from contracts.arms import LIVE
from contracts.catalog import PointPayload
from contracts.events import Impression
from deploy.local.supervisor import LocalMillrace
from indexer.points import ProductPoint
from indexer.qdrant import VECTOR_NAME, connect, connect_async
from indexer.search.encoding import QueryEncoder
from indexer.search.finding import Finder
from indexer.search.good_match import GoodMatch
from indexer.search.in_force import ServedRelease
from indexer.search.lists import KeptLists
from indexer.search.load import MOST_OPEN
from indexer.search.retrieval import QdrantRetrieval
from indexer.search.service import Ranking, SearchService
from indexer.search.web import build
from indexer.store import ProductStore
from service.health import Health
from service.http import bind_socket, serving
from service.logging import configure
from service.settings import Settings
from simulator.bench.report import Tell, figure, machine
from towers.encoder import BaseEncoder, load_encoder
from towers.lexical import product_words
from towers.model import QueryTower

PRODUCTS: Final = 20_000
SEARCHES: Final = 300
WORDS: Final = 3_000
_LETTERS: Final = str.maketrans("0123456789", "abcdefghij")
COLLECTION: Final = "products-r0"
BATCH: Final = 1_000
GOAL_RATIO: Final = 1.2

Ask = Callable[[str], Awaitable[None]]


class _Nowhere:
    def send(self, impression: Impression) -> None: ...


def run(tell: Tell, *, products: int = PRODUCTS, searches: int = SEARCHES) -> dict[str, Any]:
    """Measure hot and never-seen queries, one at a time."""
    with (
        tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder,
        LocalMillrace(processes=["qdrant"], data_dir=Path(folder)) as running,
    ):
        configure("bench", running.settings)
        encoder = load_encoder(running.settings.base_model)
        tell(f"filling {products:,} products")
        fill(running.settings, encoder.dim, products)
        times = asyncio.run(_measured(running.settings, encoder, searches, tell))
    return {"bench": "search", "machine": machine(), "results": rows(times, products)}


def fill(settings: Settings, dim: int, count: int) -> None:
    """Write products whose vectors and words are drawn at random."""
    drawn = np.random.default_rng(1)
    store = ProductStore(connect(settings))
    store.ensure_collection(COLLECTION, dim + 1)
    for start in range(0, count, BATCH):
        points = []
        for number in range(start, min(start + BATCH, count)):
            row = drawn.standard_normal(dim)
            title = _words(drawn, 6)
            payload = PointPayload(title=title, brand=f"brand{number % 200}", price=float(number))
            product_id = f"P-{number}"
            points.append(
                ProductPoint(
                    product_id,
                    1,
                    0,
                    [*(row / np.linalg.norm(row)).tolist(), 0.0],
                    payload.model_dump(mode="json", exclude_none=True),
                    product_words(product_id, payload),
                )
            )
        store.write(COLLECTION, points)
    store.close()


async def _measured(settings: Settings, encoder: BaseEncoder, searches: int, tell: Tell) -> dict[str, list[float]]:
    """Milliseconds of each search, by kind, and the CPU that this process took for it."""
    async with AsyncExitStack() as stack:
        queries = QueryEncoder(encoder)
        stack.callback(queries.close)
        client = connect_async(settings, timeout_s=30, connections=MOST_OPEN)
        stack.push_async_callback(client.close)
        retrieval, release = QdrantRetrieval(client), ServedRelease(0, 0, COLLECTION, QueryTower.untrained(encoder.dim))
        good_match = GoodMatch(queries, retrieval)
        stack.callback(good_match.close)
        service = SearchService(
            lambda: release,
            Finder(queries, retrieval, good_match={LIVE: good_match}, hot_for_s=2.0, deadline_s=30.0),
            lists=KeptLists(kept_for_s=600),
            impressions=_Nowhere(),
            person_key=b"bench",
            ranking=Ranking(),
        )
        listener = bind_socket("127.0.0.1", 0)
        port = listener.getsockname()[1]
        await stack.enter_async_context(serving(build(lambda: service, Health("search")), listener, finish_s=1))
        bare = await stack.enter_async_context(httpx.AsyncClient(timeout=30))

        async def ours(query: str) -> None:
            (await bare.get(f"http://127.0.0.1:{port}/v1/search", params={"q": query})).raise_for_status()

        async def peer(query: str) -> None:
            (row,) = await asyncio.to_thread(encoder.encode, [query])
            body = {"query": [*row.tolist(), 1.0], "using": VECTOR_NAME, "limit": 10, "with_payload": True}
            url = f"{settings.qdrant_url}/collections/{COLLECTION}/points/query"
            (await bare.post(url, json=body)).raise_for_status()

        texts = drawn_queries(2 * searches + 20)
        for text in texts[-20:]:
            await ours(text)
            await peer(text)
        tell(f"asking {searches} of each kind, in turn")
        times: dict[str, list[float]] = {}
        for new, others in zip(texts[:searches], texts[searches : 2 * searches], strict=True):
            for kind, ask, text in (("never seen", ours, new), ("peer", peer, others), ("hot", ours, new)):
                began, used = time.perf_counter(), time.process_time()
                await ask(text)
                times.setdefault(kind, []).append(1000 * (time.perf_counter() - began))
                times.setdefault(f"{kind} CPU", []).append(1000 * (time.process_time() - used))
        return times


def drawn_queries(count: int) -> list[str]:
    """Queries of three words that the products have too."""
    drawn = np.random.default_rng(2)
    return [_words(drawn, 3) for _ in range(count)]


def _words(drawn: np.random.Generator, count: int) -> str:
    """Words without a figure: with one they would be taken for model numbers, which are looked for in a third way."""
    return " ".join(f"word{number}".translate(_LETTERS) for number in drawn.integers(0, WORDS, count))


def rows(times: dict[str, list[float]], products: int) -> list[dict[str, Any]]:
    """What was measured, each beside its peer.

    Only the ratio of never-seen queries has a goal here: those in ms are for 100,000 products at 50 searches a second.
    """
    of = f"{products:,} products"
    return [
        _row(f"hot p50, {of}", times, "hot", 50),
        _row(f"hot p99, {of}", times, "hot", 99),
        _row(f"never seen p99, {of}", times, "never seen", 99),
        _row(f"never seen p50, {of}", times, "never seen", 50, GOAL_RATIO),
        _row("never seen, CPU of all but the store", times, "never seen", 50, GOAL_RATIO, suffix=" CPU"),
        _row("hot, CPU with that of the client", times, "hot", 50, suffix=" CPU"),
    ]


def _row(
    name: str, times: dict[str, list[float]], kind: str, percent: int, goal: float | None = None, *, suffix: str = ""
) -> dict[str, Any]:
    ours, peer = (float(np.percentile(times[one + suffix], percent)) for one in (kind, "peer"))
    return figure(name, "ms", ours=ours, peer="encode and bare query", peer_value=peer, most=goal)

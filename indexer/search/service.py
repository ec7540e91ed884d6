"""One search from request to answer: take the pair once, encode, ask, answer; degraded rather than late."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from contracts.errors import DependencyDown, MillraceError
from contracts.events import Exploration
from contracts.http import EncodeAnswer, Filters, SearchAnswer, SearchRequest, SearchResult
from contracts.telemetry import Process
from indexer.search.encoding import QueryEncoder
from indexer.search.ids import time_ordered_id
from indexer.search.impressions import ImpressionLog, impression_of
from indexer.search.pair import Pair
from indexer.search.retrieval import Hit, Retrieval
from service import metrics
from service.logging import get_logger

DEADLINE_S: Final = 1.0
"""How long the vector store may take; a shopper who waits longer is gone."""
KEPT_ANSWERS: Final = 2000
REMEMBERED: Final = "remembered"
ARM: Final = "live"

PairInForce = Callable[[], Pair | None]
"""Returns the pair in force."""


class Found(NamedTuple):
    """What the vector store answered, and the pair that asked."""

    pair: Pair
    hits: list[Hit]
    total: int


class SearchService:
    """Answers searches.

    Args:
        pair: gives the pair in force.
        encoder: of queries.
        retrieval: the vector store.
        impressions: where impressions go.
        person_key: replaces client ids.
        clock_ms: epoch ms.
        deadline_s: how long the vector store may take.
    """

    def __init__(
        self,
        pair: PairInForce,
        encoder: QueryEncoder,
        *,
        retrieval: Retrieval,
        impressions: ImpressionLog,
        person_key: bytes,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._pair = pair
        self._encoder = encoder
        self._retrieval = retrieval
        self._impressions = impressions
        self._person_key = person_key
        self._clock_ms = clock_ms
        self._deadline_s = deadline_s
        self._answers: OrderedDict[tuple[str, int, str], Found] = OrderedDict()
        self._answered_release = 0
        self._retrieval_failed = False

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Answer a search and hand its impression over.

        Raises:
            DependencyDown: no pair is in force yet, or the vector store does not answer and nothing is kept.
        """
        began, search_time = time.perf_counter(), self._clock_ms()
        query = " ".join(request.query.split())
        found, degraded = await self._find(query, request)
        answer = SearchAnswer(
            search_id=time_ordered_id(search_time),
            search_time=search_time,
            query_release=found.pair.query_release,
            product_release=found.pair.product_release,
            arm=ARM,
            exploration=Exploration(),
            degraded=degraded,
            took_ms=round(1000 * (time.perf_counter() - began), 3),
            total=max(found.total, len(found.hits)),
            results=tuple(_result(position, hit, request) for position, hit in enumerate(found.hits, start=1)),
        )
        if request.impression == "server":
            self._impressions.send(impression_of(request, answer, query=query, person_key=self._person_key))
        self._observe_first_answer(found.pair)
        metrics.SEARCH_SECONDS.labels("total").observe(time.perf_counter() - began)
        return answer

    async def encode(self, texts: tuple[str, ...]) -> EncodeAnswer:
        """Return query vectors of the pair in force.

        Raises:
            DependencyDown: no pair is in force yet.
        """
        pair = self._in_force()
        rows = pair.transform(await self._encoder.encode(texts))
        return EncodeAnswer(
            query_release=pair.query_release,
            product_release=pair.product_release,
            vectors=tuple(tuple(row) for row in rows.tolist()),
        )

    def _in_force(self) -> Pair:
        pair = self._pair()
        if pair is None:
            raise DependencyDown("nothing is served yet", fix="start the indexer: it publishes the first pair")
        return pair

    async def _find(self, query: str, request: SearchRequest) -> tuple[Found, str | None]:
        """Return what is found and how the answer is degraded, None where it is not."""
        pair = self._in_force()
        with _stage("encode"):
            base = await self._encoder.encode([query])
        vector = pair.transform(base)[0]
        key = (query, request.k, request.filters.model_dump_json())
        try:
            with _stage("store"):
                async with asyncio.timeout(self._deadline_s):
                    hits, total = await asyncio.gather(
                        self._retrieval.nearest(pair.collection, vector, k=request.k, filters=request.filters),
                        self._total(pair.collection, request.filters),
                    )
        except (MillraceError, TimeoutError) as error:
            return self._kept(key, error), REMEMBERED
        self._note_retrieval(None)
        found = Found(pair, hits, total)
        self._keep(key, found)
        return found, None

    async def _total(self, collection: str, filters: Filters) -> int:
        """Return the number of matching products; it is not worth failing a search for."""
        try:
            async with asyncio.timeout(self._deadline_s / 2):
                return await self._retrieval.total(collection, filters)
        except (MillraceError, TimeoutError):
            return 0

    def _keep(self, key: tuple[str, int, str], found: Found) -> None:
        self._answers[key] = found
        self._answers.move_to_end(key)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)

    def _kept(self, key: tuple[str, int, str], error: MillraceError | TimeoutError) -> Found:
        """Return the last results of the same search, whose releases the answer then names."""
        reason = error.message if isinstance(error, MillraceError) else "the vector store did not answer in time"
        self._note_retrieval(reason)
        found = self._answers.get(key)
        metrics.DEGRADED.labels("unanswered" if found is None else REMEMBERED).inc()
        if found is None:
            raise DependencyDown(
                "the vector store does not answer, and no earlier answer is remembered",
                fix="bring the vector store back; `millrace doctor` shows what is missing",
            ) from error
        return found

    def _note_retrieval(self, reason: str | None) -> None:
        """Show whether the vector store answers, and say it when that changes."""
        metrics.DEPENDENCY_UP.labels(Process.QDRANT).set(reason is None)
        if reason is not None and not self._retrieval_failed:
            get_logger().warning("answers_degraded", error=reason)
        elif reason is None and self._retrieval_failed:
            get_logger().info("answers_whole_again")
        self._retrieval_failed = reason is not None

    def _observe_first_answer(self, pair: Pair) -> None:
        """Measure click to search at the first answer of a release: how old are the clicks that it learned from?

        Releases only grow: an answer from an older one is a remembered answer, or one overtaken by a swap.
        """
        if pair.query_release <= self._answered_release:
            return
        self._answered_release = pair.query_release
        now_ms = self._clock_ms()
        for click_time in pair.click_times:
            metrics.FRESHNESS.labels("click_to_search").observe(max(now_ms - click_time, 0) / 1000)


def _result(position: int, hit: Hit, request: SearchRequest) -> SearchResult:
    payload = hit.payload
    return SearchResult(
        product_id=payload["product_id"],
        position=position,
        score=hit.score,
        title=payload.get("title", ""),
        price=payload.get("price"),
        brand=payload.get("brand"),
        category=tuple(payload.get("category", ())),
        in_stock=bool(payload.get("in_stock", 1)),
        parent_id=payload.get("parent_id"),
        product_release=payload["product_release"],
        explanation={"cosine": hit.score} if request.explain else None,
    )


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Measure a stage of a search."""
    began = time.perf_counter()
    try:
        yield
    finally:
        metrics.SEARCH_SECONDS.labels(name).observe(time.perf_counter() - began)

"""From a request to an answer: take the pair, encode, retrieve, and say what was shown."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from contracts.errors import DependencyDown, MillraceError
from contracts.events import Exploration, Impression, Ranking, Slot
from contracts.search import EncodeAnswer, SearchAnswer, SearchRequest, SearchResult
from indexer.search.encoding import QueryEncoder
from indexer.search.pair import ServingPair
from indexer.search.retrieval import Hit, Retrieval
from service import metrics
from service.logging import get_logger
from service.people import person_id

log = get_logger()
ANSWERS_KEPT: Final = 2_000
SURFACE: Final = "search"


class Searcher:
    """Answers requests.

    Args:
        pair: returns the pair in force, None where there is none yet.
        encoder: of queries.
        retrieval: the vector store.
        write: takes an impression.
        person_key: replaces client ids.
        deadline_s: longest wait for the vector store.
        now_ms: the clock.
    """

    def __init__(
        self,
        pair: Callable[[], ServingPair | None],
        encoder: QueryEncoder,
        retrieval: Retrieval,
        *,
        write: Callable[[Impression], None],
        person_key: bytes,
        deadline_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self._pair = pair
        self._encoder = encoder
        self._retrieval = retrieval
        self._write = write
        self._person_key = person_key
        self._deadline_s = deadline_s
        self._now_ms = now_ms
        self._last: OrderedDict[str, tuple[ServingPair, list[Hit], int]] = OrderedDict()
        self._observed: ServingPair | None = None

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Return the answer to one search, and write its impression where the request says so.

        Raises:
            DependencyDown: nothing is served yet, or the vector store is away and nothing is remembered.
        """
        began = time.perf_counter()
        pair = self._in_force()
        vector = (await self._vectors(pair, [request.query]))[0]
        answered_by, hits, total, degraded = await self._retrieve(pair, request, vector)
        search_id, search_time = new_search_id(self._now_ms()), self._now_ms()
        results = tuple(to_result(hit, number, explain=request.explain) for number, hit in enumerate(hits, start=1))
        took_ms = (time.perf_counter() - began) * 1000
        answer = SearchAnswer(
            search_id=search_id, search_time=search_time, query_release=answered_by.query_release,
            product_release=answered_by.product_release, arm="live", exploration=Exploration(), degraded=degraded,
            took_ms=round(took_ms, 3), total=total, results=results,
        )  # fmt: skip
        if request.impression == "server":
            self._write(self._impression(request, answer))
        self._observe_freshness(answered_by)
        metrics.SEARCH_SECONDS.labels(stage="total").observe(took_ms / 1000)
        return answer

    async def encode(self, texts: Sequence[str]) -> EncodeAnswer:
        """Return query vectors of the head in force.

        Raises:
            DependencyDown: nothing is served yet.
        """
        pair = self._in_force()
        rows = await self._vectors(pair, texts)
        vectors = tuple(tuple(row) for row in rows)
        return EncodeAnswer(query_release=pair.query_release, product_release=pair.product_release, vectors=vectors)

    def _in_force(self) -> ServingPair:
        pair = self._pair()
        if pair is None:
            raise DependencyDown(
                "nothing is served yet", fix="wait until /ready answers 200; the indexer must be running"
            )
        return pair

    async def _vectors(self, pair: ServingPair, texts: Sequence[str]) -> list[list[float]]:
        began = time.perf_counter()
        base = self._encoder.known(texts)
        if base is None:
            base = await asyncio.to_thread(self._encoder.base, texts)
        rows: list[list[float]] = pair.transform(base).tolist()
        metrics.SEARCH_SECONDS.labels(stage="encode").observe(time.perf_counter() - began)
        return rows

    async def _retrieve(
        self, pair: ServingPair, request: SearchRequest, vector: list[float]
    ) -> tuple[ServingPair, list[Hit], int, str | None]:
        """Return who answered, the hits, the total, and why the answer is not a fresh one (None where it is)."""
        began = time.perf_counter()
        key = f"{request.k} {request.filters.model_dump_json()} {request.query}"
        try:
            async with asyncio.timeout(self._deadline_s):
                hits = await self._retrieval.nearest(pair.collection, vector, request.filters, k=request.k)
                total = await self._retrieval.total(pair.collection, request.filters)
        except (MillraceError, TimeoutError) as exc:
            return self._remembered(key, exc)
        metrics.SEARCH_SECONDS.labels(stage="store").observe(time.perf_counter() - began)
        self._last[key] = (pair, hits, total)
        self._last.move_to_end(key)
        if len(self._last) > ANSWERS_KEPT:
            self._last.popitem(last=False)
        return pair, hits, total, None

    def _remembered(self, key: str, exc: Exception) -> tuple[ServingPair, list[Hit], int, str]:
        log.warning("store_unanswered", error=str(exc) or "no answer in time")
        if key not in self._last:
            metrics.DEGRADED.labels(mode="unanswered").inc()
            fix = "bring the vector store back; `millrace doctor` shows what is missing"
            raise DependencyDown(
                "the vector store does not answer, and no earlier answer is remembered", fix=fix
            ) from exc
        metrics.DEGRADED.labels(mode="remembered").inc()
        return (*self._last[key], "remembered")

    def _impression(self, request: SearchRequest, answer: SearchAnswer) -> Impression:
        client = person_id(request.client_id, self._person_key) if request.client_id else None
        session = request.session_id or (None if client else f"anonymous-{answer.search_id}")
        ranking = Ranking(
            query_release=answer.query_release, product_release=answer.product_release, arm=answer.arm,
            exploration=answer.exploration,
        )  # fmt: skip
        return Impression(
            type="impression", event_id=f"{answer.search_id}-i", event_time=answer.search_time, session_id=session,
            client_id=client, surface=SURFACE, search_id=answer.search_id, query=request.query,
            total_results=answer.total, slots=tuple(to_slot(result) for result in answer.results), ranking=ranking,
        )  # fmt: skip

    def _observe_freshness(self, pair: ServingPair) -> None:
        """Note the clicks that this pair is the first to answer for; the pair of the start says nothing about them."""
        if pair is self._observed:
            return
        if self._observed is not None:
            now_ms = self._now_ms()
            for click_time in pair.click_times:
                metrics.FRESHNESS.labels(path="click_to_search").observe(max(0.0, (now_ms - click_time) / 1000))
        self._observed = pair


def new_search_id(now_ms: int) -> str:
    """Return an id that sorts by time: 48 bits of milliseconds, then 80 random bits, as hex."""
    return f"{now_ms:012x}{secrets.token_hex(10)}"


def to_result(hit: Hit, position: int, *, explain: bool) -> SearchResult:
    """Return a hit as it is answered."""
    payload = hit.payload
    return SearchResult(
        product_id=payload["product_id"], position=position, score=hit.score, title=payload.get("title", ""),
        price=payload.get("price"), brand=payload.get("brand"), category=tuple(payload.get("category") or ()),
        in_stock=bool(payload.get("in_stock", 1)), parent_id=payload.get("parent_id"),
        product_release=payload.get("product_release", 0), explanation={"cosine": hit.score} if explain else None,
    )  # fmt: skip


def to_slot(result: SearchResult) -> Slot:
    """Return a result as the impression names it."""
    return Slot(
        product_id=result.product_id, position=result.position, in_stock=result.in_stock, price=result.price,
        score=result.score, parent_id=result.parent_id,
    )  # fmt: skip

"""One search from request to answer: take the release once, encode, ask, answer; degraded or refused, never late.

If the query cannot be encoded in time its words are asked alone: prices, stock and deletions are today's. Only if they
find nothing, or the store does not answer, an earlier answer to the same search is given again.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, NamedTuple, Self

import numpy as np
import orjson
from cachetools import TTLCache

from contracts.errors import DependencyDown, MillraceError, Overloaded, TransientError
from contracts.events import BY_RELEVANCE, Exploration
from contracts.http import EncodeAnswer, FacetValue, SearchAnswer, SearchRequest
from contracts.telemetry import Process
from indexer.search.encoding import ENTRY_BYTES, QueryEncoder, digest
from indexer.search.exploration import CANDIDATES, Policy
from indexer.search.facets import Facets, listed
from indexer.search.impressions import ImpressionLog, impression_of, time_ordered_id
from indexer.search.in_force import ServedRelease
from indexer.search.retrieval import Hit, Question, Retrieval, Totals, result_of
from service import metrics
from service.health import Dependency
from service.logging import get_logger
from service.machine import EpochClock, epoch_ms
from towers.model import NATS_PER_COSINE

DEADLINE_S: Final = 1.0
"""How long a search may take; a shopper who waits longer is gone."""
BULK_DEADLINE_S: Final = 30.0
FEWEST_OPEN: Final = 4
MOST_OPEN: Final = 64
"""Searches under way at one time, and so calls to the vector store."""
ENCODE_SHARE: Final = 0.6
"""Of the deadline: how long a query may take to encode, so that the store still has time for its words."""
COUNT_SHARE: Final = 0.1
"""Of the deadline: how long results that are there wait for their total."""
REMEMBERED_FOR_S: Final = 300.0
"""How old an answer may be that is given again; prices, stock and deletions are as old."""
REMEMBERED_BYTES: Final = 32 * 2**20
ARM: Final = "live"
NO_EXPLORATION: Final = Policy()
SEED_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Clocks:
    """The time, for those who measure and those who forget."""

    epoch_ms: EpochClock = field(default=epoch_ms)
    monotonic_s: Callable[[], float] = field(default=time.monotonic)


class Found(NamedTuple):
    """What the vector store answered to a release; `total` is None if nobody has counted.

    `explanations` are there if they were asked for, one of each hit.
    """

    query_release: int
    product_release: int
    hits: list[Hit]
    total: int | None
    exploration: Exploration = Exploration()
    explanations: Sequence[dict[str, float] | None] = ()
    degraded: str | None = None
    age_s: float | None = None

    @classmethod
    def by(cls, release: ServedRelease, hits: list[Hit], total: int | None, **fields: Any) -> Self:
        """What a release found."""
        return cls(release.query_release, release.product_release, hits, total, **fields)


class OpenSearches:
    """How many searches may be under way, so that those that are begun end in time, whatever the machine can do.

    A search that failed, or took three quarters of the deadline, takes a quarter off; each quicker one adds a little.
    So if the vector store hangs, few wait for it and the others are answered from memory at once.

    Args:
        deadline_s: how long a search may take.
        monotonic_s: clock that measures them.
    """

    def __init__(self, deadline_s: float, monotonic_s: Callable[[], float]) -> None:
        self._slow_s = 0.75 * deadline_s
        self._monotonic_s = monotonic_s
        self._open = 0
        self._most = float(MOST_OPEN)
        self._lowered_at_s = -math.inf

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a search while it is under way.

        Raises:
            Overloaded: too many are.
        """
        if self._open >= self._most:
            raise Overloaded(f"{self._open} searches are under way", fix="send it again")
        began_s, answered = self._monotonic_s(), False
        self._open += 1
        try:
            yield
            answered = True
        finally:
            self._open -= 1
            self._learn(began_s, answered=answered)

    def _learn(self, began_s: float, *, answered: bool) -> None:
        now_s = self._monotonic_s()
        if answered and now_s - began_s <= self._slow_s:
            self._most = min(self._most + 1 / self._most, MOST_OPEN)
        elif began_s >= self._lowered_at_s:  # what began before is late for a reason that is dealt with already
            self._most = max(0.75 * self._most, FEWEST_OPEN)
            self._lowered_at_s = now_s


class _Remembered(NamedTuple):
    found: bytes
    found_at_s: float


class SearchService:
    """Answers searches.

    Args:
        in_force: gives the release in force, None before the first.
        encoder: of queries.
        retrieval: the vector store.
        impressions: where impressions go.
        person_key: replaces client ids.
        explore: how lists are perturbed for those who allow it.
        clocks: the time.
        deadline_s: how long a search may take.
    """

    def __init__(
        self,
        in_force: Callable[[], ServedRelease | None],
        encoder: QueryEncoder,
        *,
        retrieval: Retrieval,
        impressions: ImpressionLog,
        person_key: bytes,
        explore: Policy = NO_EXPLORATION,
        clocks: Clocks | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._release_in_force = in_force
        self._encoder = encoder
        self._retrieval = retrieval
        self._impressions = impressions
        self._person_key = person_key
        self._explore = explore
        self._clocks = clocks or Clocks()
        self._deadline_s = deadline_s
        self._open = OpenSearches(deadline_s, self._clocks.monotonic_s)
        self._facets = Facets(retrieval, monotonic_s=self._clocks.monotonic_s)
        self._totals = Totals(retrieval.count, monotonic_s=self._clocks.monotonic_s)
        self._remembered: TTLCache[bytes, _Remembered] = TTLCache(
            REMEMBERED_BYTES,
            REMEMBERED_FOR_S,
            timer=self._clocks.monotonic_s,
            getsizeof=lambda one: len(one.found) + ENTRY_BYTES,
        )
        self._qdrant = Dependency(Process.QDRANT, meaning="searches are answered from memory, or not at all")
        self._answered_release = 0

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Answer a search and hand its impression over.

        Raises:
            DependencyDown: no release is in force yet, or the vector store does not answer and nothing is remembered.
            Overloaded: more is asked than can be answered within the deadline.
        """
        began, search_time = time.perf_counter(), self._clocks.epoch_ms()
        query = " ".join(request.query.split())
        if request.facets:
            found, facets = await asyncio.gather(self._find(query, request), self._count_facets(query, request))
        else:
            found, facets = await self._find(query, request), None
        answer = SearchAnswer(
            search_id=time_ordered_id(search_time),
            search_time=search_time,
            query_release=found.query_release,
            product_release=found.product_release,
            arm=ARM,
            exploration=found.exploration,
            degraded=found.degraded,
            age_s=found.age_s,
            took_ms=round(1000 * (time.perf_counter() - began), 3),
            total=max(found.total or 0, len(found.hits)),
            total_relation="gte" if found.total is None else "eq",
            results=tuple(
                result_of(position, hit, explanation)
                for position, (hit, explanation) in enumerate(zip_longest(found.hits, found.explanations), start=1)
            ),
            sort=request.sort,
            facets=facets,
        )
        if request.impression == "server":
            self._impressions.send(impression_of(request, answer, query=query, person_key=self._person_key))
        metrics.SEARCH_SECONDS.labels("total").observe(time.perf_counter() - began)
        return answer

    async def encode(self, texts: tuple[str, ...]) -> EncodeAnswer:
        """Return query vectors of the release in force; somebody waits for one text as for a search, not so for many.

        Raises:
            DependencyDown: no release is in force yet.
            Overloaded: they cannot be encoded in time.
        """
        release, is_bulk = self._in_force(), len(texts) > 1
        ends_s = asyncio.get_running_loop().time() + (BULK_DEADLINE_S if is_bulk else self._deadline_s)
        async with _until(ends_s, Overloaded("the texts could not be encoded in time", fix="send fewer at once")):
            rows = await (self._encoder.encode_bulk(texts) if is_bulk else self._encoder.encode(texts))
        return EncodeAnswer(
            query_release=release.query_release,
            product_release=release.product_release,
            collection=release.collection,
            vectors=tuple(tuple(row) for row in release.tower.vectors(texts, rows).tolist()),
        )

    def _in_force(self) -> ServedRelease:
        release = self._release_in_force()
        if release is None:
            raise DependencyDown("nothing is served yet", fix="start the indexer: it puts the first release in force")
        return release

    async def _find(self, query: str, request: SearchRequest) -> Found:
        """Return what the vector store finds, or what it found when the same was asked before."""
        release, filters = self._in_force(), request.filters
        is_ranked = bool(query) and request.sort == BY_RELEVANCE
        explores = is_ranked and request.explore and self._explore.explores
        key = digest(f"{query}\n{request.sort} {request.k} {explores} {filters.model_dump_json()}")
        ends_s = asyncio.get_running_loop().time() + self._deadline_s
        try:
            with self._open.one_more():
                rows, late = await self._encoded(query, ends_s) if query else (None, None)
                explores = explores and rows is not None
                vector = None if rows is None else release.tower.vectors([query], rows)[0]
                total = self._totals.known(release.collection, filters)
                async with _until(ends_s, TransientError("Qdrant did not answer in time")):
                    with _timed("store"):
                        hits = await listed(
                            self._retrieval,
                            release.collection,
                            Question.of(query, vector, release.tower.mix) if query else None,
                            sort=request.sort,
                            k=max(request.k, CANDIDATES) if explores else request.k,
                            filters=filters,
                            with_vectors=request.explain and rows is not None,
                        )
                if late is not None and not hits:
                    raise late
        except MillraceError as error:
            return self._instead(key, error)
        self._qdrant.answered()
        if total is None:
            timeout_s = min(ends_s - asyncio.get_running_loop().time(), self._deadline_s * COUNT_SHARE)
            total = await self._totals.wait(release.collection, filters, timeout_s=timeout_s)
        if not query:
            return self._remember(key, Found.by(release, hits, total, explanations=_by_quality(hits, request)))
        if rows is None:
            return self._by_words(release, hits, total, explain=request.explain)
        self._observe_first_answer(release)
        exploration = Exploration()
        if explores:
            exploration = Exploration(policy=self._explore.name, seed=secrets.randbits(SEED_BITS))
            hits = self._explore.ranked(hits, seed=exploration.seed, k=request.k)
        explanations = [
            None if hit.vector is None else release.explain(query, rows[0], np.array(hit.vector), hit.words)
            for hit in hits
        ]
        found = Found.by(release, hits, total, exploration=exploration, explanations=explanations)
        return self._remember(key, found)

    def _remember(self, key: bytes, found: Found) -> Found:
        hits = [[*hit[:2]] for hit in found.hits]
        content = [*found[:2], hits, found.total, found.exploration.model_dump()]
        self._remembered[key] = _Remembered(orjson.dumps(content), self._clocks.monotonic_s())
        return found

    async def _count_facets(self, query: str, request: SearchRequest) -> dict[str, tuple[FacetValue, ...]] | None:
        """Count what was asked for beside the search; nobody's search fails for it."""
        ends_s = asyncio.get_running_loop().time() + self._deadline_s
        try:
            release, question = self._in_force(), None
            async with _until(ends_s, TransientError("facets were not counted in time")):
                if query:
                    rows, _ = await self._encoded(query, ends_s)
                    vector = None if rows is None else release.tower.vectors([query], rows)[0]
                    question = Question.of(query, vector, release.tower.mix)
                with _timed("facets"):
                    return await self._facets.counted(release.collection, question, request.facets, request.filters)
        except MillraceError as error:
            metrics.DEGRADED.labels("no_facets").inc()
            get_logger().warning("facets_not_counted", error=error.message)
            return None

    async def _encoded(self, query: str, ends_s: float) -> tuple[np.ndarray | None, MillraceError | None]:
        """The base vector of a query, (1, D), or why there is none."""
        late = Overloaded("the query could not be encoded in time", fix="send it again")
        try:
            async with _until(ends_s - (1 - ENCODE_SHARE) * self._deadline_s, late):
                with _timed("encode"):
                    return await self._encoder.encode([query]), None
        except MillraceError as error:
            return None, error
        except Exception as error:  # noqa: BLE001 - whatever ails the encoder, words need none
            get_logger().error("query_not_encoded", error=repr(error))
            return None, DependencyDown(f"the query cannot be encoded: {error!r}", fix="look at this service's log")

    def _by_words(self, release: ServedRelease, hits: list[Hit], total: int | None, *, explain: bool) -> Found:
        """What words and quality alone found; nothing of it is remembered, for whole answers are better."""
        metrics.DEGRADED.labels("lexical").inc()
        parts = [
            {"quality": NATS_PER_COSINE * hit.score - hit.words, "words": hit.words} if explain else None
            for hit in hits
        ]
        return Found.by(release, hits, total, explanations=parts, degraded="lexical")

    def _instead(self, key: bytes, error: MillraceError) -> Found:
        """Return the last results of the same search, whose releases the answer then names."""
        is_overload = isinstance(error, Overloaded)
        if not is_overload:
            self._qdrant.failed(error)
        remembered = self._remembered.get(key)
        if remembered is not None:
            metrics.DEGRADED.labels("remembered").inc()
            query_release, product_release, hits, total, exploration = orjson.loads(remembered.found)
            return Found(
                query_release,
                product_release,
                [Hit(*hit) for hit in hits],
                total,
                Exploration(**exploration),
                degraded="remembered",
                age_s=round(self._clocks.monotonic_s() - remembered.found_at_s, 1),
            )
        metrics.DEGRADED.labels("shed" if is_overload else "unanswered").inc()
        if is_overload:
            raise error
        raise DependencyDown(
            "the vector store does not answer, and no earlier answer is remembered",
            fix="bring the vector store back; `millrace doctor` shows what is missing",
        ) from error

    def _observe_first_answer(self, release: ServedRelease) -> None:
        """Measure click to search at the first answer of a release: how old are the clicks that it learned from?

        Releases only grow: an answer from an older one was overtaken by a swap.
        """
        if release.query_release <= self._answered_release:
            return
        self._answered_release = release.query_release
        now_ms = self._clocks.epoch_ms()
        for click_time in release.click_times:
            metrics.FRESHNESS.labels("click_to_search").observe(max(now_ms - click_time, 0) / 1000)


def _by_quality(hits: Sequence[Hit], request: SearchRequest) -> list[dict[str, float] | None]:
    return [{"quality": NATS_PER_COSINE * hit.score} if request.explain else None for hit in hits]


@asynccontextmanager
async def _until(ends_s: float, error: MillraceError) -> AsyncIterator[None]:
    """Raise an error if the block has not ended by then, in the event loop's seconds."""
    try:
        async with asyncio.timeout_at(ends_s):
            yield
    except TimeoutError as timeout:
        raise error from timeout


@contextmanager
def _timed(part: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        metrics.SEARCH_SECONDS.labels(part).observe(time.perf_counter() - began)

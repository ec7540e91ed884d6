"""What the vector store has for a query, or without one: encode, ask by meaning and words, count; within a deadline.

Equal searches share one call, and what it found serves others for a moment. If the query cannot be encoded in time, its
words are asked alone: prices, stock and deletions are today's.
"""

import asyncio
import math
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from contracts.errors import DependencyDown, MillraceError, Overloaded, TransientError
from contracts.events import BY_RELEVANCE
from contracts.http import FacetValue, Filters, Sort
from indexer.search.arrangement import grouped
from indexer.search.encoding import ENTRY_BYTES, QueryEncoder, digest
from indexer.search.facets import Facets, listed
from indexer.search.good_match import GoodMatch
from indexer.search.in_force import ServedRelease
from indexer.search.load import AdaptiveLimit, Flights
from indexer.search.retrieval import Hit, Question, Retrieval, Totals
from service import metrics
from service.logging import get_logger
from towers.model import NATS_PER_COSINE

DEADLINE_S: Final = 1.0
"""How long a search may take; a shopper who waits longer is gone."""
BULK_DEADLINE_S: Final = 30.0
ENCODE_SHARE: Final = 0.6
"""Of the deadline: how long a query may take to encode, so that the store still has time for its words."""
COUNT_SHARE: Final = 0.1
"""Of the deadline: how long results that are there wait for their total."""
MOST_VARIANTS: Final = 1_000
"""Products that are asked for once more at most, where variants of a few groups match best."""
HOT_BYTES: Final = 64 * 2**20
"""About 100 results of 150 products, fewer with their vectors; more different queries are hardly hot."""
HOT_FACETS: Final = 256
PAYLOAD_TIMES: Final = 6
"""What a payload takes in memory, in lengths of its JSON: measured with that of a product of six attributes."""
NUMBER_BYTES: Final = 32
"""A float of a list, and its place there."""

SAID_EVERY_S: Final = 60.0
"""How often the log says that searches do without something; each search that does is counted."""

NO_GOOD_MATCH: Final[Mapping[str, GoodMatch]] = {}


class Candidates(NamedTuple):
    """What was found for a query, shared by all who ask the same.

    Args:
        hits: best first.
        total: products that meet the filters; None if nobody has counted.
        row: base vector of the query, (D,); None without a query, or if words were asked alone.
        found_at_s: when, by the monotonic clock.
        by_words: whether words were asked alone, because the query could not be encoded in time.
        no_good_match: whether none of them matches well.
    """

    hits: Sequence[Hit]
    total: int | None
    row: np.ndarray | None
    found_at_s: float
    by_words: bool = False
    no_good_match: bool = False

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        said = sum(len(orjson.dumps(hit.payload)) for hit in self.hits)
        numbers = sum(len(hit.vector) for hit in self.hits if hit.vector is not None)
        return ENTRY_BYTES * (1 + len(self.hits)) + PAYLOAD_TIMES * said + NUMBER_BYTES * numbers


class CountedFacets(NamedTuple):
    """Facets as they were counted, None if not in time, and whether of all that the query means."""

    facets: dict[str, tuple[FacetValue, ...]] | None
    is_whole: bool


class Finder:
    """Asks the vector store, for one event loop.

    Args:
        encoder: of queries.
        retrieval: the vector store.
        good_match: tells whether anything matches well, by arm; of an arm without one that is not asked.
        hot_for_s: how long what was found serves those who ask the same; products are as old.
        deadline_s: how long it may take.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        retrieval: Retrieval,
        *,
        good_match: Mapping[str, GoodMatch] = NO_GOOD_MATCH,
        hot_for_s: float,
        deadline_s: float = DEADLINE_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._retrieval = retrieval
        self._deadline_s = deadline_s
        self._monotonic_s = monotonic_s
        self._limit = AdaptiveLimit(deadline_s, monotonic_s)
        self._flights: Flights[Candidates] = Flights(
            hot_for_s, most=HOT_BYTES, size=lambda found: found.nbytes, monotonic_s=monotonic_s
        )
        self._facet_flights: Flights[CountedFacets] = Flights(hot_for_s, most=HOT_FACETS, monotonic_s=monotonic_s)
        self._good_match = good_match
        self._totals = Totals(retrieval.count, monotonic_s=monotonic_s)
        self._facets = Facets(retrieval, monotonic_s=monotonic_s)
        self._said_s: dict[str, float] = {}

    async def find(
        self,
        query: str,
        release: ServedRelease,
        *,
        most: int,
        filters: Filters,
        sort: Sort = BY_RELEVANCE,
        with_vectors: bool = False,
        groups: int = 0,
    ) -> Candidates:
        """Return the best products for a query, or all without one, as found now or a moment ago.

        Args:
            query: as it was typed; empty to browse.
            release: that answers.
            most: how many products.
            filters: which they meet.
            sort: how they are in order.
            with_vectors: whether their vectors are needed.
            groups: of variants, that a query is to find if there are so many.

        Raises:
            MillraceError: the store does not answer in time; `Overloaded` if it, or this service, has too much to do.
        """
        key = _key(query, release, filters, most, sort, with_vectors, groups)

        async def call() -> Candidates:
            return await self._found(query, release, most, filters, sort, with_vectors=with_vectors, groups=groups)

        return await self._flights.result(key, call, keeps=lambda found: not found.by_words)

    async def facets(
        self, query: str, release: ServedRelease, names: Sequence[str], filters: Filters
    ) -> dict[str, tuple[FacetValue, ...]] | None:
        """Count facets of what a query finds, or of all products without one; None if they are not counted in time."""

        async def call() -> CountedFacets:
            return await self._counted(query, release, names, filters)

        counted = await self._facet_flights.result(
            _key(query, release, filters, *names), call, keeps=lambda counted: counted.is_whole
        )
        return counted.facets

    async def _counted(
        self, query: str, release: ServedRelease, names: Sequence[str], filters: Filters
    ) -> CountedFacets:
        ends_s = asyncio.get_running_loop().time() + self._deadline_s
        try:
            async with _until(ends_s, TransientError("facets were not counted in time")):
                with self._limit.one_more(), _timed("facets"):
                    rows, late = await self._encoded(query, ends_s)
                    question = _question(query, release, rows)
                    facets = await self._facets.counted(release.collection, question, names, filters)
                    return CountedFacets(facets, is_whole=late is None)
        except MillraceError as error:
            metrics.DEGRADED.labels("no_facets").inc()
            if self._is_news("facets_not_counted"):
                get_logger().warning("facets_not_counted", error=error.message)
            return CountedFacets(None, is_whole=False)

    async def shown(self, collection: str, product_ids: Sequence[str], filters: Filters) -> dict[str, dict[str, Any]]:
        """Return what results say today of products, by id, without those that are gone or do not meet the filters.

        Raises:
            MillraceError: as `find` does.
        """
        ends_s = asyncio.get_running_loop().time() + self._deadline_s
        with self._limit.one_more(), self._limit.measured(), _timed("store"):
            async with _until(ends_s, TransientError("Qdrant did not answer in time")):
                return await self._retrieval.shown(collection, product_ids, filters=filters)

    async def ask(self, collection: str) -> None:
        """Ask the store for no product, beside searches: an answer shows that it is there.

        Raises:
            MillraceError: it does not answer, or refuses.
        """
        with suppress(Overloaded):  # who sheds load is there
            await self._retrieval.shown(collection, [""], filters=Filters())

    async def further(
        self, release: ServedRelease, *, sort: Sort, most: int, filters: Filters, without: Sequence[str]
    ) -> list[Hit]:
        """Return what comes next of all products, without those that a list has; little is told of each.

        Raises:
            MillraceError: as `find` does.
        """
        ends_s = asyncio.get_running_loop().time() + self._deadline_s
        with self._limit.one_more(), self._limit.measured(), _timed("store"):
            async with _until(ends_s, TransientError("Qdrant did not answer in time")):
                return await self._retrieval.browse(release.collection, sort, k=most, filters=filters, without=without)

    async def vectors(self, release: ServedRelease, texts: Sequence[str]) -> np.ndarray:
        """Return query vectors, (N, D + 1); somebody waits for one text as for a search, not so for many.

        Raises:
            Overloaded: they cannot be encoded in time.
        """
        is_bulk = len(texts) > 1
        ends_s = asyncio.get_running_loop().time() + (BULK_DEADLINE_S if is_bulk else self._deadline_s)
        async with _until(ends_s, Overloaded("the texts could not be encoded in time", fix="send fewer at once")):
            rows = await (self._encoder.encode_bulk(texts) if is_bulk else self._encoder.encode(texts))
        return release.tower.vectors(rows)

    async def _found(
        self,
        query: str,
        release: ServedRelease,
        most: int,
        filters: Filters,
        sort: Sort,
        *,
        with_vectors: bool,
        groups: int,
    ) -> Candidates:
        ends_s = asyncio.get_running_loop().time() + self._deadline_s
        with self._limit.one_more():
            rows, late = await self._encoded(query, ends_s)
            total = self._totals.known(release.collection, filters)
            question = _question(query, release, rows)
            with self._limit.measured(), _timed("store"):
                async with _until(ends_s, TransientError("Qdrant did not answer in time")):
                    ask = partial(
                        listed,
                        self._retrieval,
                        release.collection,
                        question,
                        sort=sort,
                        filters=filters,
                        with_vectors=with_vectors and rows is not None,
                    )
                    hits = await ask(k=most)
                    is_early = asyncio.get_running_loop().time() < ends_s - self._deadline_s / 2
                    if groups and is_early and len(hits) >= most and (found := len(grouped(hits))) < groups:
                        hits = await ask(k=min(2 * len(hits) * groups // found, MOST_VARIANTS))
            if late is not None and not hits:
                raise late
        if total is None:
            timeout_s = min(ends_s - asyncio.get_running_loop().time(), self._deadline_s * COUNT_SHARE)
            total = await self._totals.wait(release.collection, filters, timeout_s=timeout_s)
        if rows is None:
            return Candidates(hits, total, None, self._monotonic_s(), by_words=late is not None)
        judge = self._good_match.get(release.arm)
        missed = judge is not None and judge.is_missed(release, hits)
        return Candidates(hits, total, rows[0], self._monotonic_s(), no_good_match=missed)

    async def _encoded(self, query: str, ends_s: float) -> tuple[np.ndarray | None, MillraceError | None]:
        """The base vector of a query, (1, D), or why there is none; neither without a query."""
        if not query:
            return None, None
        late = Overloaded("the query could not be encoded in time", fix="send it again")
        try:
            async with _until(ends_s - (1 - ENCODE_SHARE) * self._deadline_s, late):
                with _timed("encode"):
                    return await self._encoder.encode([query]), None
        except MillraceError as error:
            return None, error
        except Exception as error:  # noqa: BLE001 - whatever ails the encoder, words need none
            if self._is_news("query_not_encoded"):
                get_logger().error("query_not_encoded", error=repr(error))
            return None, DependencyDown(f"the query cannot be encoded: {error!r}", fix="look at this service's log")

    def _is_news(self, event: str) -> bool:
        """Whether something was not said for a while; it counts as said from now on."""
        now_s = self._monotonic_s()
        if now_s - self._said_s.get(event, -math.inf) < SAID_EVERY_S:
            return False
        self._said_s[event] = now_s
        return True


def _key(query: str, release: ServedRelease, filters: Filters, *more: object) -> bytes:
    """Equal for searches that find the same."""
    served = release.arm, release.query_release, release.product_release, release.collection
    folded = unicodedata.normalize("NFKC", query).casefold()
    return digest(f"{served} {more} {filters.model_dump_json()}\n{folded}")


def _question(query: str, release: ServedRelease, rows: np.ndarray | None) -> Question | None:
    """What the store is asked for a query and its base vector, (1, D); None without a query."""
    vector = None if rows is None else release.tower.vectors(rows)[0]
    return Question.of(query, vector, release.tower) if query else None


def explained(
    hits: Sequence[Hit],
    query: str,
    release: ServedRelease,
    row: np.ndarray | None,
    boosts: Callable[[Hit], dict[str, float]],
) -> dict[str, dict[str, float]]:
    """What each score is made of, in nats, by product; without a vector, what words and quality alone make of it.

    Args:
        hits: to explain.
        query: that found them.
        release: that ranked them.
        row: base vector of the query, (D,).
        boosts: what was added to the score of each.
    """
    explanations = {}
    for hit in hits:
        added = boosts(hit)
        if row is None:
            parts = {"quality": NATS_PER_COSINE * hit.score - hit.words - hit.memory - sum(added.values())}
            parts |= {"memory": hit.memory, "words": hit.words} if query else {}
        elif hit.vector is None:
            continue
        else:
            parts = release.tower.terms(row, np.array(hit.vector), {"memory": hit.memory, "words": hit.words})
        explanations[hit.payload["product_id"]] = parts | added
    return explanations


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

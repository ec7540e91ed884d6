"""Asking the vector store: the best products by meaning and words that meet the filters, and how many there are.

Both arms and the scores of all that either found come in one round trip; an identifier's product goes first.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
from cachetools import TTLCache
from qdrant_client import AsyncQdrantClient, models

from contracts.catalog import point_id
from contracts.errors import MillraceError
from contracts.http import Filters, SearchResult, Sort
from indexer.filters import KEYS, any_of, to_filter, to_live_filter
from indexer.qdrant import VECTOR_NAME, qdrant_errors, to_sparse
from indexer.search.encoding import digest
from towers.lexical import NAMED, LexicalQuery, meant, read_query
from towers.model import DEFAULT_MIX, NATS_PER_COSINE, Mix, QueryTower

TOTAL_FOR_S: Final = 10.0
"""How long a number of matching products is good enough."""
CACHED_TOTALS: Final = 10_000
COUNTS_AT_ONCE: Final = 1
"""A count takes the store longer than a search; no more of its time goes there."""
CANDIDATES: Final = 50
"""Products that each arm finds at least; one that both rank behind so many is not among the first ten of both."""
DENSE_PARAMS: Final = models.SearchParams(hnsw_ef=384)
"""How many candidates of a graph a search looks at: of 100,000 products, 256 miss 3 % of the ten nearest, 384 1 %."""
SHOWN: Final = [
    "product_id", "title", "price", "currency", "brand", "category", "in_stock", "url", "image_url", "rating",
    "launched_at", "priority", "seller_id", "parent_id", "attributes", "product_release", "quality", "quality_width",
]  # fmt: skip
"""What a result says of its product, and what ranks it; the rest of the payload stays in the store."""
LISTED: Final = ["product_id", "seller_id", "parent_id", "quality", "launched_at", "priority"]
"""What a list is made of; what its page says of a product is read when the page is asked for."""
ORDERS: Final[Mapping[Sort, tuple[str, models.Direction]]] = {
    "relevance": ("quality", models.Direction.DESC),
    "price": ("price", models.Direction.ASC),
    "-price": ("price", models.Direction.DESC),
    "newest": ("launched_at", models.Direction.DESC),
    "rating": ("rating", models.Direction.DESC),
}
"""By which field products are in order if no query ranks them."""


Arms = dict[str, list[float] | models.SparseVector]
"""The vectors to ask by, under their names."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What the vector store is asked.

    Args:
        vector: of the query, (D + 1,); None if it could not be encoded, then words and quality decide.
        words: of the query.
        mix: how much words count.
        quality: how much of a product's quality counts without a vector, which says so itself.
        remembered: what the query's own shoppers add to the scores of products, in nats by the id of their point.
    """

    vector: np.ndarray | None
    words: LexicalQuery
    mix: Mix = DEFAULT_MIX
    quality: float = 1.0
    remembered: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, query: str, vector: np.ndarray | None, tower: QueryTower) -> "Question":
        """What a tower makes of a query."""
        return cls(vector, read_query(query), tower.mix, tower.quality, tower.memory.nats_of(query))

    def arms(self, *, mistyped: bool = False) -> Arms:
        """By what to ask: by meaning if the query could be encoded, and by its words."""
        dense: Arms = {} if self.vector is None else {VECTOR_NAME: self.vector.tolist()}
        return dense | {name: to_sparse(arm) for name, arm in self.words.arms(mistyped=mistyped).items()}


class Hit(NamedTuple):
    """One product found.

    Its score, the shown part of its payload, its vector if that was asked for, what of the score its words are and
    what is remembered, in nats, how surely the query names this very product, the ids of the variants that it is shown
    for, and the team of an interleaved list whose turn it was.
    """

    score: float
    payload: dict[str, Any]
    vector: list[float] | None = None
    words: float = 0.0
    memory: float = 0.0
    pin: float = 0.0
    variants: tuple[str, ...] = ()
    team: str | None = None


class Retrieval(Protocol):
    """What search asks of the vector store; raises MillraceError if it does not answer, Overloaded if it sheds load."""

    async def best(
        self, collection: str, question: Question, *, k: int, filters: Filters, with_vectors: bool = False
    ) -> list[Hit]:
        """Return all that was found and meets the filters, the k best at least: what the query names, then by score."""
        ...

    async def shown(
        self, collection: str, product_ids: Sequence[str], *, filters: Filters
    ) -> dict[str, dict[str, Any]]:
        """Return what results say of those of these products, by id, that are there and meet the filters."""
        ...

    async def browse(
        self, collection: str, sort: Sort, *, k: int, filters: Filters, without: Sequence[str] = ()
    ) -> list[Hit]:
        """Return the first k of all products that meet the filters; those without what sorts them come last.

        Products `without` are left out; of what comes behind them, only what a list is made of is told.
        """
        ...

    async def count(self, collection: str, filters: Filters) -> int:
        """Return how many products meet the filters."""
        ...

    async def facet(self, collection: str, field: str, *, most: int, filters: Filters) -> dict[str | int, int]:
        """Return how many of the products that meet the filters have each key of a field, the most frequent keys."""
        ...

    async def having(self, collection: str, field: str, keys: Sequence[str | int]) -> list[dict[str, Any]]:
        """Return what a product says that has a key, for each key of which there is one."""
        ...


class QdrantRetrieval:
    """Qdrant over REST, from one event loop.

    Args:
        client: of the configured vector store.
    """

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client

    async def best(
        self, collection: str, question: Question, *, k: int, filters: Filters, with_vectors: bool = False
    ) -> list[Hit]:
        """Return all that was found and meets the filters, the k best at least: what the query names, then by score."""

        async def asked(arms: Arms) -> dict[str, list[models.ScoredPoint]]:
            requests = _requests(question, arms, k=k, filters=filters, with_vectors=with_vectors)
            with qdrant_errors(f"search {collection}"):
                answers = await self._client.query_batch_points(collection, requests) if requests else []
            return dict(zip(arms, (answer.points for answer in answers), strict=True))

        arms = question.arms()
        found = await asked(arms)
        if not found.get("words") and "grams" not in arms and len(question.words.grams.indices):
            found = await asked(question.arms(mistyped=True))
        return mixed(question, found)

    async def shown(
        self, collection: str, product_ids: Sequence[str], *, filters: Filters
    ) -> dict[str, dict[str, Any]]:
        """Return what results say of those of these products, by id, that are there and meet the filters."""
        named = models.HasIdCondition(has_id=[point_id(one) for one in product_ids])
        meets = models.Filter(must=[to_live_filter(filters), named])
        with qdrant_errors(f"read {collection}"):
            records, _ = await self._client.scroll(collection, meets, limit=len(product_ids), with_payload=SHOWN)
        payloads = [record.payload or {} for record in records]
        return {payload["product_id"]: payload for payload in payloads}

    async def browse(
        self, collection: str, sort: Sort, *, k: int, filters: Filters, without: Sequence[str] = ()
    ) -> list[Hit]:
        """Return the first k of all products that meet the filters; those without what sorts them come last."""
        field, direction = ORDERS[sort]
        others: list[models.Condition] = []
        if without:
            others = [models.Filter(must_not=[models.HasIdCondition(has_id=[point_id(one) for one in without])])]
        told = LISTED if without else SHOWN
        lacking = models.IsEmptyCondition(is_empty=models.PayloadField(key=field))
        by_field = models.OrderByQuery(order_by=models.OrderBy(key=field, direction=direction))
        requests = [
            models.QueryRequest(query=by_field, filter=to_live_filter(filters, *others), limit=k, with_payload=told),
            models.QueryRequest(filter=to_live_filter(filters, lacking, *others), limit=k, with_payload=told),
        ]
        with qdrant_errors(f"browse {collection}"):
            answers = await self._client.query_batch_points(collection, requests)
        payloads = [dict(point.payload or {}) for answer in answers for point in answer.points]
        return [Hit(payload.get("quality", 0.0) / NATS_PER_COSINE, payload) for payload in payloads[:k]]

    async def facet(self, collection: str, field: str, *, most: int, filters: Filters) -> dict[str | int, int]:
        """Return how many of the products that meet the filters have each key of a field, the most frequent keys."""
        with qdrant_errors(f"count {field} of {collection}"):
            found = await self._client.facet(
                collection, f"{KEYS}.{field}", facet_filter=to_live_filter(filters), limit=most
            )
        return {hit.value: hit.count for hit in found.hits}

    async def having(self, collection: str, field: str, keys: Sequence[str | int]) -> list[dict[str, Any]]:
        """Return what a product says that has a key, for each key of which there is one."""
        requests = [
            models.QueryRequest(filter=models.Filter(must=[any_of(field, [key])]), limit=1, with_payload=SHOWN)
            for key in keys
        ]
        with qdrant_errors(f"look for {field} in {collection}"):
            answers = await self._client.query_batch_points(collection, requests) if requests else []
        return [dict(point.payload or {}) for answer in answers for point in answer.points]

    async def count(self, collection: str, filters: Filters) -> int:
        """Return how many products meet the filters."""
        with qdrant_errors(f"count {collection}"):
            return (await self._client.count(collection, to_live_filter(filters), exact=True)).count


def _requests(
    question: Question,
    arms: Arms,
    *,
    k: int,
    filters: Filters,
    with_vectors: bool,
) -> list[models.QueryRequest]:
    """One request an arm, each for its score of all that any arm finds; the first also tells what is shown.

    What the query's own shoppers chose is found too, whatever its score, if there is a vector to ask by.
    """
    meets, size = to_filter(filters), max(k, CANDIDATES) if len(arms) > 1 else k
    finding = [
        models.Prefetch(query=arm, using=name, filter=meets, limit=size, params=_params(name))
        for name, arm in arms.items()
    ]
    chosen = [point for point, nats in question.remembered.items() if nats > 0]
    if chosen and VECTOR_NAME in arms:
        its_own = models.Filter(must=[models.HasIdCondition(has_id=[*chosen]), *([meets] if meets else [])])
        finding.append(models.Prefetch(query=arms[VECTOR_NAME], using=VECTOR_NAME, filter=its_own, limit=len(chosen)))
    is_mixed = len(finding) > 1
    return [
        models.QueryRequest(
            prefetch=finding if is_mixed else None,
            query=arm,
            using=name,
            filter=None if is_mixed else meets,
            params=None if is_mixed else _params(name),
            limit=size * len(arms) + len(chosen),
            with_payload=SHOWN if is_first or VECTOR_NAME not in arms else False,
            with_vector=[VECTOR_NAME] if with_vectors and is_first else False,
        )
        for is_first, (name, arm) in zip((True, False, False), arms.items(), strict=False)
    ]


def _params(arm: str) -> models.SearchParams | None:
    return DENSE_PARAMS if arm == VECTOR_NAME else None


def mixed(question: Question, found: Mapping[str, Sequence[models.ScoredPoint]]) -> list[Hit]:
    """Rank what the arms found: the dot product, and beside it what words and memory add, in units of the dot product.

    Without a vector, quality is what there is beside words.

    Args:
        question: what was asked.
        found: by arm, its score of every product that any arm found; a product without one shares no term.
    """
    # A product that is written between two arms is known to one of them only: of its text nothing was asked.
    ranked = [found.get(VECTOR_NAME, ())] if question.vector is not None else reversed([*found.values()])
    points = {point.id: point for arm in ranked for point in arm}
    sparse = [{point.id: point.score for point in found.get(name, ())} for name in ("words", "grams")]
    matches = [sum(scores.get(number, 0.0) for scores in sparse) for number in points]
    named = set(sorted(range(len(matches)), key=lambda place: -matches[place])[:NAMED])
    pins = meant([
        _pin(question.words, point.payload or {}) if place in named and matches[place] else 0.0
        for place, point in enumerate(points.values())
    ])  # fmt: skip
    hits = []
    nats = question.mix.nats(question.words.kind, matches)
    for point, words, pin in zip(points.values(), nats, pins, strict=True):
        payload = dict(point.payload or {})
        quality = question.quality * payload.get("quality", 0.0) / NATS_PER_COSINE
        base = quality if question.vector is None else point.score
        memory = question.remembered.get(str(point.id), 0.0)
        hits.append(Hit(base + (words + memory) / NATS_PER_COSINE, payload, _vector_of(point), words, memory, pin))
    return sorted(hits, key=lambda hit: (-hit.pin, -hit.score))


def _pin(query: LexicalQuery, payload: dict[str, Any]) -> float:
    return query.pins(payload["product_id"], payload.get("title", ""), payload.get("attributes", {}))


def _vector_of(point: models.ScoredPoint) -> list[float] | None:
    vector = point.vector.get(VECTOR_NAME) if isinstance(point.vector, dict) else None
    return cast("list[float] | None", vector)


def result_of(position: int, hit: Hit, explanation: dict[str, float] | None = None) -> SearchResult:
    """What is answered of a hit."""
    payload = hit.payload
    return SearchResult(
        product_id=payload["product_id"],
        position=position,
        score=hit.score,
        title=payload.get("title", ""),
        price=payload.get("price"),
        currency=payload.get("currency"),
        brand=payload.get("brand"),
        category=tuple(payload.get("category", ())),
        in_stock=bool(payload.get("in_stock", 1)),
        url=payload.get("url"),
        image_url=payload.get("image_url"),
        rating=payload.get("rating"),
        launched_at=payload.get("launched_at"),
        seller_id=payload.get("seller_id"),
        parent_id=payload.get("parent_id"),
        attributes=payload.get("attributes", {}),
        product_release=payload["product_release"],
        explanation=explanation,
        variants=hit.variants,
        team=hit.team,
    )


def sorted_by(sort: Sort, hits: Sequence[Hit]) -> list[Hit]:
    """Sort hits by a field of what they say; those without it come last, and of equals the better one first."""
    field, direction = ORDERS[sort]
    sign = -1 if direction is models.Direction.DESC else 1
    known = [hit for hit in hits if hit.payload.get(field) is not None]
    unknown = [hit for hit in hits if hit.payload.get(field) is None]
    return sorted(known, key=lambda hit: sign * hit.payload[field]) + unknown


class Totals:
    """How many products meet filters: counted beside the searches, each number kept for some seconds.

    Many who ask for one number wait for one count. Few are counted at a time; whoever finds no room goes without.

    Args:
        count: asks the vector store.
        monotonic_s: clock that ends what is kept.
    """

    def __init__(
        self, count: Callable[[str, Filters], Awaitable[int]], *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._known: TTLCache[bytes, int] = TTLCache(CACHED_TOTALS, TOTAL_FOR_S, timer=monotonic_s)
        self._counting: dict[bytes, asyncio.Task[None]] = {}

    def known(self, collection: str, filters: Filters) -> int | None:
        """Return a number that is kept; begin to count if there is none."""
        key = _key(collection, filters)
        known = self._known.get(key)
        if known is None and key not in self._counting and len(self._counting) < COUNTS_AT_ONCE:
            task = self._counting[key] = asyncio.create_task(self._counted(key, collection, filters))
            task.add_done_callback(lambda _task: self._counting.pop(key))
        return known

    async def wait(self, collection: str, filters: Filters, *, timeout_s: float) -> int | None:
        """Return a number once it is counted; None if nobody counts, or not in time."""
        if counting := self._counting.get(_key(collection, filters)):
            await asyncio.wait({counting}, timeout=timeout_s)
        return self._known.get(_key(collection, filters))

    async def _counted(self, key: bytes, collection: str, filters: Filters) -> None:
        with suppress(MillraceError):  # whether the store answers is told by the search beside it
            self._known[key] = await self._count(collection, filters)


def _key(collection: str, filters: Filters) -> bytes:
    return digest(f"{collection} {filters.model_dump_json()}")

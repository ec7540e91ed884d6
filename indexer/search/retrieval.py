"""Asking the vector store: the nearest products that meet the filters, and how many there are."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
from cachetools import TTLCache
from qdrant_client import AsyncQdrantClient, models

from contracts.errors import MillraceError
from contracts.http import Filters
from indexer.qdrant import qdrant_errors
from indexer.search.encoding import digest
from indexer.store import VECTOR_NAME

TOTAL_FOR_S: Final = 10.0
"""How long a number of matching products is good enough."""
CACHED_TOTALS: Final = 10_000
COUNTS_AT_ONCE: Final = 1
"""A count takes the store longer than a search; no more of its time goes there."""
SHOWN: Final = [
    "product_id", "title", "price", "brand", "category", "in_stock", "parent_id", "product_release", "quality_width"
]  # fmt: skip
"""What a result says of its product, and what ranks it; the rest of the payload stays in the store."""


class Hit(NamedTuple):
    """One product found: its score, the shown part of its payload, and its vector if that was asked for."""

    score: float
    payload: dict[str, Any]
    vector: list[float] | None = None


class Retrieval(Protocol):
    """What search asks of the vector store; raises MillraceError if it does not answer, Overloaded if it sheds load."""

    async def nearest(
        self, collection: str, vector: np.ndarray, *, k: int, filters: Filters, with_vectors: bool = False
    ) -> list[Hit]:
        """Return the k nearest products that meet the filters, nearest first."""
        ...

    async def count(self, collection: str, filters: Filters) -> int:
        """Return how many products meet the filters."""
        ...


class QdrantRetrieval:
    """Qdrant over REST, from one event loop.

    Args:
        client: of the configured vector store.
    """

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client

    async def nearest(
        self, collection: str, vector: np.ndarray, *, k: int, filters: Filters, with_vectors: bool = False
    ) -> list[Hit]:
        """Return the k nearest products that meet the filters, nearest first."""
        with qdrant_errors(f"search {collection}"):
            answer = await self._client.query_points(
                collection,
                query=vector.tolist(),
                using=VECTOR_NAME,
                query_filter=to_filter(filters),
                limit=k,
                with_payload=SHOWN,
                with_vectors=with_vectors,
            )
        return [Hit(point.score, dict(point.payload or {}), _vector_of(point)) for point in answer.points]

    async def count(self, collection: str, filters: Filters) -> int:
        """Return how many products meet the filters."""
        with qdrant_errors(f"count {collection}"):
            return (await self._client.count(collection, to_live_filter(filters), exact=True)).count


def _vector_of(point: models.ScoredPoint) -> list[float] | None:
    vector = point.vector.get(VECTOR_NAME) if isinstance(point.vector, dict) else None
    return cast("list[float] | None", vector)


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


def to_filter(filters: Filters) -> models.Filter | None:
    """Return the conditions as Qdrant has them, None where there are none."""
    must = _conditions(filters)
    return models.Filter(must=must) if must else None


def to_live_filter(filters: Filters) -> models.Filter:
    """Return the conditions for a count, where deleted products must be left out by name: they have no vector."""
    deleted = models.FieldCondition(key="deleted", match=models.MatchValue(value=1))
    return models.Filter(must=_conditions(filters) or None, must_not=[deleted])


def _conditions(filters: Filters) -> list[models.Condition]:
    must: list[models.Condition] = []
    if filters.brand:
        must.append(models.FieldCondition(key="brand", match=models.MatchAny(any=list(filters.brand))))
    if filters.price is not None and (filters.price.gte is not None or filters.price.lte is not None):
        bounds = models.Range(gte=filters.price.gte, lte=filters.price.lte)
        must.append(models.FieldCondition(key="price", range=bounds))
    equal = {"category": filters.category, "locale": filters.locale}
    if filters.in_stock is not None:
        must.append(models.FieldCondition(key="in_stock", match=models.MatchValue(value=int(filters.in_stock))))
    must += [
        models.FieldCondition(key=name, match=models.MatchValue(value=value))
        for name, value in equal.items()
        if value is not None
    ]
    return must

"""Asking the vector store: the nearest products that meet the filters, and how many there are."""

import time
from collections import OrderedDict
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from contracts.http import Filters
from indexer.adapters.qdrant import VECTOR_NAME
from indexer.adapters.qdrant_errors import qdrant_errors
from service.settings import Settings

TOTAL_FOR_S: Final = 5.0
"""How long a number of matching products is good enough."""
KEPT_TOTALS: Final = 1000
EXACT_UP_TO: Final = 10_000
"""Up to how many products are counted; a server's estimate is far off where one filter says much about another."""
SHOWN: Final = ["product_id", "title", "price", "brand", "category", "in_stock", "parent_id", "product_release"]
"""What a result says of its product; the rest of the payload stays in the store."""


class Hit(NamedTuple):
    """One product found: its cosine and the shown part of its payload."""

    score: float
    payload: dict[str, Any]


class Retrieval(Protocol):
    """What search asks of the vector store; raises MillraceError where it does not answer."""

    async def nearest(self, collection: str, vector: np.ndarray, *, k: int, filters: Filters) -> list[Hit]:
        """Return the k nearest products that meet the filters, nearest first."""
        ...

    async def total(self, collection: str, filters: Filters) -> int:
        """Return about how many products meet the filters."""
        ...


class QdrantRetrieval:
    """Qdrant over REST, from one event loop.

    Args:
        client: of the configured vector store.
    """

    def __init__(self, client: AsyncQdrantClient) -> None:
        self._client = client
        self._totals: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    async def nearest(self, collection: str, vector: np.ndarray, *, k: int, filters: Filters) -> list[Hit]:
        """Return the k nearest products that meet the filters, nearest first."""
        with qdrant_errors(f"search {collection}"):
            answer = await self._client.query_points(
                collection,
                query=vector.tolist(),
                using=VECTOR_NAME,
                query_filter=to_filter(filters),
                limit=k,
                with_payload=SHOWN,
            )
        return [Hit(point.score, dict(point.payload or {})) for point in answer.points]

    async def total(self, collection: str, filters: Filters) -> int:
        """Return how many products meet the filters, about how many where they are many; kept for a few seconds."""
        key, now = (collection, filters.model_dump_json()), time.monotonic()
        known = self._totals.get(key)
        if known is not None and now - known[0] < TOTAL_FOR_S:
            return known[1]
        with qdrant_errors(f"count {collection}"):
            count = await self._count(collection, to_live_filter(filters))
        self._totals[key] = (now, count)
        self._totals.move_to_end(key)
        while len(self._totals) > KEPT_TOTALS:
            self._totals.popitem(last=False)
        return count

    async def _count(self, collection: str, chosen: models.Filter) -> int:
        """Return how many products there are, estimated where counting them would take long."""
        estimate = (await self._client.count(collection, chosen, exact=False)).count
        if estimate > EXACT_UP_TO:
            return estimate
        return (await self._client.count(collection, chosen, exact=True)).count


def async_connect(settings: Settings, *, timeout_s: int) -> AsyncQdrantClient:
    """Return an asyncio client of the configured vector store; nothing is asked of it yet.

    Raises:
        UsageError: no vector store is named.
    """
    (url,) = settings.require("qdrant_url")
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    headers = {"api-key": key} if key else None
    return AsyncQdrantClient(url=url, headers=headers, timeout=timeout_s, check_compatibility=False)


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

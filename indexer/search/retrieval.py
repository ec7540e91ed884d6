"""Asks the vector store for the nearest products that meet the filters."""

import time
from dataclasses import dataclass
from typing import Any, Final

from qdrant_client import AsyncQdrantClient, models

from contracts.search import Filters
from indexer.adapters.qdrant_errors import qdrant_errors
from service.settings import Settings

VECTOR: Final = "product"
PAYLOAD: Final = ["product_id", "title", "price", "brand", "category", "in_stock", "parent_id", "product_release"]
TOTAL_KEPT_S: Final = 5.0
_TOMBSTONE: Final = models.FieldCondition(key="deleted", match=models.MatchValue(value=1))


@dataclass(frozen=True, slots=True)
class Hit:
    """One product that the vector store returned."""

    score: float
    payload: dict[str, Any]


class Retrieval:
    """The vector store as search sees it.

    Args:
        client: of the vector store.
        deadline_s: longest wait for one answer.
    """

    def __init__(self, client: AsyncQdrantClient, *, deadline_s: float) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._totals: dict[tuple[str, str], tuple[float, int]] = {}

    async def nearest(self, collection: str, vector: list[float], filters: Filters, *, k: int) -> list[Hit]:
        """Return the k nearest live products.

        Raises:
            TransientError: the store does not answer in time.
            InvariantError: it refuses the question.
        """
        with qdrant_errors(f"search {collection}"):
            answer = await self._client.query_points(
                collection,
                query=vector,
                using=VECTOR,
                query_filter=to_filter(filters),
                limit=k,
                with_payload=models.PayloadSelectorInclude(include=PAYLOAD),
                timeout=max(1, round(self._deadline_s)),
            )
        return [Hit(point.score, point.payload or {}) for point in answer.points]

    async def total(self, collection: str, filters: Filters) -> int:
        """Return how many live products meet the filters; an answer is kept for a few seconds."""
        key, now = (collection, filters.model_dump_json()), time.monotonic()
        if key in self._totals and now - self._totals[key][0] < TOTAL_KEPT_S:
            return self._totals[key][1]
        wanted = to_filter(filters)
        counted = models.Filter(must=wanted.must if wanted else None, must_not=[_TOMBSTONE])
        with qdrant_errors(f"count {collection}"):
            count = (await self._client.count(collection, count_filter=counted, exact=False)).count
        self._totals = {kept: value for kept, value in self._totals.items() if now - value[0] < TOTAL_KEPT_S}
        self._totals[key] = (now, count)
        return count

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def connect(settings: Settings, *, deadline_s: float) -> Retrieval:
    """Return retrieval on the configured vector store.

    Raises:
        UsageError: none is named.
    """
    (url,) = settings.require("qdrant_url")
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    # As a header, because the argument warns on every plain-HTTP connection, loopback included.
    headers = {"api-key": key} if key else None
    timeout = max(1, round(deadline_s))
    client = AsyncQdrantClient(url=url, headers=headers, timeout=timeout, check_compatibility=False)
    return Retrieval(client, deadline_s=deadline_s)


def to_filter(filters: Filters) -> models.Filter | None:
    """Return the filters of a request as Qdrant's; None where there is none.

    >>> to_filter(Filters(in_stock=True)).must[0].match.value
    1
    """
    must: list[models.Condition] = []
    if filters.brand is not None:
        must.append(models.FieldCondition(key="brand", match=models.MatchAny(any=list(filters.brand))))
    if filters.price is not None:
        bounds = models.Range(gte=filters.price.gte, lte=filters.price.lte)
        must.append(models.FieldCondition(key="price", range=bounds))
    for key, value in (("category", filters.category), ("locale", filters.locale)):
        if value is not None:
            must.append(models.FieldCondition(key=key, match=models.MatchValue(value=value)))
    if filters.in_stock is not None:
        must.append(models.FieldCondition(key="in_stock", match=models.MatchValue(value=int(filters.in_stock))))
    return models.Filter(must=must) if must else None

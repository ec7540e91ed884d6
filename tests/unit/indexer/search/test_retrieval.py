"""Filters as Qdrant has them, tried on its in-memory client, and totals that are kept for a while."""

from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, models

from contracts.catalog import point_id
from contracts.errors import InvariantError
from contracts.http import Filters
from indexer.search.retrieval import EXACT_UP_TO, QdrantRetrieval, to_filter, to_live_filter

PAYLOADS = {
    "P-1": {"brand": "Kelto", "price": 10.0, "category": ["Appliances", "Fridges"], "in_stock": 1, "locale": "en"},
    "P-2": {"brand": "Arvo", "price": 20.0, "category": ["Appliances", "Ovens"], "in_stock": 0, "locale": "de"},
    "P-3": {"price": 30.0, "category": [], "in_stock": 1},
}


@pytest.fixture
async def client() -> AsyncQdrantClient:
    """A store of three products and a tombstone."""
    store = AsyncQdrantClient(":memory:")
    params = models.VectorParams(size=2, distance=models.Distance.COSINE)
    await store.create_collection("shop", vectors_config={"product": params})
    points = [
        models.PointStruct(
            id=point_id(name), vector={"product": [1.0, 0.1 * number]}, payload={**payload, "product_id": name}
        )
        for number, (name, payload) in enumerate(PAYLOADS.items())
    ]
    gone = models.PointStruct(id=point_id("P-4"), vector={}, payload={"product_id": "P-4", "deleted": 1})
    await store.upsert("shop", points=[*points, gone])
    return store


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {"P-1", "P-2", "P-3"}),
        ({"brand": ["Kelto"]}, {"P-1"}),
        ({"brand": ["Kelto", "Arvo"]}, {"P-1", "P-2"}),
        ({"brand": []}, {"P-1", "P-2", "P-3"}),
        ({"price": {"lte": 20}}, {"P-1", "P-2"}),
        ({"price": {"gte": 20, "lte": 20}}, {"P-2"}),
        ({"price": {}}, {"P-1", "P-2", "P-3"}),
        ({"category": "Appliances"}, {"P-1", "P-2"}),
        ({"category": "Ovens", "in_stock": False}, {"P-2"}),
        ({"in_stock": True}, {"P-1", "P-3"}),
        ({"locale": "de"}, {"P-2"}),
        ({"locale": "de", "brand": ["Kelto"]}, set()),
    ],
)
async def test_every_result_meets_every_filter_and_the_total_counts_them(
    client: AsyncQdrantClient, filters: dict[str, object], expected: set[str]
) -> None:
    """The same conditions choose and count; tombstones are in neither."""
    retrieval, asked = QdrantRetrieval(client), Filters.model_validate(filters)
    hits = await retrieval.nearest("shop", np.array([1.0, 0.0]), k=10, filters=asked)
    assert {hit.payload["product_id"] for hit in hits} == expected
    assert await retrieval.total("shop", asked) == len(expected)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def test_a_total_is_asked_once_in_a_while(client: AsyncQdrantClient) -> None:
    """A few seconds old is good enough; other filters are counted for themselves."""
    retrieval = QdrantRetrieval(client)
    assert await retrieval.total("shop", Filters()) == 3
    await client.delete("shop", points_selector=[point_id("P-1")])
    assert await retrieval.total("shop", Filters()) == 3
    assert await retrieval.total("shop", Filters(in_stock=True)) == 1


async def test_few_are_counted_and_many_estimated(client: AsyncQdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate only says whether counting is worth its time; where it is, the count is the total."""
    counted, estimates = client.count, iter((84, EXACT_UP_TO + 1))

    async def count(name: str, chosen: models.Filter, *, exact: bool) -> models.CountResult:
        """Count as asked, or estimate what comes next."""
        return await counted(name, chosen) if exact else models.CountResult(count=next(estimates))

    monkeypatch.setattr(client, "count", count)
    assert await QdrantRetrieval(client).total("shop", Filters(locale="de", brand=("Kelto",))) == 0
    assert await QdrantRetrieval(client).total("shop", Filters()) == EXACT_UP_TO + 1


async def test_a_collection_that_is_gone_is_our_error(client: AsyncQdrantClient) -> None:
    """It is translated, so that search can answer what it remembers."""
    with pytest.raises(InvariantError):
        await QdrantRetrieval(client).nearest("other", np.array([1.0, 0.0]), k=1, filters=Filters())


def conditions(found: models.Filter | None) -> Iterator[str]:
    """Yield the fields that a filter asks for."""
    for condition in (found.must if found and isinstance(found.must, list) else None) or []:
        assert isinstance(condition, models.FieldCondition)
        yield condition.key


def test_no_filter_is_no_filter() -> None:
    """A search without conditions asks for none; its count leaves tombstones out by name."""
    assert to_filter(Filters()) is None
    assert list(conditions(to_filter(Filters(in_stock=False, locale="en")))) == ["in_stock", "locale"]
    counted = to_live_filter(Filters())
    assert counted.must is None
    assert counted.must_not is not None

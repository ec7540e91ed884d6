"""Filters as Qdrant has them, tried on its in-memory client, and totals that are kept for a while."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, models

from contracts.catalog import point_id
from contracts.errors import InvariantError, TransientError
from contracts.http import Filters
from indexer.search.retrieval import QdrantRetrieval, Totals, to_filter, to_live_filter
from tests.support.hand_clock import HandClock, settle

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
    assert await retrieval.count("shop", asked) == len(expected)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


class Counter:
    """Counts, once allowed, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Filters] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def __call__(self, _collection: str, filters: Filters) -> int:
        """Return how many counts there were."""
        self.asked.append(filters)
        await self.gate.wait()
        if self.fails:
            raise TransientError("Qdrant cannot be reached")
        return len(self.asked)


async def total(totals: Totals, filters: Filters, *, timeout_s: float = 5.0) -> int | None:
    """Return a total as a search gets it."""
    known = totals.known("shop", filters)
    return known if known is not None else await totals.wait("shop", filters, timeout_s=timeout_s)


async def test_a_total_is_asked_once_in_a_while() -> None:
    """A few seconds old is good enough, older is not; other filters are counted for themselves."""
    count, clock = Counter(), HandClock()
    totals = Totals(count, monotonic_s=clock)
    assert [await total(totals, Filters()) for _ in range(3)] == [1, 1, 1]
    assert await total(totals, Filters(in_stock=True)) == 2
    clock.now_s += 9.9
    assert await total(totals, Filters()) == 1
    clock.now_s += 0.2
    assert await total(totals, Filters()) == 3


async def test_many_who_ask_for_one_total_wait_for_one_count() -> None:
    """And while it runs, another total is not counted: the store's time is for searches."""
    count = Counter()
    totals = Totals(count)
    count.gate.clear()
    waiting = [asyncio.create_task(total(totals, Filters())) for _ in range(5)]
    await settle()
    assert await total(totals, Filters(in_stock=True)) is None
    count.gate.set()
    assert await asyncio.gather(*waiting) == [1] * 5
    assert count.asked == [Filters()]


async def test_a_count_that_is_late_is_there_for_the_next() -> None:
    """Whoever does not wait goes without; the count goes on."""
    count = Counter()
    totals = Totals(count)
    count.gate.clear()
    assert await total(totals, Filters(), timeout_s=0) is None
    count.gate.set()
    await settle()
    assert totals.known("shop", Filters()) == 1


async def test_a_count_that_fails_is_tried_again() -> None:
    """It is neither kept nor an error of the search."""
    count = Counter()
    totals = Totals(count)
    count.fails = True
    assert await total(totals, Filters()) is None
    count.fails = False
    assert await total(totals, Filters()) == 2


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

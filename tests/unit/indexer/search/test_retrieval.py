"""Filters as Qdrant has them, tried on its in-memory client, and totals that are kept for a while."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.models import QueryResponse

from contracts.catalog import PointPayload, point_id
from contracts.errors import InvariantError, TransientError
from contracts.http import Filters
from indexer.filters import KEYS, stored_keys, to_filter, to_live_filter
from indexer.qdrant import WORDS, to_sparse
from indexer.search import retrieval
from indexer.search.retrieval import CANDIDATES, Hit, QdrantRetrieval, Question, Totals
from tests.support.hand_clock import HandClock, settle
from tests.support.search_fakes import question_of
from towers.lexical import product_words, read_query
from towers.model import Mix, Rate

PAYLOADS: dict[str, dict[str, Any]] = {
    "P-1": {
        "title": "Kelto KG-36 fridge",
        "quality": 1.0,
        "brand": "Kelto",
        "price": 10.0,
        "category": ["Appliances", "Fridges"],
        "in_stock": 1,
        "locale": "en",
    },
    "P-2": {
        "title": "Arvo oven, fits KG-36 doors",
        "brand": "Arvo",
        "price": 20.0,
        "category": ["Appliances", "Ovens"],
        "in_stock": 0,
        "locale": "de",
    },
    "P-3": {"title": "toaster", "attributes": {"model": "T-900"}, "price": 30.0, "category": [], "in_stock": 1},
}


def words_of(product_id: str, payload: dict[str, Any]) -> dict[str, models.SparseVector]:
    """Return the sparse vectors of a product."""
    made = product_words(product_id, PointPayload.model_validate(payload))
    return {name: to_sparse(one) for name, one in zip(WORDS, made, strict=True)}


MEANING = np.array([1.0, 0.0])
UNREAD = read_query("?!")
LONG = Mix(long=Rate(3.0))


@pytest.fixture
async def client() -> AsyncQdrantClient:
    """A store of three products and a tombstone."""
    store = AsyncQdrantClient(":memory:")
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    sparse = dict.fromkeys(("words", "grams"), models.SparseVectorParams(modifier=models.Modifier.IDF))
    await store.create_collection("shop", {"product": params}, sparse)
    points = [
        models.PointStruct(
            id=point_id(name),
            vector={"product": [1.0, 0.1 * number], **words_of(name, payload)},
            payload={
                **payload,
                "product_id": name,
                "deleted": 0,
                KEYS: stored_keys(PointPayload.model_validate(payload)),
            },
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
    store, asked = QdrantRetrieval(client), Filters.model_validate(filters)
    hits = await store.best("shop", Question(MEANING, UNREAD), k=10, filters=asked)
    assert {hit.payload["product_id"] for hit in hits} == expected
    assert await store.count("shop", asked) == len(expected)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def ask(client: AsyncQdrantClient, query: str, vector: np.ndarray | None = MEANING, **fields: Any) -> list[Hit]:
    """Return what a query finds in the shop."""
    filters = Filters.model_validate(fields.pop("filters", {}))
    question = question_of(query, vector, mix=fields.pop("mix", Mix()))
    return await QdrantRetrieval(client).best("shop", question, k=fields.pop("k", 10), filters=filters, **fields)


def ids(hits: list[Hit]) -> list[str]:
    """Return the products, best first."""
    return [hit.payload["product_id"] for hit in hits]


async def test_words_add_their_nats_to_the_dot_product(client: AsyncQdrantClient) -> None:
    """The best match adds what the mix says, others their share, products without a match nothing."""
    hits = {hit.payload["product_id"]: hit for hit in await ask(client, "oven doors", mix=Mix(short=Rate(2.0)))}
    assert hits["P-2"].words == pytest.approx(2.0)
    assert {name: hit.score for name, hit in hits.items()} == pytest.approx({"P-1": 1.0, "P-2": 1.2, "P-3": 1.0})
    partly = {hit.payload["product_id"]: hit.words for hit in await ask(client, "oven kelto fridge", mix=LONG)}
    assert 0.0 < partly["P-2"] < partly["P-1"] == pytest.approx(3.0)
    assert partly["P-3"] == 0.0


def test_a_product_that_is_written_between_two_arms_is_left_out() -> None:
    """Only one of them knows it, and nothing of what is shown was asked of that one."""
    known = models.ScoredPoint(id=1, version=0, score=0.5, payload={"product_id": "P-1"})
    late = models.ScoredPoint(id=2, version=0, score=9.0)
    words = known.model_copy(update={"score": 2.0, "payload": None})
    found = retrieval.mixed(question_of("quiet oven", MEANING), {"product": [known], "words": [late, words]})
    assert ids(found) == ["P-1"]


async def test_products_of_a_page_are_read_anew(client: AsyncQdrantClient) -> None:
    """By id, without those that are deleted, unknown, or meet the filters no more."""
    asked, kelto = ["P-4", "P-2", "P-9", "P-1"], Filters(brand=("Kelto",))
    shown = await QdrantRetrieval(client).shown("shop", asked, filters=Filters())
    assert {product_id: payload["price"] for product_id, payload in shown.items()} == {"P-1": 10.0, "P-2": 20.0}
    assert list(await QdrantRetrieval(client).shown("shop", asked, filters=kelto)) == ["P-1"]


async def test_what_only_words_find_has_its_dot_product_too(
    client: AsyncQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score of the union is exact, whichever arm found a product; a filter binds both arms."""
    monkeypatch.setattr(retrieval, "CANDIDATES", 1)
    upwards = np.array([0.0, 1.0])
    assert ids(await ask(client, "kelto fridge", upwards, mix=Mix(short=Rate(1.0)), k=1))[0] == "P-3"
    both = await ask(client, "kelto fridge", upwards, mix=Mix(short=Rate(5.0)), k=1)
    assert ids(both)[0] == "P-1"
    assert both[0].score == pytest.approx(0.5)
    assert ids(await ask(client, "kelto fridge", upwards, filters={"brand": ["Arvo"]}, k=1)) == ["P-2"]


async def test_what_a_query_names_goes_first(client: AsyncQdrantClient) -> None:
    """A model number, whole or in the title, and a product id, however little they weigh."""
    light = Mix(Rate(0.0), Rate(0.0), Rate(0.0))
    assert ids(await ask(client, "t900", np.array([1.0, -1.0]), mix=light))[0] == "P-3"
    assert ids(await ask(client, "p2", mix=light))[0] == "P-2"
    assert [hit.pin for hit in await ask(client, "kelto kg-36", mix=Mix(identifier=Rate(0.1)))][:2] == [0.5, 0.5]
    assert ids(await ask(client, "fridge", np.array([0.0, 1.0]), mix=light)) == ["P-3", "P-2", "P-1"]


async def test_what_many_products_are_called_names_none(client: AsyncQdrantClient) -> None:
    """A plug that four titles name is a kind of thing: of `kelto rj-45` the best match goes first, and none before."""
    for number in range(4):
        payload = {"title": f"Cable RJ-45 to M-{number}", "category": [], "in_stock": 1, "deleted": 0}
        vectors: dict[str, Any] = {"product": [0.0, 1.0], **words_of(f"C-{number}", payload)}
        point = models.PointStruct(
            id=point_id(f"C-{number}"), vector=vectors, payload={"product_id": f"C-{number}", **payload}
        )
        await client.upsert("shop", [point])
        pins = [hit.pin for hit in await ask(client, "rj-45", mix=Mix(identifier=Rate(0.1)))]
        assert sum(pin > 0 for pin in pins) == (number + 1 if number < 3 else 0)


async def test_an_unfinished_or_mistyped_word_is_found(client: AsyncQdrantClient) -> None:
    """Of an identifier at once; of another word if no word of the query is known."""
    assert ids(await ask(client, "t-90", None)) == ["P-3"]
    assert ids(await ask(client, "toastre", None)) == ["P-3"]
    assert (await ask(client, "toastre"))[0].payload["product_id"] == "P-3"
    assert await ask(client, "lawnmower", None) == []


async def test_words_and_quality_decide_without_a_vector(client: AsyncQdrantClient) -> None:
    """And nothing is found that shares no word."""
    assert await ask(client, "?!", None) == []
    hits = await ask(client, "fridge doors", None)
    assert set(ids(hits)) == {"P-1", "P-2"}
    quality = {"P-1": 1.0, "P-2": 0.0}
    for hit in hits:
        assert hit.score == pytest.approx((quality[hit.payload["product_id"]] + hit.words) / 10)
    assert hits[0].score > hits[1].score


class Asked:
    """A client that keeps its requests and finds nothing."""

    def __init__(self) -> None:
        self.requests: list[list[models.QueryRequest]] = []

    async def query_batch_points(self, _collection: str, requests: list[models.QueryRequest]) -> list[QueryResponse]:
        """Keep a batch."""
        self.requests.append(requests)
        return [QueryResponse(points=[]) for _ in requests]


@pytest.mark.parametrize(
    ("query", "arms"),
    [
        ("?!", [["product"]]),
        ("quiet", [["product", "words"], ["product", "words", "grams"]]),
        ("a b", [["product", "words"]]),
        ("kg-36", [["product", "words", "grams"]]),
    ],
)
async def test_only_the_arms_that_a_query_has_are_asked(query: str, arms: list[list[str]]) -> None:
    """In one round trip, but for a query none of whose words is known; without words it is the dense search alone."""
    client = Asked()
    question = question_of(query, MEANING)
    await QdrantRetrieval(client).best("shop", question, k=7, filters=Filters(in_stock=True))  # type: ignore[arg-type]
    assert [[one.using for one in batch] for batch in client.requests] == arms
    for batch in client.requests:
        assert [bool(one.with_payload) for one in batch] == [True] + [False] * (len(batch) - 1)
        for one in batch:
            found = one.prefetch if isinstance(one.prefetch, list) else [one]
            assert [part.using for part in found] == [part.using for part in batch]
            assert all(part.filter is not None for part in found)
    assert client.requests[0][0].limit == (7 if len(arms[0]) == 1 else CANDIDATES * len(arms[0]))


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
        await QdrantRetrieval(client).best("other", Question(MEANING, UNREAD), k=1, filters=Filters())


def conditions(found: models.Filter | None) -> Iterator[str]:
    """Yield the fields that a filter asks for."""
    for condition in (found.must if found and isinstance(found.must, list) else None) or []:
        assert isinstance(condition, models.FieldCondition)
        yield condition.key


def test_no_filter_is_no_filter() -> None:
    """A search without conditions asks for none; its count leaves tombstones out by name."""
    assert to_filter(Filters()) is None
    assert list(conditions(to_filter(Filters(in_stock=False, locale="en")))) == ["in_stock", "keys.locale"]
    counted = to_live_filter(Filters())
    assert counted.must is None
    assert counted.must_not is not None

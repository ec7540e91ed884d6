"""Filters, facets and order over what the indexer writes: what search asks of every vector store alike."""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient

from contracts.catalog import PointPayload, point_id
from contracts.http import Filters, PriceRange, Sort
from indexer.filters import KEYS, stored_keys
from indexer.points import ProductPoint
from indexer.search.facets import Facets
from indexer.search.retrieval import QdrantRetrieval, Question
from indexer.store import ProductStore
from tests.conformance.conftest import DIM, Backend
from tests.support.search_fakes import question_of
from towers.lexical import product_words

pytestmark = pytest.mark.qdrant

T0 = 1_795_000_000_000
PRODUCTS: dict[str, dict[str, Any]] = {
    "fridge": {
        "title": "Quiet fridge",
        "brand": "Électra",
        "category": ("Kitchen", "Fridges"),
        "seller_id": "S-1",
        "attributes": {"Colour": "Café crème", "capacity_l": 190, "frost free": True},
        "price": 499.0,
        "launched_at": T0,
        "rating": 4.5,
        "locale": "en-IN",
    },
    "cooler": {
        "title": "Wine cooler",
        "brand": "ELECTRA",
        "category": ("Kitchen", "Fridges", "Wine"),
        "seller_id": "S-2",
        "attributes": {"colour": "black", "capacity_l": 60.5, "frost free": False},
        "price": 299.0,
        "launched_at": T0 + 5,
        "locale": "de-DE",
    },
    "magnet": {
        "title": "Fridge magnet",
        "brand": "ＫＥＬＴＯ",
        "category": ("Decoration", "fridges"),
        "attributes": {"colour": "BLACK", "model": "12.50"},
        "price": 2.5,
        "in_stock": 0,
        "rating": 3.0,
    },
    "poster": {"title": "Poster", "brand": "Kelto", "category": ("Decoration",), "attributes": {"width": -1.5}},
}
QUALITY = {"fridge": 0.1, "cooler": 0.4, "magnet": -0.2, "poster": 0.3}
MEANING = np.array([1.0] + [0.0] * (DIM - 1))


class Awaited:
    """The plain client with the calls of an asyncio one: nobody but its maker reaches a store in memory."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Give a call of the client, to be awaited."""

        async def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._client, name)(*args, **kwargs)

        return call


Shop = tuple[QdrantRetrieval, str]
"""Search, and the collection that it asks; tests only read it."""


@pytest.fixture(scope="module")
def shop(backend: Backend) -> Iterator[Shop]:
    """The products and a deleted one, as the indexer writes them."""
    store, name = ProductStore(backend.client), f"conformance-{uuid.uuid4().hex[:12]}"
    store.ensure_collection(name, DIM)
    points = []
    for number, (product_id, said) in enumerate(PRODUCTS.items()):
        payload = PointPayload(**said)
        stored = {**payload.model_dump(mode="json", exclude_none=True), KEYS: stored_keys(payload)}
        vector = [1.0 - 0.02 * number, *[0.0] * (DIM - 1)]
        stored["quality"] = QUALITY[product_id]
        points.append(ProductPoint(product_id, 1, 1, vector, stored, product_words(product_id, payload)))
    store.write(name, [*points, ProductPoint("gone", 1, 1, None)])
    yield QdrantRetrieval(cast("AsyncQdrantClient", Awaited(backend.client))), name
    store.drop(name)


async def found(shop: Shop, **filters: Any) -> set[str]:
    """Return what meets filters, by which every way to ask agrees."""
    retrieval, collection = shop
    asked = Filters.model_validate(filters)
    hits = await retrieval.best(collection, question_of("?!", MEANING), k=10, filters=asked)
    browsed = await retrieval.browse(collection, "relevance", k=10, filters=asked)
    names = {hit.payload["product_id"] for hit in hits}
    assert {hit.payload["product_id"] for hit in browsed} == names
    assert await retrieval.count(collection, asked) == len(names)
    return names


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "fridge cooler magnet poster"),
        ({"brand": ["electra"]}, "fridge cooler"),
        ({"brand": ["ÉLECTRA"]}, "fridge cooler"),
        ({"brand": ["e\u0301lectra "]}, "fridge cooler"),
        ({"brand": ["ｅｌｅｃｔｒａ"]}, "fridge cooler"),
        ({"brand": ["Kelto"]}, "magnet poster"),
        ({"brand": ["kelto", "electra"]}, "fridge cooler magnet poster"),
        ({"brand": ["elec"]}, ""),
        ({"seller": ["S-1", "S-3"]}, "fridge"),
        ({"category": "FRIDGES"}, "fridge cooler magnet"),
        ({"category": "Kitchen"}, "fridge cooler"),
        ({"category": ["kitchen"]}, "fridge cooler"),
        ({"category": ["Kitchen", "Fridges"]}, "fridge cooler"),
        ({"category": ["Kitchen", "Fridges", "Wine"]}, "cooler"),
        ({"category": ["Fridges"]}, ""),
        ({"category": ["Decoration", "Fridges"]}, "magnet"),
        ({"attributes": {"COLOUR": ["black"]}}, "cooler magnet"),
        ({"attributes": {"colour": ["cafe creme", "white"]}}, "fridge"),
        ({"attributes": {"frost free": [True]}}, "fridge"),
        ({"attributes": {"frost free": ["false"]}}, "cooler"),
        ({"attributes": {"capacity_l": [190.0]}}, "fridge"),
        ({"attributes": {"capacity_l": ["60.5"]}}, "cooler"),
        ({"attributes": {"capacity_l": ["190.0", "6.05E1", "1_90"]}}, "fridge cooler"),
        ({"attributes": {"capacity_l": ["190 l", "１９０"]}}, "fridge"),
        ({"attributes": {"Capacity_L": {"gte": 60.5, "lte": 190}}}, "fridge cooler"),
        ({"attributes": {"capacity_l": {"lte": 60.4}}}, ""),
        ({"attributes": {"capacity_l": {"gte": 60.6}}}, "fridge"),
        ({"attributes": {"width": {"gte": -2, "lte": -1}}}, "poster"),
        ({"attributes": {"width": {}}}, "poster"),
        ({"attributes": {"colour": ["black"], "model": ["12.50"]}}, "magnet"),
        ({"attributes": {"colour": []}}, "fridge cooler magnet poster"),
        ({"price": {"gte": 2.5, "lte": 299}}, "cooler magnet"),
        ({"price": {"lt": 299}}, "magnet"),
        ({"in_stock": True}, "fridge cooler poster"),
        ({"locale": "EN-in"}, "fridge"),
        ({"launched_at": {"gte": T0 + 1}}, "cooler"),
        ({"launched_at": {"lte": T0 + 4}}, "fridge"),
        ({"category": "fridges", "brand": ["electra"], "price": {"gte": 300}}, "fridge"),
    ],
)
async def test_every_way_to_ask_meets_the_filters(shop: Shop, filters: dict[str, Any], expected: str) -> None:
    """Texts without case, accents and width; paths level by level; tombstones never."""
    assert await found(shop, **filters) == set(expected.split())


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("relevance", "cooler poster fridge magnet"),
        ("price", "magnet cooler fridge poster"),
        ("-price", "fridge cooler magnet poster"),
        ("newest", "cooler fridge"),
        ("rating", "fridge magnet"),
    ],
)
async def test_all_products_are_browsed_in_order(shop: Shop, sort: Sort, expected: str) -> None:
    """By quality, price, age or rating; what says nothing of it comes last and is not lost."""
    retrieval, collection = shop
    hits = await retrieval.browse(collection, sort, k=10, filters=Filters())
    names = [hit.payload["product_id"] for hit in hits]
    known = expected.split()
    assert names[: len(known)] == known
    assert sorted(names) == sorted(PRODUCTS)
    first = await retrieval.browse(collection, sort, k=1, filters=Filters())
    assert [hit.payload["product_id"] for hit in first] == known[:1]
    further = await retrieval.browse(collection, sort, k=10, filters=Filters(), without=names[:2])
    assert [hit.payload["product_id"] for hit in further] == names[2:]


def pairs(values: Iterable[Any]) -> list[tuple[Any, int]]:
    """Return the values of a facet with their counts."""
    return [(one.value, one.count) for one in values]


NAMES = ("brand", "category", "seller", "attributes.colour", "attributes.capacity_l", "attributes.none", "price")


async def counted_by(shop: Shop, question: Question | None, filters: Filters) -> dict[str, Any]:
    """Return all facets of what a question finds."""
    retrieval, collection = shop
    return {**await Facets(retrieval).counted(collection, question, NAMES, filters)}


async def test_all_products_are_counted_by_facet(shop: Shop) -> None:
    """As the shop writes them, the most frequent first; a price has a range that holds it."""
    counted = await counted_by(shop, None, Filters())
    assert [(value.lower(), count) for value, count in pairs(counted["attributes.colour"])] == [
        ("black", 2),
        ("café crème", 1),
    ]
    assert [count for _, count in pairs(counted["brand"])] == [2, 2]
    assert {value for value, _ in pairs(counted["brand"])} <= {"Électra", "ELECTRA", "ＫＥＬＴＯ", "Kelto"}
    assert pairs(counted["category"]) == [
        (("Decoration",), 2),
        (("Kitchen",), 2),
        (("Kitchen", "Fridges"), 2),
        (("Decoration", "fridges"), 1),
        (("Kitchen", "Fridges", "Wine"), 1),
    ]
    assert pairs(counted["seller"]) == [("S-1", 1), ("S-2", 1)]
    assert pairs(counted["attributes.capacity_l"]) == [(190, 1), (60.5, 1)]
    assert pairs(counted["attributes.none"]) == []
    assert pairs(counted["price"]) == [
        (PriceRange(gte=2.0, lt=3.0), 1),
        (PriceRange(gte=200.0, lt=300.0), 1),
        (PriceRange(gte=300.0, lt=500.0), 1),
    ]


@pytest.mark.parametrize("query", ["", "?!"])
async def test_a_facet_is_counted_over_the_other_filters(shop: Shop, query: str) -> None:
    """A chosen brand narrows the colours, but leaves the other brands to choose, with a query and without."""
    question = question_of(query, MEANING) if query else None
    filters = Filters(brand=("electra",), attributes={"Colour": ("black",)})
    counted = await counted_by(shop, question, filters)
    assert sorted(count for _, count in pairs(counted["brand"])) == [1, 1]
    assert [(value.lower(), count) for value, count in pairs(counted["attributes.colour"])] == [
        ("black", 1),
        ("café crème", 1),
    ]
    assert pairs(counted["attributes.capacity_l"]) == [(60.5, 1)]
    assert pairs(counted["price"]) == [(PriceRange(gte=200.0, lt=300.0), 1)]


async def test_each_value_of_a_facet_finds_as_many_as_it_says(shop: Shop) -> None:
    """A page sends a value back as it came."""
    counted = await counted_by(shop, None, Filters())
    for name, values in counted.items():
        for value, count in pairs(values):
            chosen: dict[str, Any] = {name: value if name in {"category", "price"} else [value]}
            if name.startswith("attributes."):
                chosen = {"attributes": {name.removeprefix("attributes."): [value]}}
            assert len(await found(shop, **chosen)) == count, (name, value)


async def test_what_is_remembered_of_a_query_is_found_whatever_its_score(shop: Shop) -> None:
    """It counts with what its shoppers add, if it is there and meets the filters; the rest is ranked as before."""
    retrieval, collection = shop
    plain = await retrieval.best(collection, question_of("?!", MEANING), k=len(PRODUCTS), filters=Filters())
    best, worst = plain[0], plain[-1]
    chosen = worst.payload["product_id"]
    remembered = {point_id(chosen): 60.0, point_id(best.payload["product_id"]): -1.0, point_id("gone"): 90.0}
    question = question_of("?!", MEANING, remembered=remembered)
    hits = await retrieval.best(collection, question, k=1, filters=Filters())
    assert [hit.payload["product_id"] for hit in hits] == [chosen, best.payload["product_id"]]
    assert [hit.memory for hit in hits] == [60.0, -1.0]
    assert [hit.score for hit in hits] == pytest.approx([worst.score + 6.0, best.score - 0.1], abs=1e-5)
    others = Filters(category="Kitchen") if chosen in {"magnet", "poster"} else Filters(category="Decoration")
    met = await retrieval.best(collection, question, k=1, filters=others)
    assert chosen not in {hit.payload["product_id"] for hit in met}
    assert met

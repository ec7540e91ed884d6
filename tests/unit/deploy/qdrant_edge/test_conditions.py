"""Filters, judged by what they let through."""

from typing import Any

import pytest
from qdrant_client import models

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.queries import to_filter
from deploy.qdrant_edge.requests import MAX_DEPTH, edge_errors, parse
from tests.unit.deploy.qdrant_edge.conftest import refused


def chosen(shop: Collection, value: Any) -> list[int]:
    """Return the ids that a filter lets through."""
    return [record["id"] for record in shop.scroll({"filter": value, "limit": 100})["points"]]


def read(value: Any) -> Any:
    """Return a filter as the engine gets it."""
    return to_filter(parse(models.CountRequest, {"filter": value}).filter)


def brand(name: str) -> dict[str, Any]:
    """Return a condition on the brand."""
    return {"key": "brand", "match": {"value": name}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [1, 2, 3, 4]),
        ({}, [1, 2, 3, 4]),
        ({"must": None, "should": None}, [1, 2, 3, 4]),
        ({"must": brand("Acme")}, [1, 3]),
        ({"must": [brand("Acme"), {"key": "price", "range": {"gt": 100}}]}, [3]),
        ({"should": [brand("Bolt"), brand("Core")]}, [2, 4]),
        ({"must_not": [brand("Acme")]}, [2, 4]),
        ({"min_should": {"conditions": [brand("Acme"), {"has_id": [3, 4]}], "min_count": 2}}, [3]),
        ({"must": [{"key": "brand", "match": {"any": ["Acme", "Core"]}}]}, [1, 3, 4]),
        ({"must": [{"key": "stock", "match": {"any": [0, 7]}}]}, [2]),
        ({"must": [{"key": "brand", "match": {"any": []}}]}, []),
        ({"must": [{"key": "brand", "match": {"except": ["Acme"]}}]}, [2, 4]),
        ({"must": [{"key": "title", "match": {"text": "fridge"}}]}, [4]),
        ({"must": [{"key": "flag", "match": {"value": True}}]}, [1]),
        ({"must": [{"key": "flag", "match": {"value": False}}]}, [2]),
        ({"must_not": [{"key": "flag", "match": {"value": True}}]}, [2, 3, 4]),
        ({"must": [{"key": "price", "range": {"gte": 100, "lt": 300.0, "gt": None}}]}, [1, 2]),
        ({"must": [{"key": "at", "range": {"gte": "2026-03-01T00:00:00Z"}}]}, [2]),
        ({"must": [{"key": "tags", "values_count": {"gte": 2}}]}, [1]),
        ({"must": [{"is_empty": {"key": "price"}}]}, [4]),
        ({"must": [{"is_null": {"key": "note"}}]}, [3]),
        ({"must": [{"key": "price", "is_empty": True}]}, [4]),
        ({"must": [{"has_id": [2, 4, 99]}]}, [2, 4]),
        ({"must": [{"has_vector": "product"}]}, [1, 2, 3, 4]),
        ({"must": [{"nested": {"key": "parts", "filter": {"must": [{"key": "kind", "match": {"value": "x"}}]}}}]}, [3]),
        ({"must": [{"should": [brand("Bolt")], "must_not": [{"has_id": [1]}]}]}, [2]),
    ],
)  # fmt: skip
def test_filter_lets_through(shop: Collection, value: Any, expected: list[int]) -> None:
    """Each kind of condition chooses the points that Qdrant's reference says."""
    assert chosen(shop, value) == expected


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([], "filter must be an object"),
        ({"must_also": []}, "must_also"),
        ({"must": [3]}, "condition"),
        ({"must": [{"key": "brand", "matches": {"value": 1}}]}, "matches"),
        ({"must": [{"key": 3, "match": {"value": 1}}]}, "key"),
        ({"must": [{"key": "brand", "match": {"value": 1.5}}]}, "match.value"),
        ({"must": [{"key": "brand", "match": {"value": float(2**70)}}]}, "match.value"),
        ({"must": [{"key": "brand", "match": {"value": "a", "any": ["b"]}}]}, "match.any"),
        ({"must": [{"key": "brand", "match": {"like": "a"}}]}, "like"),
        ({"must": [{"key": "brand", "match": {"any": ["a", 1]}}]}, "match.any.1"),
        ({"must": [{"key": "brand", "match": {"any": [True]}}]}, "match.any.0"),
        ({"must": [{"key": "price", "range": {"gte": True}}]}, "range.gte"),
        ({"must": [{"key": "price", "range": {"gte": "2026-01-01", "lt": 3}}]}, "range"),
        ({"must": [{"key": "price", "range": {"over": 3}}]}, "over"),
        ({"must": [{"has_id": ["SKU-1"]}]}, "SKU-1"),
        ({"must": [{"has_id": [-1]}]}, "point ID"),
        ({"must": [{"has_id": 3}]}, "has_id"),
        ({"min_should": {"conditions": []}}, "min_count"),
        ({"min_should": {"conditions": [{"key": 3}], "min_count": 1}}, "key"),
        ({"min_should": {"conditions": {}, "min_count": 1}}, "min_should.conditions"),
        ({"must": [{"nested": {"key": "parts", "filter": {"must": [{"key": 3}]}}}]}, "key"),
        ({"must": [{"nested": {"key": "parts", "filter": {}, "deep": 1}}]}, "nested.deep"),
        ({"must": [{"key": "price", "range": {"gte": "5"}}]}, "date-time"),
        ({"must": [{"key": "stock", "match": {"value": 2**63}}]}, "match"),
        ({"must": [{"key": "stock", "match": {"any": [1, 2**63]}}]}, "match"),
    ],
)  # fmt: skip
def test_malformed_filter_is_refused_by_name(value: Any, names: str) -> None:
    """What is no filter is refused, and the refusal names the fault."""
    with refused(400, match=names), edge_errors():
        read(value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"must": [{"key": "brand"}]}, "says nothing"),
        ({"min_should": {"conditions": [], "min_count": 0}}, "min_count"),
    ],
)
def test_filter_that_means_nothing_is_refused(value: Any, names: str) -> None:
    """What is well-formed and can mean nothing is another refusal, as it is a Qdrant server's."""
    with refused(422, match=names):
        read(value)


CENTRE = {"lat": 1.0, "lon": 2.0}


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        ("geo_radius", {"center": CENTRE, "radius": 1}),
        ("geo_bounding_box", {"top_left": CENTRE, "bottom_right": CENTRE}),
        ("geo_polygon", {"exterior": {"points": [CENTRE]}}),
    ],
)
def test_geographic_conditions_are_named_as_missing(kind: str, area: dict[str, Any]) -> None:
    """What a server has and we have not is refused by name."""
    with refused(501, match=kind):
        read({"must": [{"key": "place", kind: area}]})


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ({"slice": {"total": 2, "index": 0}}, "slices"),
        ({"key": "brand", "match": {"prefix": "A"}}, "prefix"),
        ({"key": "brand", "match": {"substring": "A"}}, "substring"),
    ],
)
def test_what_the_client_has_and_the_engine_lacks_is_refused(condition: dict[str, Any], names: str) -> None:
    """A condition of a newer client, or one that needs a server, is refused by name instead of being left out."""
    with refused(501, match=names):
        read({"must": [condition]})


def test_filter_nested_too_deeply_is_refused() -> None:
    """A filter deeper than the engine survives never reaches it."""
    value: dict[str, Any] = brand("Acme")
    for _ in range(MAX_DEPTH):
        value = {"must": [value]}
    with refused(400, match="deeper"):
        read(value)


@pytest.mark.parametrize("key", ["a..b[", ""])
def test_impossible_path_is_the_callers_fault(shop: Collection, key: str) -> None:
    """A path that the engine cannot parse is answered as a bad request."""
    with refused(400):
        shop.count({"filter": {"must": [{"key": key, "match": {"value": 1}}]}})

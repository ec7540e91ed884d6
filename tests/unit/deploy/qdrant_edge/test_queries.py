"""Reads, judged by what they find."""

import math
from typing import Any

import pytest

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.store import Store
from tests.unit.deploy.qdrant_edge.conftest import refused

NEAR = [1.0, 0.0]
NOWHERE = {"origin": {"lat": 0.0, "lon": 0.0}, "to": "at"}


def ids(shop: Collection, **body: Any) -> list[int]:
    """Return the ids that a query finds, best first."""
    return [hit["id"] for hit in shop.query(_with_vector_name(body))["points"]]


def _with_vector_name(body: dict[str, Any]) -> dict[str, Any]:
    """Name the vector, but in a fusion, which may not name one."""
    query = body.get("query")
    fuses = isinstance(query, dict) and bool(query.keys() & {"fusion", "rrf"})
    return body if fuses else {"using": "product", **body}


def test_nearest_hits_carry_scores_and_nothing_unasked(shop: Collection) -> None:
    """A hit is id, version and score; payload and vector come when asked for."""
    (hit,) = shop.query({"query": NEAR, "using": "product", "limit": 1})["points"]
    assert set(hit) == {"id", "version", "score"}
    assert hit["id"] == 1
    assert hit["score"] == pytest.approx(math.cos(0.1))
    asked = {"query": NEAR, "using": "product", "limit": 1, "with_vector": True, "with_payload": ["brand"]}
    (hit,) = shop.query(asked)["points"]
    assert hit["payload"] == {"brand": "Acme"}
    assert hit["vector"]["product"] == pytest.approx([math.cos(0.1), math.sin(0.1)])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"query": NEAR}, [1, 2, 3, 4]),
        ({"query": {"nearest": NEAR}, "limit": 2}, [1, 2]),
        ({"query": NEAR, "limit": 2, "offset": 1}, [2, 3]),
        ({"query": NEAR, "offset": 2**62}, []),
        ({"query": NEAR, "limit": 2**62}, [1, 2, 3, 4]),
        ({"query": NEAR, "score_threshold": 0.975}, [1, 2]),
        ({"query": NEAR, "filter": {"must": [{"key": "brand", "match": {"value": "Acme"}}]}}, [1, 3]),
        ({"query": NEAR, "params": {"hnsw_ef": 64, "exact": True}}, [1, 2, 3, 4]),
        ({"query": 4}, [3, 2, 1]),
        ({"query": {"nearest": 4}, "filter": {"must_not": [{"has_id": [3]}]}}, [2, 1]),
        ({"query": {"order_by": "price"}}, [1, 2, 3]),
        ({"query": {"order_by": {"key": "price", "direction": "desc"}}, "limit": 1}, [3]),
        ({"filter": {"must": [{"has_id": [2, 3]}]}}, [2, 3]),
        ({"query": {"nearest": NEAR, "mmr": {"diversity": 0.0, "candidates_limit": 4}}, "limit": 2}, [1, 2]),
        ({"query": {"nearest": NEAR, "mmr": {"diversity": 0.9, "candidates_limit": 4}}, "limit": 2}, [1, 4]),
        ({"prefetch": [{"query": NEAR, "using": "product", "limit": 2}], "query": {"fusion": "rrf"}}, [1, 2]),
        ({"prefetch": {"query": NEAR, "using": "product", "limit": 2}, "query": {"fusion": "dbsf"}}, [1, 2]),
        (
            {
                "prefetch": [
                    {"query": NEAR, "using": "product", "limit": 2},
                    {"query": [0.0, 1.0], "using": "product", "limit": 2},
                ],
                "query": {"rrf": {"k": 2, "weights": [1, 9]}},
            },
            [4, 3, 1, 2],
        ),
    ],
)
def test_query_finds(shop: Collection, body: dict[str, Any], expected: list[int]) -> None:
    """Each kind of query finds what it should, in order."""
    assert ids(shop, **body) == expected


def test_sample_gives_any_points(shop: Collection) -> None:
    """A random sample is of the collection's points."""
    assert set(ids(shop, query={"sample": "random"}, limit=4)) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("price", [100.0, 200.0, 300.0, 7.0]),
        ({"sum": ["price", 1, 0.5]}, [101.5, 201.5, 301.5, 8.5]),
        ({"mult": [2, {"neg": "price"}]}, [-200.0, -400.0, -600.0, -14.0]),
        ({"key": "flag", "match": {"value": True}}, [1.0, 0.0, 0.0, 0.0]),
        ({"must": [{"key": "brand", "match": {"value": "Acme"}}]}, [1.0, 0.0, 1.0, 0.0]),
        ({"div": {"left": "price", "right": 0, "by_zero_default": -1}}, [-1.0] * 4),
        ({"div": {"left": "price", "right": 100}}, [1.0, 2.0, 3.0, 0.07]),
        ({"pow": {"base": "price", "exponent": 2}}, [1e4, 4e4, 9e4, 49.0]),
        ({"abs": {"sum": ["price", -250]}}, [150.0, 50.0, 50.0, 243.0]),
        ({"sqrt": "price"}, [10.0, math.sqrt(200), math.sqrt(300), math.sqrt(7)]),
        ({"ln": "price"}, [math.log(100), math.log(200), math.log(300), math.log(7)]),
        ({"log10": "price"}, [2.0, math.log10(200), math.log10(300), math.log10(7)]),
        ({"exp": {"key": "flag", "match": {"value": True}}}, [math.e, 1.0, 1.0, 1.0]),
        ({"max": ["price", 200]}, [200.0, 200.0, 300.0, 200.0]),
        ({"min": ["price", 200]}, [100.0, 200.0, 200.0, 7.0]),
        ({"lin_decay": {"x": "price", "target": 100, "scale": 200, "midpoint": 0.5}}, [1.0, 0.75, 0.5, 0.7675]),
        ({"exp_decay": {"x": "price", "target": 100, "scale": 100, "midpoint": 0.5}}, [1.0, 0.5, 0.25, 0.5**0.93]),
    ],
)  # fmt: skip
def test_formula_scores(shop: Collection, formula: Any, expected: list[float]) -> None:
    """Each expression computes what its name says, with defaults for missing fields."""
    prefetch = {"query": NEAR, "using": "product", "limit": 4}
    body = {"prefetch": prefetch, "query": {"formula": formula, "defaults": {"price": 7}}, "limit": 4}
    scores = {hit["id"]: hit["score"] for hit in shop.query(body)["points"]}
    assert [scores[identity] for identity in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-4)


def test_formula_over_times(shop: Collection) -> None:
    """A decay over a time favours what is near its target."""
    decay = {
        "x": {"datetime_key": "at"},
        "target": {"datetime": "2026-06-01T00:00:00Z"},
        "scale": 86400 * 30,
        "midpoint": 0.5,
    }
    body = {
        "prefetch": {"query": NEAR, "using": "product", "limit": 4},
        "query": {"formula": {"gauss_decay": decay}, "defaults": {"at": "2020-01-01T00:00:00Z"}},
    }
    best = shop.query(body)["points"][0]
    assert (best["id"], best["score"]) == (2, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ([], 400, "object"),
        ({"query": [1.0]}, 400, "expected dim: 2, got 1"),
        ({"query": [1.0, None]}, 400, "query.1"),
        ({"query": NEAR, "using": "other"}, 400, "Not existing vector name error: other"),
        ({"query": NEAR, "limit": 0}, 422, "limit"),
        ({"query": NEAR, "limit": "3"}, 400, "limit"),
        ({"query": NEAR, "offset": -1}, 400, "offset"),
        ({"query": NEAR, "top": 3}, 400, "top"),
        ({"query": NEAR, "with_payload": 3}, 400, "with_payload"),
        ({"query": NEAR, "with_vector": ["other"]}, 400, "other"),
        ({"query": NEAR, "score_threshold": "high"}, 400, "score_threshold"),
        ({"query": NEAR, "params": {"ef": 3}}, 400, "ef"),
        ({"query": {"nearest": NEAR, "mmr": {"diversity": 3}}}, 422, "diversity"),
        ({"query": {"fusion": "sum"}, "prefetch": {"query": NEAR}}, 400, "fusion"),
        ({"query": {"rrf": {"k": -1}}, "prefetch": {"query": NEAR}}, 400, "rrf.k"),
        ({"query": {"rrf": {"k": 0}}, "prefetch": {"query": NEAR}}, 422, "rrf.k"),
        ({"query": {"fusion": "rrf"}, "using": "product", "prefetch": {"query": NEAR}}, 400, "using"),
        ({"query": {"order_by": "price"}, "score_threshold": 0.5}, 400, "score_threshold"),
        ({"score_threshold": 0.5}, 400, "score_threshold"),
        ({"query": NEAR, "params": {"hnsw_ef": 0}}, 422, "hnsw_ef"),
        ({"query": NEAR, "with_payload": ["a["]}, 400, "JSON path"),
        ({"query": {"sample": "first"}}, 400, "sample"),
        ({"query": {"order_by": "brand"}}, 400, "range index"),
        ({"query": {"order_by": {"key": "price", "direction": "up"}}}, 400, "direction"),
        ({"query": {"formula": "$score"}}, 400, "prefetch"),
        ({"query": {"formula": {"square": 1}}, "prefetch": {"query": NEAR}}, 400, "square"),
        ({"query": {"formula": "$best"}, "prefetch": {"query": NEAR}}, 400, "best"),
        ({"query": {"formula": "brand"}, "prefetch": {"query": NEAR}}, 400, "defaults"),
        ({"prefetch": {"query": NEAR}}, 400, "prefetch"),
        ({"query": 99}, 404, "99"),
        ({"query": "SKU-1"}, 400, "SKU-1"),
        ({"query": {"recommend": {"positive": [1]}}}, 501, "recommend"),
        ({"query": {"text": {"query": "fridge"}}}, 501, "text"),
        ({"query": {"nearest": {"indices": [1], "values": [1.0]}}}, 400, "sparse"),
        ({"query": NEAR, "prefetch": {"query": NEAR, "lookup_from": {"collection": "x"}}}, 501, "lookup"),
        ({"query": NEAR, "prefetch": {"query": NEAR, "filter": {"must": [{"key": 3}]}}}, 400, "key"),
        ({"query": NEAR, "params": {"idf": "global"}}, 501, "idf"),
        ({"query": {"discover": {"target": 1, "context": []}}}, 501, "discover"),
        ({"query": {"indices": [1], "values": [1.0]}}, 400, "sparse"),
        ({"query": {"text": "fridge", "model": "m"}}, 501, "inference"),
        ({"query": [[1.0, 0.0]] * 2}, 501, "multivectors"),
        ({"query": NEAR, "lookup_from": {"collection": "x"}}, 501, "lookup"),
        ({"query": {"formula": {"geo_distance": NOWHERE}}, "prefetch": {"query": NEAR}}, 501, "geographic"),
    ],
)  # fmt: skip
def test_wrong_query_is_refused_by_name(
    shop: Collection,
    body: Any,
    status: int,
    names: str,
) -> None:
    """What is wrong or beyond us is refused, and the refusal names it."""
    if isinstance(body, dict):
        prefetch = body.get("prefetch")
        body = _with_vector_name(body) | ({"prefetch": {"using": "product", **prefetch}} if prefetch else {})
    with refused(status, match=names):
        shop.query(body)


def test_prefetch_nested_too_deeply_is_refused(shop: Collection) -> None:
    """Prefetches deeper than the engine survives never reach it."""
    body: dict[str, Any] = {"query": NEAR, "using": "product"}
    for _ in range(100):
        body = {"query": NEAR, "using": "product", "prefetch": body}
    with refused(400, match="deeper"):
        shop.query(body)


def test_batch_answers_each_query(shop: Collection) -> None:
    """Queries of one request are answered in their order; a malformed one refuses all."""
    good = {"query": NEAR, "using": "product", "limit": 1}
    answers = shop.query_batch({"searches": [good, {"filter": {"must": [{"has_id": [3]}]}}]})
    assert [[hit["id"] for hit in answer["points"]] for answer in answers] == [[1], [3]]
    with refused(400):
        shop.query_batch({"searches": [good, {"query": [1.0], "using": "product"}]})


def test_groups_are_best_first_and_full(shop: Collection) -> None:
    """Each group comes once with its best hits, payloads as asked."""
    body = {"query": NEAR, "using": "product", "group_by": "brand", "limit": 2, "group_size": 2, "with_payload": True}
    groups = shop.query_groups(body)["groups"]
    assert [(group["id"], [hit["id"] for hit in group["hits"]]) for group in groups] == [
        ("Acme", [1, 3]),
        ("Bolt", [2]),
    ]
    assert groups[1]["hits"][0]["payload"]["price"] == 200.0
    assert groups[1]["hits"][0]["score"] == pytest.approx(math.cos(0.2))


def test_groups_by_the_entries_of_a_list(shop: Collection) -> None:
    """A path may lead through a list; each entry's value is a group."""
    body = {"query": NEAR, "using": "product", "group_by": "parts[].kind", "group_size": 1}
    assert {group["id"]: group["hits"][0]["id"] for group in shop.query_groups(body)["groups"]} == {"x": 3, "y": 3}


def test_groups_reach_beyond_a_prefetch(shop: Collection) -> None:
    """A prefetch that is smaller than the groups wanted is asked again for what was not seen yet."""
    prefetch = {"query": NEAR, "using": "product", "limit": 1}
    formula = {"formula": {"neg": "price"}, "defaults": {"price": 0}}
    body = {"prefetch": prefetch, "query": formula, "group_by": "brand", "limit": 3, "group_size": 1}
    groups = shop.query_groups(body)["groups"]
    assert [(group["id"], group["hits"][0]["id"]) for group in groups] == [("Core", 4), ("Acme", 1), ("Bolt", 2)]


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ({"limit": 0}, 422),
        ({"group_size": 0}, 422),
        ({"group_by": "a["}, 400),
        ({"group_by": None}, 400),
        ({"offset": 1}, 400),
        ({"with_lookup": "other"}, 501),
    ],
)
def test_wrong_group_request_is_refused(shop: Collection, field: dict[str, Any], status: int) -> None:
    """What a group request cannot have is refused, an offset among it."""
    with refused(status):
        shop.query_groups({"query": NEAR, "using": "product", "group_by": "brand", **field})


def test_nearest_group_comes_first_where_scores_are_distances(store: Store) -> None:
    """The smallest distance is the best, within a group and among groups."""
    store.create("far", {"vectors": {"size": 1, "distance": "Euclid"}})
    far = store.collection("far")
    held = [(1, 5.0, "a"), (2, 1.0, "b"), (3, 2.0, "a")]
    far.write("upsert", {"points": [{"id": i, "vector": [x], "payload": {"kind": kind}} for i, x, kind in held]})
    groups = far.query_groups({"query": [0.0], "group_by": "kind", "group_size": 2})["groups"]
    assert [(group["id"], [hit["id"] for hit in group["hits"]]) for group in groups] == [("b", [2]), ("a", [3, 1])]


def test_scroll_pages_and_orders(shop: Collection) -> None:
    """Scroll goes through ids in order page by page, or by a field."""
    first = shop.scroll({"limit": 3})
    assert ([record["id"] for record in first["points"]], first["next_page_offset"]) == ([1, 2, 3], 4)
    rest = shop.scroll({"limit": 3, "offset": 4, "with_payload": False})
    assert rest == {"points": [{"id": 4}], "next_page_offset": None}
    ordered = shop.scroll({"order_by": {"key": "price", "direction": "desc"}})
    assert [(record["id"], record["order_value"]) for record in ordered["points"]] == [
        (3, 300.0),
        (2, 200.0),
        (1, 100.0),
    ]


def test_payload_selectors(shop: Collection) -> None:
    """Fields can be named, or all but the named."""
    (kept,) = shop.retrieve({"ids": [4], "with_payload": {"include": ["brand"]}})
    (left,) = shop.retrieve({"ids": [4], "with_payload": {"exclude": ["brand"]}})
    assert (kept["payload"], left["payload"]) == ({"brand": "Core"}, {"title": "quiet fridge"})
    assert shop.retrieve({"ids": [4]}) == [{"id": 4}]


def test_count_and_facet(shop: Collection) -> None:
    """Counts are exact, whole and per value; a facet needs an index."""
    assert shop.count({}) == {"count": 4}
    assert shop.count({"filter": {"must": [{"key": "brand", "match": {"value": "Acme"}}]}}) == {"count": 2}
    hits = shop.facet({"key": "brand"})["hits"]
    assert {hit["value"]: hit["count"] for hit in hits} == {"Acme": 2, "Bolt": 1, "Core": 1}
    with refused(400, match="index"):
        shop.facet({"key": "title"})
    with refused(400, match="exact"):
        shop.count({"exact": "yes"})


@pytest.mark.parametrize(("identity", "status"), [("99", 404), ("SKU-1", 400), ("-1", 400), ("²", 400)])
def test_absent_or_impossible_point(shop: Collection, identity: str, status: int) -> None:
    """A single point that is not there, or cannot be, is refused."""
    with refused(status):
        shop.get(identity)

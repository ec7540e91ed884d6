"""Writes, judged by what is stored after them."""

from typing import Any
from uuid import UUID

import pytest

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.store import Store
from tests.unit.deploy.qdrant_edge.conftest import PAYLOADS, point, refused

UUID_TEXT = "cd11b0a2-d20c-529d-af2c-5ba0c3baf6d5"


def payloads(collection: Collection) -> dict[Any, Any]:
    """Return the payload of every point."""
    return {record["id"]: record["payload"] for record in collection.scroll({"limit": 100})["points"]}


def test_upsert_answers_and_stores(collection: Collection) -> None:
    """An upsert answers a completed operation; the point comes back by its id with its vector."""
    answer = collection.write("upsert", {"points": [{"id": UUID_TEXT, "vector": {"product": [3, 4]}, "payload": None}]})
    assert answer["status"] == "completed"
    stored = collection.get(UUID_TEXT)
    assert stored == {"id": UUID_TEXT, "payload": {}, "vector": {"product": pytest.approx([0.6, 0.8])}}


def test_batch_form_equals_list_form(collection: Collection) -> None:
    """Columns are read as rows."""
    columns = {"ids": [7, 8], "vectors": {"product": [[1, 0], None]}, "payloads": [{"n": 7}, None]}
    collection.write("upsert", {"batch": columns})
    assert collection.retrieve({"ids": [7, 8], "with_payload": True, "with_vector": True}) == [
        {"id": 7, "payload": {"n": 7}, "vector": {"product": [1.0, 0.0]}},
        {"id": 8, "payload": {}, "vector": {}},
    ]


def test_unnamed_vector_is_a_bare_list(store: Store) -> None:
    """A collection of one unnamed vector takes and gives bare lists."""
    store.create("plain", {"vectors": {"size": 2, "distance": "Dot"}})
    plain = store.collection("plain")
    plain.write("upsert", {"points": [{"id": 1, "vector": [3, 4]}]})
    plain.write("upsert", {"batch": {"ids": [2], "vectors": [[1, 1]]}})
    assert [record["vector"] for record in plain.retrieve({"ids": [1, 2], "with_vector": True})] == [[3, 4], [1, 1]]
    assert plain.query({"query": [1, 0]})["points"][0]["score"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("upsert", {1: "new", 9: "new"}), ("insert_only", {1: None, 9: "new"}), ("update_only", {1: "new", 9: None})],
)
def test_update_mode(collection: Collection, mode: str, expected: dict[int, str | None]) -> None:
    """A mode decides whether present and absent points are written."""
    collection.write("upsert", {"points": [point(1, state="new"), point(9, state="new")], "update_mode": mode})
    stored = payloads(collection)
    assert {identity: stored.get(identity, {}).get("state") for identity in expected} == expected


def test_condition_judges_stored_points_only(collection: Collection) -> None:
    """A point whose stored state fails the condition stays; an absent one is inserted."""
    condition = {"must": [{"key": "brand", "match": {"value": "Acme"}}]}
    collection.write("upsert", {"points": [point(1, n=1), point(2, n=1), point(9, n=1)], "update_filter": condition})
    stored = payloads(collection)
    assert (stored[1], stored[2], stored[9]) == ({"n": 1}, PAYLOADS[2], {"n": 1})


def test_last_of_one_id_in_a_request_wins(collection: Collection) -> None:
    """As on a server, a condition is judged once, before the request; the writer must keep one point per id."""
    condition = {"must_not": [{"key": "version", "range": {"gte": 5}}]}
    collection.write("upsert", {"points": [point(9, version=5), point(9, version=4)], "update_filter": condition})
    assert payloads(collection)[9] == {"version": 4}


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("delete", {"points": [1, 99]}, {1: None}),
        ("delete", {"filter": {"must": [{"key": "brand", "match": {"value": "Acme"}}]}}, {1: None, 3: None}),
        ("set_payload", {"points": [4], "payload": {"n": 1}}, {4: {**PAYLOADS[4], "n": 1}}),
        ("set_payload", {"points": [4], "payload": {"n": 1}, "key": "deep"}, {4: {**PAYLOADS[4], "deep": {"n": 1}}}),
        ("overwrite_payload", {"filter": {"must": [{"has_id": [4]}]}, "payload": {"n": 1}}, {4: {"n": 1}}),
        ("delete_payload", {"points": [4], "keys": ["title"]}, {4: {"brand": "Core"}}),
        ("clear_payload", {"points": [4]}, {4: {}}),
    ],
)
def test_changes_reach_the_points_they_name(
    collection: Collection, kind: str, body: dict[str, Any], expected: dict[int, Any]
) -> None:
    """Deletes and payload changes, by ids and by filter, change those points and no other."""
    collection.write(kind, body)
    changed = {**PAYLOADS, **expected}
    assert payloads(collection) == {identity: payload for identity, payload in changed.items() if payload is not None}


def test_vectors_are_replaced_and_deleted(collection: Collection) -> None:
    """Vectors change without their payload; a point without a vector is found by no search."""
    collection.write("update_vectors", {"points": [{"id": 4, "vector": {"product": [1, 0]}}]})
    assert collection.query({"query": [1, 0], "using": "product", "limit": 1})["points"][0]["id"] == 4
    collection.write("delete_vectors", {"points": [4], "vector": ["product"]})
    hits = collection.query({"query": [1, 0], "using": "product"})["points"]
    assert {hit["id"] for hit in hits} == {1, 2, 3}
    assert payloads(collection)[4] == PAYLOADS[4]


def test_batch_of_operations_runs_in_order(collection: Collection) -> None:
    """Operations of one request apply one after another, one answer each."""
    answers = collection.write_batch(
        {"operations": [{"upsert": {"points": [point(9, n=1)]}}, {"set_payload": {"points": [9], "payload": {"m": 2}}}]}
    )
    assert [answer["status"] for answer in answers] == ["completed"] * 2
    assert payloads(collection)[9] == {"n": 1, "m": 2}


def nested(depth: int) -> dict[str, Any]:
    """Return a payload nested so deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"deep": value}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"vector": {"product": [1, 2, 3]}}, "expected dim: 2, got 3"),
        ({"vector": {"other": [1, 2]}}, "Not existing vector name error: other"),
        ({"vector": [1, 2]}, "Not existing vector name"),
        ({"vector": {"product": [1, "2"]}}, "must be numbers"),
        ({"vector": {"product": [1, None]}}, "must be numbers"),
        ({"vector": {"product": [1, float("nan")]}}, "finite"),
        ({"vector": {"product": [1, float("inf")]}}, "finite"),
        ({"vector": {"product": [1, 1e39]}}, "finite"),
        ({"vector": {"product": "near"}}, "list of numbers"),
        ({"id": "SKU-1"}, "SKU-1"),
        ({"id": "x" * 36}, "UUID"),
        ({"id": -1}, "point ID"),
        ({"id": float(2**64)}, "id"),
        ({"id": True}, "points.1.id"),
        ({"id": None}, "points.1.id"),
        ({"payload": [1]}, "points.1.payload"),
        ({"payload": nested(200)}, "deeper"),
        ({"extra": 1}, "extra"),
    ],
)  # fmt: skip
def test_malformed_point_refuses_the_request_whole(shop: Collection, fields: dict[str, Any], names: str) -> None:
    """One bad point is named and nothing of its request is stored; the shard stays readable."""
    with refused(400, match=names):
        shop.write("upsert", {"points": [point(8), {**point(9), **fields}]})
    assert set(payloads(shop)) == set(PAYLOADS)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("upsert", {"points": [{"id": 1, "vector": {"product": {"indices": [1], "values": [1]}}}]}, 400),
        ("upsert", {"points": [{"id": 1, "vector": {"product": [[1, 2], [3, 4]]}}]}, 501),
        ("upsert", {"points": [{"id": 1, "vector": {"text": "fridge", "model": "m"}}]}, 501),
        ("upsert", {"points": [], "shard_key": "a"}, 501),
        ("upsert", {"points": [], "update_mode": "replace"}, 400),
        ("upsert", {"points": {}}, 400),
        ("upsert", {"points": [{"id": 1}]}, 400),
        ("upsert", {"batch": {"ids": [1, 2], "vectors": {"product": [[1, 2]]}}}, 422),
        ("upsert", {"batch": {"ids": [1], "vectors": {"product": [[1, 2]]}, "colours": ["red"]}}, 400),
        ("upsert", {"batch": {"ids": [1], "vectors": {"product": 3}}}, 400),
        ("upsert", {"points": []}, 400),
        ("upsert", {"batch": {"ids": [], "vectors": {}}}, 400),
        ("upsert", [], 400),
        ("delete", {}, 400),
        ("delete", {"points": []}, 400),
        ("set_payload", {"points": [], "payload": {"x": 1}}, 400),
        ("set_payload", {"points": [1], "payload": {"x": 1}, "key": ".".join("a" * 200)}, 400),
        ("overwrite_payload", {"points": [1], "payload": {"x": 1}, "key": "a" + "[0]" * 200}, 400),
        ("update_vectors", {"points": []}, 422),
        ("delete_vectors", {"points": [1], "vector": []}, 422),
        ("delete_vectors", {"points": [1], "vector": ["other"]}, 400),
        ("set_payload", {"points": [99], "payload": {}}, 404),
        ("update_vectors", {"points": [{"id": 99, "vector": {"product": [1, 2]}}]}, 404),
    ],
)  # fmt: skip
def test_wrong_write_is_refused(
    shop: Collection,
    kind: str,
    body: Any,
    status: int,
) -> None:
    """What is wrong, missing or beyond us is refused in its own way, and changes nothing."""
    with refused(status):
        shop.write(kind, body)
    assert payloads(shop) == PAYLOADS


@pytest.mark.parametrize("operation", [{"merge": {}}, {"upsert": {}, "delete": {}}, 3])
def test_unknown_batch_operation_refuses_all(shop: Collection, operation: Any) -> None:
    """One operation that is not understood keeps the others from being applied."""
    with refused(400):
        shop.write_batch({"operations": [{"delete": {"points": [1]}}, operation]})
    assert 1 in payloads(shop)


def test_uuid_ids_are_one_however_written(collection: Collection) -> None:
    """A UUID with and without hyphens names the same point."""
    collection.write("upsert", {"points": [{"id": UUID(UUID_TEXT).hex, "vector": {}}]})
    assert collection.get(UUID_TEXT)["id"] == UUID_TEXT

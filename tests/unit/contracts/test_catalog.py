"""Products in the index: their ids, and the newer-only rule, the same in Python and as a filter of the store."""

import uuid
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from contracts.catalog import MAX_VERSION, PointVersion, is_newer, newer_only_filter, point_id

SMALL = st.integers(0, 3)
EDGES = st.sampled_from([0, 1, MAX_VERSION - 1, MAX_VERSION])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
VERSIONS = st.builds(PointVersion, SMALL | EDGES, SMALL, st.booleans())


def holds(condition: dict[str, Any], payload: dict[str, Any]) -> bool:
    """Return whether a payload meets a Qdrant filter or condition, by Qdrant's documented rules."""
    if "key" not in condition:
        return (
            all(holds(inner, payload) for inner in condition.get("must", ()))
            and ("should" not in condition or any(holds(inner, payload) for inner in condition["should"]))
            and not any(holds(inner, payload) for inner in condition.get("must_not", ()))
        )
    if condition["key"] not in payload:
        return False
    value = payload[condition["key"]]
    if "match" in condition:
        return bool(value == condition["match"]["value"])
    bounds = condition["range"]
    return bool(value > bounds.get("gt", -1) and value >= bounds.get("gte", -1))


def payload_of(version: PointVersion) -> dict[str, Any]:
    """Return a stored point's payload."""
    return {
        "version": version.version, "product_release": version.product_release, "deleted": int(version.deleted)
    }  # fmt: skip


@given(VERSIONS, VERSIONS)
def test_the_filter_accepts_exactly_what_the_rule_accepts(candidate: PointVersion, stored: PointVersion) -> None:
    """An update with the filter replaces a stored point exactly where the candidate is newer."""
    assert holds(newer_only_filter(candidate), payload_of(stored)) is is_newer(candidate, stored)


@given(VERSIONS, VERSIONS)
def test_what_is_written_again_replaces_its_equal_too(candidate: PointVersion, stored: PointVersion) -> None:
    """Nothing that is newer is replaced, as in any other write."""
    assert holds(newer_only_filter(candidate, again=True), payload_of(stored)) is not is_newer(stored, candidate)


@given(st.lists(VERSIONS, min_size=1, max_size=4, unique=True))
def test_the_newest_wins_in_every_order_of_arrival(writes: list[PointVersion]) -> None:
    """However the writes of one product arrive, the same one is left."""
    for arrival in permutations(writes):
        stored = None
        for write in arrival:
            stored = write if is_newer(write, stored) else stored
        assert stored == max(writes, key=lambda write: (write.version, write.deleted, write.product_release))


@given(VERSIONS, VERSIONS)
def test_of_two_different_writes_exactly_one_is_newer(one: PointVersion, other: PointVersion) -> None:
    """The order is total, and a write never replaces itself."""
    assert is_newer(one, other) + is_newer(other, one) == (one != other)


def test_a_refresh_of_the_same_product_version_is_accepted() -> None:
    """The shop's version decides first, the product release second."""
    assert is_newer(PointVersion(7, 4), PointVersion(7, 3))
    assert not is_newer(PointVersion(6, 9), PointVersion(7, 3))


def test_a_deletion_wins_over_the_product_of_the_same_version() -> None:
    """Whichever release made the product's point, and in whatever order the two arrive."""
    gone = PointVersion(7, 1, deleted=True)
    assert is_newer(gone, PointVersion(7, 9))
    assert not is_newer(PointVersion(7, 9), gone)
    assert is_newer(PointVersion(8, 0), gone)


@pytest.mark.parametrize("payload", [{}, {"version": None}, {"other": 1}])
def test_a_point_without_versions_is_replaced(payload: dict[str, Any]) -> None:
    """A point that somebody else wrote must not stay for ever."""
    assert holds(newer_only_filter(PointVersion(0, 0)), {k: v for k, v in payload.items() if v is not None})


@pytest.mark.parametrize(
    "stored", [PointVersion(v, r, d) for v in (0, 1, 2, 3) for r in (0, 1, 2) for d in (False, True)]
)
def test_qdrants_own_client_understands_the_filter_alike(stored: PointVersion) -> None:
    """The interpreter above is checked against qdrant-client's in-memory store."""
    client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config=models.VectorParams(size=1, distance=models.Distance.COSINE))
    client.upsert("c", [models.PointStruct(id=1, vector=[1.0], payload=payload_of(stored))])
    for candidate in (
        PointVersion(2, 1), PointVersion(2, 1, deleted=True), PointVersion(MAX_VERSION, 0), PointVersion(0, 0),
    ):  # fmt: skip
        rule = newer_only_filter(candidate)
        found = client.count("c", count_filter=models.Filter.model_validate(rule)).count == 1
        assert found is holds(rule, payload_of(stored)) is is_newer(candidate, stored)
    client.close()


def test_neighbouring_versions_stay_apart_as_floats() -> None:
    """The store compares numbers as float64: up to the limit none of them falls together with its neighbour."""
    assert float(MAX_VERSION) != float(MAX_VERSION - 1)
    assert float(MAX_VERSION + 1) == float(MAX_VERSION + 2)


def test_a_point_id_is_the_uuid_that_the_interfaces_name() -> None:
    """Anyone can compute a product's point id with a standard library."""
    assert point_id("P-1") == str(uuid.uuid5(uuid.NAMESPACE_OID, "P-1")) == "529a5352-385c-5db4-9dd0-0c347ac4b3bb"


@given(TEXT, TEXT)
def test_two_products_have_two_points(one: str, other: str) -> None:
    """Different product ids never share a point."""
    assert (point_id(one) == point_id(other)) is (one == other)

"""Points of products, and which of several is written."""

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import PointPayload
from indexer.catalog.base_vectors import BaseProduct
from indexer.points import ProductPoint, Target, newest_per_id
from towers.lexical import product_words
from towers.model import ProductTower

points = st.builds(
    ProductPoint,
    product_id=st.sampled_from(["P-1", "P-2", "P-3"]),
    version=st.integers(0, 3),
    product_release=st.integers(0, 3),
    vector=st.sampled_from([None, (1.0,)]),
)


@given(st.lists(points))
def test_newest_per_id_keeps_the_maximum_of_each_product(given_points: list[ProductPoint]) -> None:
    """Of every product the greatest (version, deletion, product release) stays, once, and nothing else."""
    kept = newest_per_id(given_points)
    greatest: dict[str, tuple[int, bool, int]] = {}
    for point in given_points:
        order = (point.version, point.is_tombstone, point.product_release)
        greatest[point.product_id] = max(greatest.get(point.product_id, order), order)
    assert {point.product_id: (point.version, point.is_tombstone, point.product_release) for point in kept} == greatest
    assert len(kept) == len(greatest)


def test_of_equals_the_first_stays() -> None:
    """A second write of the same version and release changes nothing, as in the store."""
    first, second = (ProductPoint("P-1", 1, 1, (value,)) for value in (1.0, 2.0))
    assert newest_per_id([first, second]) == [first]


def test_order_does_not_matter_between_versions() -> None:
    """Every order of three writes leaves the same one."""
    writes = [ProductPoint("P-1", 5, 9, (1.0,)), ProductPoint("P-1", 6, 3, (2.0,)), ProductPoint("P-1", 6, 2, None)]
    assert all(newest_per_id(order) == [writes[2]] for order in permutations(writes))


def test_stored_payload_cannot_be_overruled() -> None:
    """What orders a point comes from the point, whatever the payload says."""
    point = ProductPoint("P-1", 5, 2, (1.0,), {"title": "Kettle", "version": 99, "deleted": 1, "product_id": "P-9"})
    expected = {"title": "Kettle", "product_id": "P-1", "version": 5, "product_release": 2, "deleted": 0}
    assert point.stored_payload() == expected
    assert not point.is_tombstone


def test_a_point_of_a_target_carries_the_words_of_its_product() -> None:
    """A deletion has none."""
    payload = PointPayload(title="Kelto KG-36 fridge")
    live = BaseProduct("P-1", 1, "base/t1", vector=np.array([0.6, 0.8], np.float32), payload=payload)
    target = Target("products-r0", 0, ProductTower.untrained())
    made, gone = target.points([live, BaseProduct("P-2", 1, "base/t1")])
    assert made.words is not None
    for one, expected in zip(made.words, product_words("P-1", payload), strict=True):
        np.testing.assert_array_equal(one.indices, expected.indices)
        np.testing.assert_array_equal(one.values, expected.values)
    assert gone.words is None

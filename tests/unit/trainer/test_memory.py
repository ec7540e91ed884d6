"""Bounded memories: what they keep, what they forget, and that they come back; how often a product is seen."""

import numpy as np
import pytest

from trainer.memory import (
    LIKED_PRODUCTS,
    LIKED_QUERIES,
    FrequencyEstimator,
    LikedProducts,
    RecentIds,
    RecentQueries,
)


def test_a_repeated_id_is_known_until_it_is_forgotten() -> None:
    """The oldest id makes room; what is kept is kept exactly."""
    ids = RecentIds(capacity=3)
    assert [ids.add(name) for name in "abcabcd"] == [True, True, True, False, False, False, True]
    assert ids.add("a")


def test_ids_return_from_their_array_in_order() -> None:
    """After a restart the same ids are known, and the same one is forgotten next."""
    ids = RecentIds(capacity=2)
    ids.add("a")
    ids.add("b")
    again = RecentIds(ids.to_array(), capacity=2)
    np.testing.assert_array_equal(again.to_array(), ids.to_array())
    assert not again.add("b")
    assert again.add("c")
    assert again.add("a")


def test_no_ids_make_an_empty_array() -> None:
    """A fresh trainer's memory has a shape too."""
    assert RecentIds().to_array().shape == (0, 16)


def test_queries_keep_the_newest_distinct_ones() -> None:
    """A query that returns is new again; the one not asked for longest goes."""
    queries = RecentQueries(capacity=2)
    queries.add(["a", "b", "a", "c"])
    assert queries.newest(10) == ["a", "c"]
    assert queries.newest(1) == ["c"]
    assert queries.newest(0) == []


def test_liked_products_are_bounded_both_ways() -> None:
    """Neither one query nor many can grow the checkpoint without end."""
    liked = LikedProducts()
    for number in range(LIKED_PRODUCTS + 5):
        liked.add("fridge", f"P-{number}")
    assert len(liked.by_query["fridge"]) == LIKED_PRODUCTS
    assert liked.by_query["fridge"][-1] == f"P-{LIKED_PRODUCTS + 4}"
    for number in range(LIKED_QUERIES):
        liked.add(f"q-{number}", "P")
    assert len(liked.by_query) == LIKED_QUERIES
    assert "fridge" not in liked.by_query


def test_a_product_of_every_fourth_step_has_a_rate_of_a_quarter() -> None:
    """The moving average of gaps converges to the true gap."""
    estimator = FrequencyEstimator()
    for step in range(0, 400, 4):
        estimator.observe(["P-1"], step)
    assert estimator.rates(["P-1"]).item() == pytest.approx(0.25, rel=0.01)


def test_a_product_that_was_never_seen_has_rate_0() -> None:
    """Nothing is known of it."""
    assert FrequencyEstimator().rates(["P-1"]).item() == 0.0


def test_the_first_sighting_counts_the_steps_so_far() -> None:
    """Seen once in ten steps is a rate of a tenth, not of one."""
    estimator = FrequencyEstimator()
    estimator.observe(["P-1"], 9)
    assert estimator.rates(["P-1"]).item() == pytest.approx(0.1)


def test_a_launch_in_an_old_stream_is_soon_known_to_be_frequent() -> None:
    """The age of the trainer says nothing of a product that could not be seen before."""
    estimator = FrequencyEstimator()
    for step in range(100_000, 100_030):
        estimator.observe(["P-1"], step)
    assert 0.1 < estimator.rates(["P-1"]).item() <= 1.0


def test_several_sightings_in_one_step_count_once() -> None:
    """A product stands in a step or it does not."""
    once, twice = FrequencyEstimator(), FrequencyEstimator()
    once.observe(["P-1"], 3)
    twice.observe(["P-1", "P-1"], 3)
    np.testing.assert_array_equal(once.rates(["P-1"]), twice.rates(["P-1"]))

"""Bounded memories: what they keep, what they forget, and that they come back."""

import numpy as np

from trainer.core.memory import (
    LIKED_PRODUCTS,
    LIKED_QUERIES,
    LikedProducts,
    RecentIds,
    RecentQueries,
    even_sample,
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


def test_an_even_sample_keeps_both_ends() -> None:
    """Click times of a release span everything it learned from."""
    sample = even_sample(list(range(1000)), 10)
    assert (sample[0], sample[-1], len(sample)) == (0, 999, 10)

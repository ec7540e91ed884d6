"""Queries are encoded once, each on its own."""

import numpy as np

from tests.support.tiny_encoder import TinyEncoder
from trainer.adapters.query_vectors import QueryVectors


def test_a_text_is_encoded_once_and_alone() -> None:
    """Its vector cannot depend on its neighbours, and the second look costs nothing."""
    encoder = TinyEncoder()
    vectors = QueryVectors(encoder)
    first = vectors(["fridge", "laptop", "fridge"])
    second = vectors(["laptop"])
    assert encoder.encoded == ["fridge", "laptop"]
    np.testing.assert_array_equal(first[1], second[0])
    np.testing.assert_array_equal(first[0], first[2])


def test_the_cache_forgets_what_was_not_asked_for_longest() -> None:
    """Memory stays bounded however many queries a shop has."""
    encoder = TinyEncoder()
    vectors = QueryVectors(encoder, capacity=2)
    vectors(["a", "b", "a", "c", "a"])
    vectors(["b"])
    assert encoder.encoded == ["a", "b", "c", "b"]


def test_no_texts_have_a_shape() -> None:
    """A fresh trainer has no recent queries."""
    assert QueryVectors(TinyEncoder())([]).shape == (0, 16)

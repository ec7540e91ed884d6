"""Base vectors are encoded once, kept for their base alone, and a cache that is broken costs time, not the run."""

from pathlib import Path

import numpy as np

from simulator.base_vectors import CACHE_FILE, base_vectors
from tests.support.tiny_encoder import TinyEncoder


def silent(_done: int, _of: int) -> None:
    """Tell nobody."""


def test_repeated_texts_are_encoded_once_and_stand_in_their_order(tmp_path: Path) -> None:
    """Each text gets its own vector however often it comes."""
    encoder = TinyEncoder()
    found = base_vectors(["red fridge", "tv", "red fridge"], encoder, cache=tmp_path, progress=silent)
    assert sorted(encoder.encoded) == ["red fridge", "tv"]
    assert np.array_equal(found, TinyEncoder().encode(["red fridge", "tv", "red fridge"]))


def test_what_the_cache_knows_is_not_encoded_again(tmp_path: Path) -> None:
    """The second run encodes what is new alone, and gives the same vectors."""
    first = base_vectors(["a", "b"], TinyEncoder(), cache=tmp_path, progress=silent)
    encoder = TinyEncoder()
    second = base_vectors(["b", "new", "a"], encoder, cache=tmp_path, progress=silent)
    assert encoder.encoded == ["new"]
    assert np.array_equal(second[[2, 0]], first)


def test_vectors_of_another_base_are_not_used(tmp_path: Path) -> None:
    """A cache of one model is nothing to another."""
    base_vectors(["a"], TinyEncoder(), cache=tmp_path, progress=silent)
    other = TinyEncoder(8)
    assert base_vectors(["a"], other, cache=tmp_path, progress=silent).shape == (1, 8)
    assert other.encoded == ["a"]


def test_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    """Bytes that are no tensors are overwritten."""
    (tmp_path / CACHE_FILE).write_bytes(b"broken")
    for expected in (["a"], []):
        encoder = TinyEncoder()
        base_vectors(["a"], encoder, cache=tmp_path, progress=silent)
        assert encoder.encoded == expected


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    """A folder that is a file, or no folder at all, still gives vectors."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    for cache in (blocked, None):
        assert base_vectors(["a"], TinyEncoder(), cache=cache, progress=silent).shape == (1, 16)


def test_no_texts_give_no_rows() -> None:
    """An empty catalogue has the width of its base."""
    assert base_vectors([], TinyEncoder(), cache=None, progress=silent).shape == (0, 16)

"""The heads: identity at the start, unit rows, the same weights back from tensors."""

import numpy as np
import pytest
import torch

from towers.heads import Head, ProductHead, QueryHead, apply_head, copied, head_tensors, mixed

DIM = 12


def unit_rows(count: int) -> np.ndarray:
    """Return random unit rows."""
    rows = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def moved(head: Head) -> Head:
    """Return the head with weights that are no longer the identity's."""
    with torch.no_grad():
        for weights in head.parameters():
            weights.add_(0.1)
    return head


@pytest.mark.parametrize("head", [QueryHead(DIM, 4), ProductHead(DIM, 8)], ids=["query", "product"])
def test_an_untrained_head_changes_nothing(head: Head) -> None:
    """An untrained Millrace ranks exactly as its base model."""
    rows = unit_rows(5)
    np.testing.assert_allclose(apply_head(head, rows), rows, atol=1e-6)


@pytest.mark.parametrize("head", [QueryHead(DIM, 4), ProductHead(DIM, 8)], ids=["query", "product"])
def test_a_trained_head_gives_other_unit_rows(head: Head) -> None:
    """Whatever the weights, cosine search stays possible: rows have length 1."""
    rows = unit_rows(5)
    after = apply_head(moved(head), rows)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1.0, atol=1e-6)
    assert np.abs(after - rows).max() > 0.01


@pytest.mark.parametrize("head", [QueryHead(DIM, 4), ProductHead(DIM, 8)], ids=["query", "product"])
def test_a_head_returns_from_its_tensors(head: Head) -> None:
    """Tensors carry everything: the head made from them gives the same bits."""
    again = type(moved(head)).from_tensors(head_tensors(head))
    np.testing.assert_array_equal(apply_head(again, unit_rows(3)), apply_head(head, unit_rows(3)))


def test_head_tensors_are_copies() -> None:
    """What was saved does not change when training goes on."""
    head = QueryHead(DIM, 4)
    saved = head_tensors(head)
    moved(head)
    assert not saved["up"].any()


def test_two_fresh_heads_are_equal() -> None:
    """Every trainer starts from the same weights."""
    assert torch.equal(QueryHead(DIM, 4).down, QueryHead(DIM, 4).down)


def test_both_heads_learn_from_the_identity() -> None:
    """Zero-initialised means no change at the start, not no gradient."""
    rows = torch.from_numpy(unit_rows(4))
    for head in (QueryHead(DIM, 4), ProductHead(DIM, 8)):
        (head(rows) @ torch.ones(DIM)).sum().backward()
        assert any(bool(weights.grad.abs().sum() > 0) for weights in head.parameters() if weights.grad is not None)


def test_apply_head_takes_no_rows_and_read_only_rows() -> None:
    """An empty catalogue and a matrix that came from bytes are both fine."""
    assert apply_head(QueryHead(DIM, 4), np.empty((0, DIM), dtype=np.float32)).shape == (0, DIM)
    frozen = unit_rows(2)
    frozen.flags.writeable = False
    assert apply_head(QueryHead(DIM, 4), frozen).shape == (2, DIM)


def test_mixing_goes_a_share_of_the_way_and_copies_are_independent() -> None:
    """Half way is the mean of the weights; training a copy leaves the original alone."""
    far = QueryHead(DIM, 4)
    with torch.no_grad():
        far.up.fill_(0.5)
    half = mixed(QueryHead(DIM, 4), far, share=0.5)
    np.testing.assert_allclose(head_tensors(half)["up"], head_tensors(far)["up"] / 2, rtol=1e-6)
    assert mixed(QueryHead(DIM, 4), far, share=1.0) is far
    twin = copied(far)
    with torch.no_grad():
        twin.up.zero_()
    assert head_tensors(far)["up"].any()

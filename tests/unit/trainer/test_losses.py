"""The terms of the loss against written-out mathematics, and what must hold of all of them."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from trainer.losses import dpo_loss, kl_anchor, multi_positive_loss, trusted_negatives

B = 10.0


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + exp(-x))


def test_dpo_is_the_written_out_formula() -> None:
    """Mean over pairs of w * -log sigma(b * (policy margin - reference margin))."""
    loss = dpo_loss(torch.tensor([0.3, -0.1]), torch.tensor([0.1, 0.2]), weights=torch.tensor([2.0, 0.5]), b=B)
    expected = (2.0 * -log(sigmoid(B * 0.2)) + 0.5 * -log(sigmoid(B * -0.3))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dpo_of_policy_equal_to_reference_is_log_2() -> None:
    """Where nothing was learned yet the loss of a pair of weight 1 is exactly log 2, whatever the margins."""
    margins = torch.tensor([0.7, -0.4, 0.0])
    assert dpo_loss(margins, margins, weights=torch.ones(3), b=B).item() == pytest.approx(log(2), rel=1e-6)


def test_swapping_chosen_and_rejected_flips_the_gradient() -> None:
    """At equality a pair and its mirror pull with the same force in opposite directions."""

    def gradient(sign: float) -> float:
        """Return the gradient of the policy margin."""
        policy = torch.tensor([0.2], requires_grad=True)
        dpo_loss(sign * policy, sign * torch.tensor([0.2]), weights=torch.ones(1), b=B).backward()  # type: ignore[no-untyped-call] # torch ships none
        assert policy.grad is not None
        return policy.grad.item()

    assert gradient(1.0) == pytest.approx(-B / 2)
    assert gradient(-1.0) == pytest.approx(B / 2)


def test_a_pair_of_weight_0_has_no_gradient() -> None:
    """A weight of zero is the same as no pair, but for the count that divides."""
    policy = torch.tensor([0.2, 0.3], requires_grad=True)
    loss = dpo_loss(policy, torch.zeros(2), weights=torch.tensor([0.0, 1.0]), b=B)
    loss.backward()  # type: ignore[no-untyped-call] # torch ships none
    assert policy.grad is not None
    assert policy.grad[0].item() == 0.0
    assert policy.grad[1].item() != 0.0


def test_only_the_ratio_of_mirrored_weights_moves_the_optimum() -> None:
    """With weights A and A' the loss of a pair and its mirror is least where b * margin = log(A / A')."""
    margin = torch.tensor(log(3.0 / 1.0) / B, requires_grad=True)
    loss = dpo_loss(torch.stack([margin, -margin]), torch.zeros(2), weights=torch.tensor([3.0, 1.0]), b=B)
    loss.backward()  # type: ignore[no-untyped-call] # torch ships none
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0.0, abs=1e-5)


def test_multi_positive_is_the_written_out_formula() -> None:
    """Each row: -log(e^own / (e^own + sum over its negatives)); candidates outside the mask do not exist."""
    logits = torch.tensor([[1.0, 0.5, -1.0, 9.0], [0.0, 2.0, 1.0, 9.0]])
    negatives = torch.tensor([[False, True, True, False], [True, False, False, False]])
    loss = multi_positive_loss(logits, torch.tensor([0, 1]), negatives=negatives, weights=torch.tensor([0.5, 2.0]))
    first = -log(exp(1.0) / (exp(1.0) + exp(0.5) + exp(-1.0)))
    second = -log(exp(2.0) / (exp(2.0) + exp(0.0)))
    assert loss.item() == pytest.approx(0.5 * first + 2.0 * second, rel=1e-5)


def test_positives_of_one_query_do_not_compete() -> None:
    """A row's loss does not change with the logit of another positive of the same query."""
    negatives = torch.tensor([[False, False, True]])

    def loss(other: float) -> float:
        """Return the loss of the row where the other positive has this logit."""
        logits = torch.tensor([[1.0, other, 0.0]])
        return multi_positive_loss(logits, torch.tensor([0]), negatives=negatives, weights=torch.ones(1)).item()

    assert loss(-5.0) == loss(5.0)


def test_kl_is_the_written_out_formula() -> None:
    """KL of two softmaxes over random products, averaged over queries."""
    policy, reference, tau = [[0.2, 0.1]], [[0.1, 0.3]], 0.5
    p = [exp(x / tau) for x in policy[0]]
    r = [exp(x / tau) for x in reference[0]]
    expected = sum(y / sum(r) * log((y / sum(r)) / (x / sum(p))) for x, y in zip(p, r, strict=True))
    assert kl_anchor(torch.tensor(policy), torch.tensor(reference), tau=tau).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    """The anchor costs nothing until something moves."""
    scores = torch.tensor([[0.5, 0.1, -0.2]])
    assert kl_anchor(scores, scores, tau=0.05).item() == pytest.approx(0.0, abs=1e-7)
    assert kl_anchor(scores * 1.1, scores, tau=0.05).item() > 0


def losses_of(scores: Tensor, *, weight: float) -> list[Tensor]:
    """Return every term for scores (1, 3) where everything that can be masked is masked."""
    weights = torch.full((1,), weight)
    masked = torch.zeros(1, 3, dtype=torch.bool)
    return [
        dpo_loss(scores[:, 0] - scores[:, 1], torch.zeros(1), weights=weights, b=B),
        multi_positive_loss(scores / 0.05, torch.tensor([0]), negatives=masked, weights=weights),
        kl_anchor(scores[:, 3:], scores[:, 3:], tau=0.05),
    ]


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_neither_loss_nor_gradient_is_ever_nan(size: float, weight: float) -> None:
    """All masked, weight zero, absurd scores: every term and every gradient stays finite."""
    scores = torch.tensor([[1.0, -1.0, 0.5]]).mul(size).requires_grad_()
    for loss in losses_of(scores, weight=weight):
        (gradient,) = torch.autograd.grad(loss, scores, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_no_pairs_and_no_rows_give_zero() -> None:
    """An empty batch is worth nothing, not NaN."""
    none = torch.zeros(0)
    assert dpo_loss(none, none, weights=none, b=B).item() == 0.0
    empty = torch.zeros(0, 4)
    assert multi_positive_loss(empty, none.long(), negatives=empty.bool(), weights=none).item() == 0.0


def test_negatives_are_trusted_only_below_the_guide_and_when_no_twin_or_known_positive() -> None:
    """Each of the three masks removes exactly its own candidate."""
    reference = torch.tensor([[0.80, 0.70, 0.60, 0.50, 0.40]])
    similarities = torch.tensor([[1.00, 0.50, 0.99, 0.50, 0.50]])
    known = torch.tensor([[False, False, False, False, True]])
    trusted = trusted_negatives(
        reference,
        torch.tensor([0.80]),
        similarities=similarities,
        known_positives=known,
        guide_ratio=0.85,
        duplicate_cosine=0.95,
    )
    assert trusted.tolist() == [[False, False, False, True, False]]


def test_the_guide_also_works_where_the_positive_scores_below_zero() -> None:
    """The margin is relative to the size of the score, so a negative score still leaves room below it."""
    trusted = trusted_negatives(
        torch.tensor([[-0.20, -0.22, -0.30]]),
        torch.tensor([-0.20]),
        similarities=torch.zeros(1, 3),
        known_positives=torch.zeros(1, 3, dtype=torch.bool),
        guide_ratio=0.85,
        duplicate_cosine=0.95,
    )
    assert trusted.tolist() == [[False, False, True]]

"""Safety checks: what passes, what is held back, and how far a step is shortened."""

import numpy as np
import pytest
import torch

from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, PRODUCTS
from towers.heads import ProductHead, QueryHead, Towers, head_tensors
from trainer.learner import Sample
from trainer.release.safety import SafetyCaps, drift, first_safe, judge, overlap_at_top


def sample() -> Sample:
    """Return queries and products of the small catalogue."""
    encoder = TinyEncoder(DIM)
    return Sample(encoder.encode(["fridge quiet", "laptop", "oven red"]), encoder.encode(PRODUCTS))


def moved_query(size: float) -> QueryHead:
    """Return a query head that moved; the larger the size, the farther."""
    head = QueryHead(DIM)
    with torch.no_grad():
        head.up.copy_(torch.randn(head.up.shape, generator=torch.Generator().manual_seed(1)) * size)
    return head


def towers(query: QueryHead | None = None, product: ProductHead | None = None) -> Towers:
    """Return towers, untrained where not given."""
    return Towers(query or QueryHead(DIM), product or ProductHead(DIM))


def test_no_step_passes_with_no_drift_and_full_overlap() -> None:
    """A release equal to the one in force moves nothing."""
    verdict = judge(towers(), towers(), sample(), caps=SafetyCaps())
    values = {check.name: check.value for check in verdict.checks}
    assert verdict.towers is not None
    assert values["finite"] == 1.0
    assert values["query_drift_p95"] == pytest.approx(0.0, abs=1e-6)
    assert values["overlap_at_10"] == 1.0


def test_a_small_step_is_released_whole() -> None:
    """Normal learning passes at once."""
    verdict = first_safe(towers(), towers(moved_query(0.01)), sample(), caps=SafetyCaps())
    assert verdict.share == 1.0
    assert verdict.towers is not None


def test_a_large_step_is_shortened_until_it_passes() -> None:
    """The release is the largest tried share of the way; its numbers are those of that share."""
    wanted = towers(moved_query(0.8))
    verdict = first_safe(towers(), wanted, sample(), caps=SafetyCaps(query_drift_p95=0.2, overlap=0.0))
    assert verdict.towers is not None
    assert verdict.share < 1.0
    np.testing.assert_allclose(
        head_tensors(verdict.towers.query)["up"], verdict.share * head_tensors(wanted.query)["up"], rtol=1e-6
    )
    assert all(check.passed for check in verdict.checks)


def test_a_step_that_fails_at_every_share_is_held_with_its_numbers() -> None:
    """Nothing is released, and the checks say which limit was broken."""
    verdict = first_safe(towers(), towers(moved_query(50.0)), sample(), caps=SafetyCaps(query_drift_p95=1e-9))
    assert verdict.towers is None
    assert next(check.name for check in verdict.checks if not check.passed) == "query_drift_p95"


def test_answers_that_change_too_much_are_held_although_vectors_moved_little() -> None:
    """Overlap is a check of its own."""
    caps = SafetyCaps(query_drift_p95=1.0, product_drift_p95=1.0, overlap=1.01)
    assert first_safe(towers(), towers(moved_query(0.01)), sample(), caps=caps).towers is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_released(value: float) -> None:
    """No share of a broken head is sound."""
    broken = moved_query(0.1)
    with torch.no_grad():
        broken.up[0, 0] = value
    verdict = first_safe(towers(), towers(broken), sample(), caps=SafetyCaps())
    assert verdict.towers is None
    assert [(check.name, check.passed) for check in verdict.checks] == [("finite", False)]


def test_each_tower_has_a_drift_of_its_own() -> None:
    """A manifest's drift speaks of the tower that the release is of."""
    product = ProductHead(DIM)
    with torch.no_grad():
        product.output_weight.fill_(0.05)
    verdict = judge(towers(), towers(product=product), sample(), caps=SafetyCaps())
    assert verdict.product_drift_mean > 0
    assert verdict.query_drift_mean == pytest.approx(0.0, abs=1e-6)
    assert {check.name: check.value for check in verdict.checks}["product_drift_p95"] > 0


def test_an_empty_shop_can_release() -> None:
    """Without queries or products there is nothing to compare, and nothing to break."""
    nothing = np.empty((0, DIM), dtype=np.float32)
    assert judge(towers(), towers(), Sample(nothing, nothing), caps=SafetyCaps()).towers is not None


def test_overlap_counts_what_stays_among_the_first() -> None:
    """Order within the first ten does not matter, membership does."""
    before = np.arange(20.0)[None, :]
    after = before.copy()
    after[0, :5], after[0, 15:] = before[0, 15:], before[0, :5]
    assert overlap_at_top(before, after) == 0.5


def test_drift_is_within_zero_and_one() -> None:
    """Opposite vectors and rounding do not leave the manifest's range."""
    rows = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert drift(rows, np.array([[-1.0, 0.0], [1.0000001, 0.0]], dtype=np.float32)).tolist() == [1.0, 0.0]

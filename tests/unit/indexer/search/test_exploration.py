"""Perturbed lists: seeded, computed again by anyone, wide where little is known."""

import numpy as np
import pytest
from scipy import stats

from indexer.search.exploration import Policy, deviate
from indexer.search.retrieval import Hit


def hits(*scores: float, widths: float = 0.0) -> list[Hit]:
    """Return candidates, best first."""
    return [Hit(score, {"product_id": f"P-{place}", "quality_width": widths}) for place, score in enumerate(scores)]


def places(ranked: list[Hit]) -> list[str]:
    """Return the products in their order."""
    return [hit.payload["product_id"] for hit in ranked]


def test_deviates_are_standard_normal_over_products_and_over_seeds() -> None:
    """Whichever of the two varies."""
    for drawn in ([deviate(7, f"P-{n}") for n in range(4_000)], [deviate(seed, "P-1") for seed in range(4_000)]):
        assert stats.kstest(drawn, "norm").pvalue > 0.001
        assert np.isfinite(drawn).all()


def test_noise_moves_what_is_near_and_leaves_what_is_far() -> None:
    """A nat is a tenth of a score: 0.3 nats swap neighbours 0.01 apart, and none that are 0.3 apart."""
    policy = Policy.named("noise:0.3")
    near = {tuple(places(policy.ranked(hits(0.51, 0.5), seed=seed, k=2))) for seed in range(50)}
    assert len(near) == 2
    assert {tuple(places(policy.ranked(hits(0.8, 0.5), seed=seed, k=2))) for seed in range(50)} == {("P-0", "P-1")}


def test_draws_move_only_what_is_unsure() -> None:
    """A product whose quality is known keeps its place."""
    policy = Policy.named("draws")
    sure, unsure = hits(0.51, 0.5), hits(0.51, 0.5, widths=1.0)
    assert {tuple(places(policy.ranked(sure, seed=seed, k=2))) for seed in range(50)} == {("P-0", "P-1")}
    assert len({tuple(places(policy.ranked(unsure, seed=seed, k=2))) for seed in range(50)}) == 2


def test_scores_stay_what_they_are_and_the_list_is_as_long_as_asked() -> None:
    """The score is that of the model; only places are perturbed."""
    ranked = Policy.named("noise:5").ranked(hits(0.9, 0.8, 0.7, 0.6), seed=3, k=3)
    assert len(ranked) == 3
    assert {hit.score for hit in ranked} <= {0.9, 0.8, 0.7, 0.6}


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_one_seed_is_one_list(seed: int) -> None:
    """In any order of the candidates."""
    policy, candidates = Policy.named("noise:2"), hits(0.9, 0.8, 0.7, 0.6)
    again = policy.ranked(candidates[::-1], seed=seed, k=4)
    assert places(policy.ranked(candidates, seed=seed, k=4)) == places(again)

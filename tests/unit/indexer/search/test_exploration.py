"""Perturbed lists: seeded, computed again by anyone, wide where little is known."""

from itertools import chain

import numpy as np
import pytest
from scipy import stats

from contracts.outcomes import first_swapped
from indexer.search.exploration import JITTER, MOST_JITTERED, Policy, deviate, swapped
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
    near = {tuple(places(policy.ranked(hits(0.51, 0.5), seed=seed))) for seed in range(50)}
    assert len(near) == 2
    assert {tuple(places(policy.ranked(hits(0.8, 0.5), seed=seed))) for seed in range(50)} == {("P-0", "P-1")}


def test_draws_move_only_what_is_unsure() -> None:
    """A product whose quality is known keeps its place."""
    policy = Policy.named("draws")
    sure, unsure = hits(0.51, 0.5), hits(0.51, 0.5, widths=1.0)
    assert {tuple(places(policy.ranked(sure, seed=seed))) for seed in range(50)} == {("P-0", "P-1")}
    assert len({tuple(places(policy.ranked(unsure, seed=seed))) for seed in range(50)}) == 2


def test_scores_stay_what_they_are_and_none_is_lost() -> None:
    """The score is that of the model; only places are perturbed."""
    ranked = Policy.named("noise:5").ranked(hits(0.9, 0.8, 0.7, 0.6), seed=3)
    assert [hit.score for hit in ranked] != [0.9, 0.8, 0.7, 0.6]
    assert sorted(hit.score for hit in ranked) == [0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_one_seed_is_one_list(seed: int) -> None:
    """In any order of the candidates."""
    policy, candidates = Policy.named("noise:2"), hits(0.9, 0.8, 0.7, 0.6)
    again = policy.ranked(candidates[::-1], seed=seed)
    assert places(policy.ranked(candidates, seed=seed)) == places(again)


def test_jitter_moves_neighbours_however_near_the_scores_are() -> None:
    """About a quarter of the times, for its scale is that of the list; further down nothing moves."""
    for gap in (0.1, 0.001):
        candidates = hits(*(0.9 - gap * place for place in range(MOST_JITTERED + 5)))
        ranked = [places(JITTER.ranked(candidates, seed=seed)) for seed in range(400)]
        first_two = sum(one.index("P-0") > one.index("P-1") for one in ranked) / len(ranked)
        assert first_two == pytest.approx(stats.norm.sf(2**-0.5), abs=0.07)
        assert {tuple(one[MOST_JITTERED:]) for one in ranked} == {tuple(places(candidates)[MOST_JITTERED:])}


def test_jitter_leaves_what_the_query_names_where_it_stands() -> None:
    """Its low score makes no gap either."""
    named = [hit._replace(pin=1.0) for hit in hits(0.1)]
    others = [Hit(0.9 - 0.1 * place, {"product_id": f"Q-{place}"}) for place in range(5)]
    ranked = [places(JITTER.ranked([*named, *others], seed=seed)) for seed in range(50)]
    assert {one[0] for one in ranked} == {"P-0"}
    assert len({tuple(one) for one in ranked}) > 10


@pytest.mark.parametrize("offset", [0, 1])
def test_each_pair_of_neighbours_is_exchanged_half_of_the_times(offset: int) -> None:
    """On its own, and the pairs are those that the seed names: everything else keeps its place."""
    seeds = range(offset, 4_000, 2)
    assert {first_swapped(seed) for seed in seeds} == {1 + offset}
    shown = np.array([swapped([range(9)], seed)[0] for seed in seeds])
    first = np.arange(offset, 8, 2)
    exchanged = shown[:, first] == first + 1
    assert (shown[:, first] + shown[:, first + 1] == 2 * first + 1).all()
    assert exchanged.mean(axis=0) == pytest.approx(np.full(len(first), 0.5), abs=0.05)
    assert np.abs(np.corrcoef(exchanged.T) - np.eye(len(first))).max() < 0.1
    assert (shown[:, 8 if offset == 0 else 0] == (8 if offset == 0 else 0)).all()


def test_no_product_leaves_its_page() -> None:
    """Pairs go on through the pages, and one that a page break parts stays as it is."""
    pages = [range(5), range(5, 10), range(10, 12)]
    for seed in range(200):
        exchanged = swapped(pages, seed)
        assert [sorted(page) for page in exchanged] == [[*page] for page in pages]
        moved = {at for at, product in enumerate(chain(*exchanged), 1) if product != at - 1}
        assert all((at - first_swapped(seed)) % 2 == 1 or at + 1 in moved for at in moved)

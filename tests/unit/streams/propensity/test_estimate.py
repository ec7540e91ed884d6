"""Sums to propensities: written-out solutions, the prior, grids, bands, trust, and logs whose truth is known."""

import math
from functools import cache

import numpy as np
import pytest

from contracts.outcomes import Cell
from streams.propensity.contests import Contest, Prior, solve
from streams.propensity.estimate import Estimate, estimate, tied_clicks, trust_fit
from streams.propensity.evidence import GROUPS, PLACES, UNIT, CellSums
from streams.propensity.partition_propensity import PartitionPropensity
from tests.support.position_log import PositionShop
from tests.support.propensity_errors import poisson_thetas, run_shop

run = cache(run_shop)


def side(clicks: float) -> list[int]:
    """Return clicks spread over all groups."""
    return [round(clicks * UNIT / GROUPS)] * GROUPS


def sums_of(clicks: dict[tuple[int, int], tuple[float, float]]) -> CellSums:
    """Return the sums of swaps with these clicks on upper and lower positions."""
    return CellSums(1, 0, {("swap", *pair): [*side(upper), *side(lower)] for pair, (upper, lower) in clicks.items()})


def thetas(found: Estimate, number: int = PLACES) -> list[float]:
    """Return the first propensities."""
    return [slot.theta for slot in found.slots[:number]]


def test_without_a_prior_a_pair_has_the_ratio_of_its_clicks() -> None:
    """300 clicks above and 100 below: log theta differs by log 3."""
    assert solve([Contest({0: 1.0}, 300, 100)], Prior([0.0], [1e4])).at == pytest.approx([math.log(3)], abs=1e-6)


def test_swaps_and_histories_weigh_by_their_clicks() -> None:
    """Two contests of one pair are one with the clicks of both: (300 + 30) to (100 + 60)."""
    both = [Contest({0: 1.0}, 300, 100), Contest({0: 1.0}, 30, 60)]
    assert solve(both, Prior([0.0], [1e4])).at == pytest.approx([math.log(330 / 160)], abs=1e-6)


def test_the_prior_pulls_by_its_width() -> None:
    """At the solution the pull of clicks, 40 - 50 / (1 + exp(-x)), is that of the prior, x / width^2."""
    (found,) = solve([Contest({0: 1.0}, 40, 10)], Prior([0.0], [0.5])).at
    assert 40 - 50 / (1 + math.exp(-found)) == pytest.approx(found / 0.25, abs=1e-4)
    assert 0 < found < math.log(4)


def test_the_evidence_of_a_prior_is_how_probable_it_makes_the_clicks() -> None:
    """Of 40 wins and 10: the integral over the prior, up to a constant of all priors, as far as Laplace is right."""
    contest = Contest({0: 1.0}, 40, 10)

    def integral(width: float) -> float:
        """Integrate likelihood times prior numerically."""
        x = np.linspace(-6, 6, 20_001)
        likelihood = -40 * np.log1p(np.exp(-x)) - 10 * np.log1p(np.exp(x)) - x**2 / (2 * width**2)
        return float(np.log(np.trapezoid(np.exp(likelihood), x) / width))

    ours = [solve([contest], Prior([0.0], [width])).evidence for width in (0.3, 2.0)]
    assert ours[1] - ours[0] == pytest.approx(integral(2.0) - integral(0.3), abs=0.02)


def test_without_clicks_the_prior_is_all_there_is() -> None:
    """1/position, every position known by the prior only, in a band that says how little that is."""
    found = estimate(Cell(), CellSums())
    assert thetas(found) == pytest.approx([1 / k for k in range(1, PLACES + 1)])
    assert [slot.prior_only for slot in found.slots] == [False] + [True] * (PLACES - 1)
    assert found.slots[9].low < 0.06
    assert found.slots[9].high > 0.2


def test_chains_of_swaps_multiply() -> None:
    """With many clicks theta_3 is theta_2 times the ratio of the second pair."""
    found = estimate(Cell(), sums_of({(1, 2): (9e5, 3e5), (2, 3): (8e5, 4e5)}))
    assert thetas(found, 3) == pytest.approx([1, 1 / 3, 1 / 6], rel=0.01)
    assert (found.slots[2].low, found.slots[2].high) == pytest.approx((1 / 6, 1 / 6), rel=0.05)


def test_a_grid_has_rows_and_columns() -> None:
    """A row's part and a column's part multiply: what is known of two rows and two columns tells all four slots."""
    found = estimate(Cell(layout="grid", columns=2), sums_of({(1, 2): (8e5, 4e5), (1, 3): (9e5, 3e5)}))
    assert thetas(found, 4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 6], rel=0.02)


def test_a_position_with_few_clicks_on_its_way_to_the_top_is_known_by_the_prior_only() -> None:
    """The weakest pair on the best way decides: 90 clicks between 2 and 3 tie neither 3 nor what hangs on it."""
    sums = sums_of({(1, 2): (300, 200), (2, 3): (50, 40), (3, 4): (500, 400), (5, 6): (500, 400)})
    assert tied_clicks(sums) == pytest.approx({1: math.inf, 2: 500, 3: 90, 4: 90}, rel=1e-3)
    assert [slot.prior_only for slot in estimate(Cell(), sums).slots[:6]] == [False, False, True, True, True, True]


def test_the_same_sums_give_the_same_bands() -> None:
    """Replicas are drawn by hash: a restart publishes what would have been published."""
    sums = sums_of({(1, 2): (300, 200)})
    assert estimate(Cell(), sums) == estimate(Cell(), sums)


def test_a_band_is_wide_if_few_products_made_the_clicks() -> None:
    """As many clicks from one (query, product) group are worth less than from all."""
    lone = CellSums(1, 0, {("swap", 1, 2): [300 * UNIT, *[0] * (GROUPS - 1), 100 * UNIT, *[0] * (GROUPS - 1)]})
    many = estimate(Cell(), sums_of({(1, 2): (300, 100)})).slots[1]
    few = estimate(Cell(), lone).slots[1]
    assert few.high / few.low > 1.5 * many.high / many.low


def trust_sums(slope: float, intercept: float) -> list[int]:
    """Return the sums of products that lie on a line without noise, in every group a little otherwise."""
    sums = [0] * (5 * GROUPS)
    for group in range(GROUPS):
        for x in (0.1, 0.2, 0.4, 0.3 + group / 200):
            c = slope * x + intercept
            for name, value in enumerate((1, c, x, c * x, x * x)):
                sums[name * GROUPS + group] += round(UNIT * value)
    return sums


def test_a_line_through_products_is_found() -> None:
    """The slope is the ratio of the examinations, the intercept what trust adds."""
    found = trust_fit(2, trust_sums(0.5, 0.08))
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((0.5, 0.08), abs=1e-3)


def test_products_of_one_appeal_give_no_line() -> None:
    """Nothing is said instead of something wild."""
    flat = [0] * (5 * GROUPS)
    for group in range(GROUPS):
        for name, value in enumerate((1, 0.1, 0.2, 0.02, 0.04)):
            flat[name * GROUPS + group] = round(UNIT * value)
    assert trust_fit(2, flat) is None


SHOPS = {"flat": 22, "prior": 23, "steep": 24, "eye tracking": 25}
"""Truth -> seed: each shop has luck of its own."""


@pytest.mark.slow
def test_the_default_exploration_finds_examination_within_a_tenth() -> None:
    """After 40,000 lists of shops with feedback, over all positions; raw click-through is far off."""
    runs = [run(*shop) for shop in SHOPS.items()]
    assert np.mean([one.error(one.thetas) for one in runs]) <= 0.1
    assert min(one.error(one.raw_thetas) for one in runs) > 0.2


@pytest.mark.slow
def test_the_truth_is_inside_the_band() -> None:
    """In nine of ten positions at least, whatever the truth, and no band is as wide as the prior's alone."""
    runs = [run(*shop) for shop in SHOPS.items()]
    slots = [slot for one in runs for slot in zip(one.found.slots[1:10], one.truth[1:], strict=True)]
    assert np.mean([slot.low <= theta <= slot.high for slot, theta in slots]) >= 0.9
    prior = [slot.high / slot.low for slot in estimate(Cell(), CellSums()).slots]
    assert all(slot.high / slot.low < prior[slot.position - 1] for slot, _ in slots)


@pytest.mark.slow
def test_products_compared_with_themselves_come_to_the_truth_and_no_library_comes_closer() -> None:
    """If every list is jittered the error is a few hundredths; scikit-learn's Poisson regression is the peer."""
    one = run("eye tracking", 22, lists=20_000, swapped=0.0, anchored=1.0)
    error = one.error(one.thetas)
    assert error < 0.07
    assert error <= one.error(poisson_thetas(one.explored)) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("trust", "alarm"), [((), False), ((0.25, 0.0, 0.0, 0.0, 0.0), True)])
def test_trust_in_the_rank_raises_the_alarm(trust: tuple[float, ...], alarm: bool) -> None:
    """Shoppers who click the first slot because it is first are found out; who only looks there more is not."""
    shop = PositionShop([1, 0.7, 0.5, 0.4, 0.3], seed=5, swapped=0.0, anchored=1.0, trust=trust, queries=60)
    rules = PartitionPropensity(0, half_life_lists=20_000)
    for search in shop.lists(25_000):
        rules.count(search)
    ((cell, sums),) = rules.cells.items()
    assert estimate(cell, sums).trust_alarm is alarm

"""Every loss against its formula written out, its gradient against differences, and what no loss may depend on."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.planted_shop import PlantedShop, cells_of
from trainer.preference.evidence import Cells
from trainer.preference.losses import (
    HINGE_MARGIN,
    LOSSES,
    SMOOTHING,
    LossName,
    Targets,
    logistic,
    pairs_of,
    softmax,
    surprise,
)

NAMES: tuple[LossName, ...] = get_args(LossName)
ROWS = [(1, 10, 2.0, 1.0), (1, 11, 0.0, 0.5), (1, 12, 1.0, 2.0), (4, 10, 3.0, 1.5)]
"""(query, product, clicks, showings); the second query has one product alone."""
SCORES = np.array([0.3, -0.6, 1.1, 0.2])


def targets(cells: Cells) -> Targets:
    """Return the cells with all of their pairs."""
    return Targets(cells, pairs_of(cells))


def rate(clicks: float, showings: float) -> float:
    """Return the smoothed click rate."""
    return (clicks + SMOOTHING) / (showings + 2 * SMOOTHING)


def written_out(name: LossName) -> float:
    """Return the loss of ROWS under SCORES, pair by pair or product by product."""
    total = 0.0
    for query in (1, 4):
        rows = [(row, score) for row, score in zip(ROWS, SCORES, strict=True) if row[0] == query]
        everything = sum(showings for (_, _, _, showings), _ in rows)
        mass = sum(showings * math.exp(score) for (_, _, _, showings), score in rows)
        for (_, i, clicks, showings), score in rows:
            if name == "softmax":
                total -= clicks * math.log(showings * math.exp(score) / mass)
                continue
            for (_, j, other_clicks, other_showings), other in rows:
                if i == j:
                    continue
                weight, z = clicks * other_showings / everything, score - other
                wanted = math.log(rate(clicks, showings) / rate(other_clicks, other_showings))
                total += (
                    weight
                    * {
                        "logistic": math.log(1 + math.exp(-z)),
                        "hinge": max(0.0, HINGE_MARGIN - z),
                        "squared": (z - wanted) ** 2 / 2,
                        "ranknet": math.log(1 + math.exp(-z)) if wanted > 0 else 0.0,
                    }[name]
                )
    return total


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_formula(name: LossName) -> None:
    """On four cells the value is what the formula gives when it is written out."""
    value, _ = LOSSES[name](SCORES, targets(cells_of(ROWS)))
    assert value == pytest.approx(written_out(name), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_is_the_slope_of_its_loss(name: LossName) -> None:
    """The gradient agrees with central differences of the value, cell by cell."""
    shop = PlantedShop(products=8, queries=5)
    held_against = targets(shop.cells(40))
    scores = np.random.default_rng(2).standard_normal(len(held_against.cells))
    _, gradient = LOSSES[name](scores, held_against)
    step = 1e-5
    for cell in range(len(scores)):
        moved = np.zeros(len(scores))
        moved[cell] = step
        above, _ = LOSSES[name](scores + moved, held_against)
        below, _ = LOSSES[name](scores - moved, held_against)
        assert gradient[cell] == pytest.approx((above - below) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(shifts=st.lists(st.floats(-20, 20), min_size=2, max_size=2))
def test_a_constant_added_to_a_querys_scores_changes_nothing(name: LossName, shifts: list[float]) -> None:
    """Only differences within a query count, so the pull on each query's scores sums to 0."""
    cells = cells_of(ROWS)
    value, gradient = LOSSES[name](SCORES, targets(cells))
    shifted, shifted_gradient = LOSSES[name](SCORES + cells.spread(np.array(shifts)), targets(cells))
    assert shifted == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert shifted_gradient == pytest.approx(gradient, abs=1e-9)
    assert cells.sums(gradient) == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_with_one_product_says_nothing(name: LossName) -> None:
    """Where there was no choice there is no loss and no pull."""
    value, gradient = LOSSES[name](np.array([5.0]), targets(cells_of([(1, 3, 4.0, 2.0)])))
    assert value == pytest.approx(0, abs=1e-12)
    assert gradient == pytest.approx([0], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e3, -1e3])
def test_extreme_scores_stay_finite(name: LossName, size: float) -> None:
    """Scores a thousand nats apart overflow nothing."""
    value, gradient = LOSSES[name](np.array([size, 0.0, -size, 0.0]), targets(cells_of(ROWS)))
    assert math.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_pairs_are_all_of_one_query_with_a_click_first() -> None:
    """Each clicked cell meets every other cell of its query, never itself or another query's."""
    pairs = pairs_of(cells_of(ROWS))
    assert sorted(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 0), (2, 1)]


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.01, 50)), min_size=2, max_size=5),
)
def test_weights_of_a_pair_and_its_reverse_are_in_the_ratio_of_click_rates(cells: list[tuple[float, float]]) -> None:
    """A product seen twice as often with twice the clicks is not preferred: position bias is undone."""
    pairs = pairs_of(cells_of([(1, number, clicks, showings) for number, (clicks, showings) in enumerate(cells)]))
    places = zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    weight = dict(zip(places, pairs.weights.tolist(), strict=True))
    assert len(weight) == len(cells) * (len(cells) - 1)
    for (i, j), value in weight.items():
        rates = [cells[place][0] / cells[place][1] for place in (i, j)]
        assert value / weight[j, i] == pytest.approx(rates[0] / rates[1])


@pytest.mark.parametrize("z", [-2.0, 0.0, 0.7])
def test_of_two_products_seen_alike_logistic_is_half_of_softmax(z: float) -> None:
    """With equal showings a choice of two is one comparison; each product then had half of the showings."""
    both = targets(cells_of([(1, 0, 3.0, 2.0), (1, 1, 1.0, 2.0)]))
    value, gradient = logistic(np.array([z, 0.0]), both)
    expected, slope = softmax(np.array([z, 0.0]), both)
    assert 2 * value == pytest.approx(expected)
    assert 2 * gradient == pytest.approx(slope)


def test_of_two_products_logistic_and_softmax_have_one_optimum() -> None:
    """Whatever the showings, both are content when scores differ by the log ratio of the click rates."""
    both = targets(cells_of([(1, 0, 3.0, 2.0), (1, 1, 1.0, 5.0)]))
    best = np.array([math.log((3 / 2) / (1 / 5)), 0.0])
    for loss in (logistic, softmax):
        assert loss(best, both)[1] == pytest.approx([0, 0], abs=1e-12)
        assert np.abs(loss(best + np.array([0.5, 0]), both)[1]).max() > 0.01


def test_surprise_is_softmax_query_by_query() -> None:
    """The surprises of the queries sum to the softmax loss."""
    cells = PlantedShop().cells(80)
    scores = np.random.default_rng(1).standard_normal(len(cells))
    assert surprise(scores, cells).sum() == pytest.approx(softmax(scores, targets(cells))[0])
    assert np.all(surprise(scores, cells) >= -1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_no_cells_cost_nothing(name: LossName) -> None:
    """Empty evidence has pairs and losses of nothing."""
    empty = cells_of([])
    value, gradient = LOSSES[name](np.zeros(0), targets(empty))
    assert value == 0
    assert gradient.shape == (0,)

"""What words count, and what a unit of cosine is worth, learned from clicks with everything else."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.support.planted_shop import PlantedShop, cells_of, scores
from towers.lexical import QueryKind
from towers.model import DEFAULT_MIX, KINDS, NATS_PER_COSINE
from trainer.preference.evidence import Cells
from trainer.preference.matches import Matches
from trainer.preference.model import DEFAULT_RATES, HELD, Catalogue, Prior, Weights
from trainer.preference.solve import Problem, _minimum

ENOUGH = 500
CLOSE_NATS = 0.05
SHORT, LONG = KINDS.index(QueryKind.SHORT), KINDS.index(QueryKind.LONG)


@pytest.fixture
def shop() -> PlantedShop:
    """Return a shop whose products differ in a quality that their texts do not tell."""
    return PlantedShop(products=20, queries=15, quality_nats=1.0)


def matching(shop: PlantedShop, strengths: np.ndarray, *, seed: int = 4) -> tuple[Catalogue, np.ndarray]:
    """Return the shop with random matches of words, (15, 20), and of each query how much each rate counts, (15, 6)."""
    shares = np.random.default_rng(seed).random((15, 20))

    def matches(cells: Cells) -> Matches:
        return Matches(shares[cells.queries[cells.query_of], cells.products], strengths[cells.queries])

    return replace(shop.catalogue, matches=matches), shares


def test_what_words_are_worth_is_learned_by_kind_of_query_and_strength(shop: PlantedShop) -> None:
    """Where shoppers follow words more or less than they are worth untrained, the rates of such queries move there."""
    strengths, true = np.zeros((15, 6)), np.array([3.0, 3.0, 6.0, 2.0, 0.5, 3.0, NATS_PER_COSINE])
    for query in range(15):
        kind, strong = (SHORT, LONG)[query % 2], (query // 2) % 3 / 2
        strengths[query, 2 * kind : 2 * kind + 2] = strong, 1 - strong
    catalogue, shares = matching(shop, strengths)
    rng, rows = np.random.default_rng(6), []
    for query in range(15):
        mass = np.exp(
            scores(Weights.untrained(shop.catalogue), shop)[query] + strengths[query] @ true[:-1] * shares[query]
        )
        rows += [(query, p, float(c), 1.0) for p, c in enumerate(rng.multinomial(400, mass / mass.sum()))]
    problem = Problem(cells_of(rows), shop.queries, catalogue)
    weights = problem.solve(Prior(lexical=0.1), max_iterations=ENOUGH).weights
    assert weights.rates[:2] == pytest.approx(DEFAULT_RATES[:2])
    assert weights.rates == pytest.approx(true, abs=0.7)
    assert np.array(weights.mix)[:, :2].reshape(-1) == pytest.approx(weights.rates[:-1])
    assert [rate.full for rate in weights.mix] == [rate.full for rate in DEFAULT_MIX]
    assert weights.scaled(1.0, mix=0.5).rates == pytest.approx((weights.rates + DEFAULT_RATES) / 2)
    held = problem.solve(Prior(lexical=HELD), max_iterations=ENOUGH).weights
    assert held.rates == pytest.approx(DEFAULT_RATES, abs=0.01)
    assert problem.surprise(weights).sum() < problem.surprise(held).sum()


def test_no_match_of_words_counts_against_a_product(shop: PlantedShop) -> None:
    """Where shoppers pass over what matches, its words are worth nothing, never less, and everything else is optimal.

    From there a rate rises again when shoppers follow words.
    """
    strengths = np.zeros((15, 6))
    strengths[:, 2 * SHORT] = 1.0
    catalogue, shares = matching(shop, strengths)
    rng = np.random.default_rng(6)

    def following(nats: float) -> Problem:
        """Return the clicks of shoppers to whom the best match is worth so much."""
        rows = []
        for query in range(15):
            mass = np.exp(scores(Weights.untrained(shop.catalogue), shop)[query] + nats * shares[query])
            rows += [(query, p, float(c), 1.0) for p, c in enumerate(rng.multinomial(400, mass / mass.sum()))]
        return Problem(cells_of(rows), shop.queries, catalogue)

    averse, prior = following(-2.0), Prior(lexical=0.1)
    passed = averse.solve(prior, max_iterations=ENOUGH)
    assert passed.weights.rates[2 * SHORT] == 0.0
    assert passed.weights.rates[2 * LONG : -1].tolist() == DEFAULT_RATES[2 * LONG : -1].tolist()
    again = averse.solve(prior, start=passed.weights, max_iterations=ENOUGH)
    assert again.loss == pytest.approx(passed.loss, abs=CLOSE_NATS)
    assert again.iterations < passed.iterations
    followed = following(2.0).solve(prior, start=passed.weights, max_iterations=ENOUGH).weights
    assert followed.rates[2 * SHORT] == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize(("true", "found"), [(7.5, 7.5), (14.0, 14.0), (1.0, 6.0)])
def test_what_a_unit_of_cosine_is_worth_is_learned(shop: PlantedShop, true: float, found: float) -> None:
    """Shoppers go by the text more or less than it counts untrained; so much is left of it at least."""
    strengths = np.zeros((15, 6))
    strengths[:, 2 * SHORT] = 1.0
    catalogue, shares = matching(shop, strengths)
    rng, rows = np.random.default_rng(7), []
    for query in range(15):
        text = scores(Weights.untrained(shop.catalogue), shop)[query] * true / NATS_PER_COSINE
        mass = np.exp(text + DEFAULT_RATES[2 * SHORT] * shares[query])
        rows += [(query, p, float(c), 1.0) for p, c in enumerate(rng.multinomial(4000, mass / mass.sum()))]
    narrow = Prior(taste=HELD, common=HELD, own=HELD, words=HELD, lexical=0.1)
    weights = Problem(cells_of(rows), shop.queries, catalogue).solve(narrow, max_iterations=ENOUGH).weights
    assert weights.text == pytest.approx(found, abs=0.5)
    assert weights.scaled(1.0, mix=0.5).text == pytest.approx((weights.text + NATS_PER_COSINE) / 2)


def test_rates_have_the_gradient_of_the_loss(shop: PlantedShop) -> None:
    """The slope that is told of each rate is that of the loss, by finite differences."""
    strengths = np.random.default_rng(8).random((15, 6))
    catalogue, _ = matching(shop, strengths)
    problem = Problem(shop.cells(200), shop.queries, catalogue)
    rng = np.random.default_rng(9)
    values, moved = rng.standard_normal(len(problem.cells)), rng.standard_normal(7)
    assert problem._by_rate(values) @ moved == pytest.approx(values @ problem._by_rates(moved))


@pytest.mark.parametrize("seed", range(6))
def test_the_minimum_above_the_least_is_that_of_a_solver_with_bounds(seed: int) -> None:
    """Wherever it begins: what was held because of other parameters is let go once these have moved."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((8, 8))
    curvature, slope = half @ half.T + 0.1 * np.eye(8), 5 * rng.standard_normal(8)
    least = np.array([0.0, -0.5, 0.3])

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return a parabola and its gradient."""
        return float(x @ curvature @ x / 2 + slope @ x), curvature @ x + slope

    bounds = [(None, None)] * 5 + [(float(low), None) for low in least]
    peer = minimize(objective, np.zeros(8), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14})
    for begin in (np.zeros(8), np.append(np.zeros(5), least), 3 * rng.standard_normal(8)):
        found, _ = _minimum(objective, begin, least, 500)
        assert (found.x[5:] >= least).all()
        assert objective(found.x)[0] == pytest.approx(peer.fun, rel=1e-3, abs=0.02)

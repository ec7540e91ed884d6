"""The solver: one optimum, whatever the order, form or start; and a score that is one dot product."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

from tests.support.planted_shop import DIM, PlantedShop, cells_of, scores, table_of
from towers.model import NATS_PER_COSINE
from trainer.preference import solve
from trainer.preference.evidence import Cells, EvidenceTable, Shown
from trainer.preference.losses import LossName, surprise
from trainer.preference.model import HELD, Catalogue, Prior, Weights
from trainer.preference.solve import Problem, Solution

LOOSE = Prior(*(3.0,) * len(Prior._fields))
TIGHT = Prior(*(1e9,) * len(Prior._fields))
ENOUGH = 500
"""Iterations within which every problem here converges."""
CLOSE_NATS = 0.05
"""What the solver's tolerance leaves between two ways to one optimum."""
NAMES: tuple[LossName, ...] = get_args(LossName)


@pytest.fixture
def shop() -> PlantedShop:
    """Return a shop whose products differ in a quality that their texts do not tell."""
    return PlantedShop(products=20, queries=15, quality_nats=1.0)


def solved(cells: Cells, shop: PlantedShop, prior: Prior = LOOSE, loss: LossName = "softmax") -> Weights:
    """Return the optimum."""
    solution = Problem(cells, shop.queries, shop.catalogue, loss=loss).solve(prior, max_iterations=ENOUGH)
    assert solution.converged
    return solution.weights


def same_bytes(one: Solution, two: Solution) -> bool:
    """Whether two solutions are equal to the last bit."""
    first, second = one.weights, two.weights
    arrays = ("taste", "common", "mean_query", "words", "products", "own")
    return one.loss == two.loss and all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)


def test_the_same_table_gives_the_same_bytes(shop: PlantedShop) -> None:
    """Two solves of one evidence are equal to the last bit, whichever way round its lists were counted."""
    lists = list(shop.lists(100))
    whole = [(query, [Shown(p, round(s * 64) / 64, c) for p, s, c, _ in shown]) for query, shown in lists]
    one, two = (
        Problem(table_of(order).cells(), shop.queries, shop.catalogue).solve(LOOSE) for order in (whole, whole[::-1])
    )
    assert one.weights.own.any()
    assert same_bytes(one, two)


def test_numbering_products_and_queries_otherwise_changes_no_score(shop: PlantedShop) -> None:
    """The optimum does not depend on which rows products and queries stand in."""
    rng = np.random.default_rng(5)
    products, queries = rng.permutation(20), rng.permutation(15)
    moved = PlantedShop(products=20, queries=15)
    moved.catalogue = Catalogue(shop.catalogue.vectors[products], shop.catalogue.features[products])
    moved.queries = shop.queries[queries]
    row_of, number_of = np.argsort(products), np.argsort(queries)
    lists = list(shop.lists(200))
    renamed = [
        (int(number_of[query]), [Shown(int(row_of[p]), s, c) for p, s, c, _ in shown])
        for query, shown in reversed(lists)
    ]
    expected = scores(solved(table_of(lists).cells(), shop), shop)
    found = scores(solved(table_of(renamed).cells(), moved), moved)
    assert found[np.ix_(number_of, row_of)] == pytest.approx(expected, abs=CLOSE_NATS)
    assert np.abs(expected - scores(Weights.untrained(shop.catalogue), shop)).max() > 10 * CLOSE_NATS


def test_no_evidence_gives_the_untrained_model_that_ranks_as_the_base(shop: PlantedShop) -> None:
    """Without a list nothing is learned, and the order is that of the base vectors alone."""
    solution = Problem(EvidenceTable().cells(), shop.queries, shop.catalogue).solve(Prior())
    assert solution.converged
    base = shop.queries.astype(np.float64) @ shop.catalogue.vectors.T.astype(np.float64)
    found = scores(solution.weights, shop)
    assert found == pytest.approx(NATS_PER_COSINE * base, abs=1e-5)
    assert np.array_equal(np.argsort(-found, axis=1), np.argsort(-base, axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_start_ends_where_a_cold_one_does(name: LossName, shop: PlantedShop) -> None:
    """The problem has one optimum: what was in force before does not matter."""
    before = solved(shop.cells(100, seed=9), shop, loss=name)
    problem = Problem(shop.cells(200), shop.queries, shop.catalogue, loss=name)
    cold = problem.solve(LOOSE, max_iterations=ENOUGH)
    warm = problem.solve(LOOSE, start=before, max_iterations=ENOUGH)
    assert warm.loss == pytest.approx(cold.loss, rel=5e-3 if name == "hinge" else 1e-3)  # hinge has kinks
    assert scores(warm.weights, shop) == pytest.approx(scores(cold.weights, shop), abs=4 * CLOSE_NATS)


def test_going_on_from_the_optimum_stays_there(shop: PlantedShop) -> None:
    """A solution packed as the start of the same problem has its loss."""
    problem = Problem(shop.cells(200), shop.queries, shop.catalogue)
    once = problem.solve(LOOSE, max_iterations=ENOUGH)
    again = problem.solve(LOOSE, start=once.weights, max_iterations=1)
    assert again.loss == pytest.approx(once.loss, rel=1e-4)
    assert again.loss <= once.loss


@pytest.mark.parametrize("name", NAMES)
def test_a_tight_prior_lets_nothing_move(name: LossName, shop: PlantedShop) -> None:
    """What is held a million times tighter stays at 0."""
    weights = solved(shop.cells(200), shop, TIGHT, name)
    assert np.abs(scores(weights, shop) - scores(Weights.untrained(shop.catalogue), shop)).max() < 1e-3


def test_the_loss_is_that_of_the_served_scores_under_the_prior(shop: PlantedShop) -> None:
    """What is minimised is the surprise of the clicks under exactly what would be served, and the prior's pull."""
    cells = shop.cells(200)
    prior = Prior(taste=2.0, common=3.0, own=4.0, words=5.0)
    solution = Problem(cells, shop.queries, shop.catalogue).solve(prior, max_iterations=ENOUGH)
    found = solution.weights
    served = scores(found, shop)[cells.queries[cells.query_of], cells.products]
    parts = (found.taste, found.common, found.own, found.words)
    held = sum(width * (part**2).sum() / 2 for width, part in zip(prior, parts, strict=False))
    assert solution.loss == pytest.approx(surprise(served, cells).sum() + held, rel=1e-4)


def test_a_budget_that_is_too_small_says_so(shop: PlantedShop) -> None:
    """Two iterations give the best so far and say that it has not converged."""
    problem = Problem(shop.cells(200), shop.queries, shop.catalogue)
    little, enough = problem.solve(LOOSE, max_iterations=2), problem.solve(LOOSE, max_iterations=ENOUGH)
    assert (little.converged, little.iterations) == (False, 2)
    assert enough.converged
    assert enough.loss < little.loss


@pytest.mark.parametrize(("status", "converged"), [(0, True), (1, False), (2, True)])
def test_a_search_that_rounding_ends_was_not_short_of_its_budget(
    status: int, converged: bool, shop: PlantedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-BFGS-B ends with status 2, and calls it abnormal, where no step along the slope changes the loss any more."""

    def ended(_: object, begin: np.ndarray, **__: object) -> OptimizeResult:
        return OptimizeResult(x=begin, fun=1.0, nit=1, status=status, success=status == 0)

    monkeypatch.setattr(solve, "minimize", ended)
    problem = Problem(shop.cells(200), shop.queries, shop.catalogue)
    assert problem.solve(LOOSE).converged is converged


def test_one_dot_product_is_the_score_written_out(shop: PlantedShop) -> None:
    """Vectors of query and product give text, taste about the mean query, common and quality."""
    rng = np.random.default_rng(8)
    weights = Weights(
        taste=rng.standard_normal((DIM, DIM)), common=rng.standard_normal(DIM), mean_query=rng.standard_normal(DIM),
        words=rng.standard_normal(5), products=np.array([2, 7]), own=np.array([1.5, -2.0]),
    )  # fmt: skip
    found = scores(weights, shop)
    features = shop.catalogue.features.toarray()
    for query in range(15):
        for product in range(20):
            q, p = shop.queries[query].astype(float), shop.catalogue.vectors[product].astype(float)
            text = NATS_PER_COSINE * q @ p
            taste = (q - weights.mean_query) @ weights.taste @ p
            own = {2: 1.5, 7: -2.0}.get(product, 0.0)
            quality = own + features[product] @ weights.words
            assert found[query, product] == pytest.approx(text + taste + weights.common @ p + quality, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_is_solved_as_its_cells_are(name: LossName, shop: PlantedShop) -> None:
    """Evidence in which each query has all products gives one solution, known to be a grid or not."""
    rng = np.random.default_rng(2)
    plain = cells_of([
        (query, product, float(rng.integers(0, 3)), float(rng.integers(1, 5)))
        for query in (1, 4, 6) for product in range(0, 20, 3)
    ])  # fmt: skip
    grid = replace(plain, width=7)
    one, two = (solved(cells, shop, loss=name) for cells in (plain, grid))
    assert scores(two, shop) == pytest.approx(scores(one, shop), abs=CLOSE_NATS)
    problems = [Problem(cells, shop.queries, shop.catalogue) for cells in (plain, grid)]
    assert problems[0].surprise(one) == pytest.approx(problems[1].surprise(one), abs=1e-4)


def test_surprise_holds_clicks_against_the_served_scores(shop: PlantedShop) -> None:
    """Left-out queries are predicted by the scores that would be served to them."""
    weights = solved(shop.cells(200), shop)
    unseen = PlantedShop(products=20, queries=15, quality_nats=1.0).cells(50, seed=7)
    served = scores(weights, shop)[unseen.queries[unseen.query_of], unseen.products]
    expected = []
    for query in range(len(unseen.queries)):
        own = unseen.query_of == query
        mass = np.exp(served[own] + unseen.log_showings[own])
        expected.append(-(unseen.clicks[own] @ np.log(mass / mass.sum())))
    found = Problem(unseen, shop.queries, shop.catalogue).surprise(weights)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_what_is_held_ends_at_zero_wherever_the_solve_begins(shop: PlantedShop) -> None:
    """From weights in which a part is far from 0, a solve that holds it gives what one from 0 gives, in a few steps."""
    problem = Problem(shop.cells(400), shop.queries, shop.catalogue)
    loose = problem.solve(LOOSE, max_iterations=ENOUGH).weights
    assert np.abs(loose.own).max() > 0.1
    held = LOOSE._replace(own=HELD, taste=HELD)
    warm, cold = (problem.solve(held, start=start, max_iterations=ENOUGH).weights for start in (loose, None))
    assert np.abs(warm.own).max() < 0.01
    assert scores(warm, shop) == pytest.approx(scores(cold, shop), abs=0.05)
    short = problem.solve(held, start=loose, max_iterations=3).weights
    assert np.abs(short.own).max() < 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, 0, 3.0, 1.0), (0, 1, 0.0, 1.0)], id="one-query"),
        pytest.param([(0, 2, 3.0, 1.0), (1, 2, 1.0, 1.0)], id="one-product"),
        pytest.param([(q, p, 1.0, 1.0) for q in range(4) for p in range(4)], id="the-same-clicks-everywhere"),
        pytest.param([(0, 0, 1e6, 1.0), (0, 1, 1.0, 1e6), (1, 1, 1.0, 1.0)], id="a-million-clicks"),
        pytest.param([(0, 0, 1e-3, 1e-3), (0, 1, 0.0, 1e-3)], id="nearly-forgotten"),
    ],
)
def test_odd_evidence_gives_finite_weights(
    name: LossName, rows: list[tuple[int, int, float, float]], shop: PlantedShop
) -> None:
    """One query, one product, clicks without differences, or a million: every number stays one."""
    solution = Problem(cells_of(rows), shop.queries, shop.catalogue, loss=name).solve(Prior())
    assert np.isfinite(solution.loss)
    assert np.all(np.isfinite(scores(solution.weights, shop)))


def test_a_single_product_teaches_nothing(shop: PlantedShop) -> None:
    """Clicks on the only product that was shown move no score."""
    weights = solved(cells_of([(0, 2, 50.0, 1.0), (1, 2, 9.0, 2.0)]), shop)
    assert scores(weights, shop) == pytest.approx(scores(Weights.untrained(shop.catalogue), shop), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_clicked_more_often_per_showing_rises(name: LossName, shop: PlantedShop) -> None:
    """Of two products that the text holds alike, the one with the higher click rate ends above, under every loss."""
    shop.catalogue.vectors[1] = shop.catalogue.vectors[0]
    cells = cells_of([(query, p, clicks, seen) for query in range(8) for p, clicks, seen in ((0, 4, 10), (1, 3, 2))])
    found = scores(solved(cells, shop, loss=name), shop)
    assert np.all(found[:, 1] > found[:, 0] + 0.1)


def test_a_product_nobody_saw_starts_with_what_its_names_tell(shop: PlantedShop) -> None:
    """Products 0 and 5 share a name: clicks on one lift the other above a product of another name."""
    cells = cells_of([(query, p, clicks, 1.0) for query in range(8) for p, clicks in ((0, 5.0), (1, 0.0), (2, 0.0))])
    quality = solved(cells, shop).quality(shop.catalogue)
    assert quality[5] > quality[8] + 0.1
    assert quality[0] > quality[5]


def test_deviations_are_those_of_the_curvature(shop: PlantedShop) -> None:
    """A product's deviation is 1 / sqrt(prior + second difference of the clicks' surprise by its quality)."""
    cells = shop.cells(200)
    weights = Problem(cells, shop.queries, shop.catalogue).solve(LOOSE, uncertainty=True).weights
    assert weights.deviations is not None
    served, step = scores(weights, shop)[cells.queries[cells.query_of], cells.products], 0.01
    for place in (0, 7, 15):
        moved = step * (cells.products == weights.products[place])
        second = sum(sign * surprise(served + side * moved, cells).sum() for side, sign in ((1, 1), (0, -2), (-1, 1)))
        expected = (LOOSE.own + second / step**2) ** -0.5
        assert weights.deviations.own[place] == pytest.approx(expected, rel=1e-2)
    assert weights.deviations.untried == pytest.approx(LOOSE.own**-0.5)


def test_evidence_makes_certain(shop: PlantedShop) -> None:
    """With more lists qualities are less uncertain; products that nobody saw are as uncertain as the prior."""
    few, many = (
        Problem(shop.cells(lists), shop.queries, shop.catalogue).solve(LOOSE, uncertainty=True).weights
        for lists in (20, 400)
    )
    assert many.own_deviations(21).mean() < few.own_deviations(21).mean()
    assert many.own_deviations(21)[20] == pytest.approx(LOOSE.own**-0.5)
    assert Weights.untrained(shop.catalogue).own_deviations(20) == pytest.approx(Prior().own ** -0.5)


def test_a_share_of_weights_is_a_share_of_what_scores_moved(shop: PlantedShop) -> None:
    """Half of what was learned moves every score half as far."""
    weights = solved(shop.cells(200), shop)
    text, whole = scores(Weights.untrained(shop.catalogue), shop), scores(weights, shop)
    for share in (0.0, 0.5, 1.0):
        assert scores(weights.scaled(share, mix=0.0), shop) == pytest.approx(text + share * (whole - text), abs=1e-4)


def test_with_fewer_directions_the_optimum_is_that_of_the_main_ones(shop: PlantedShop) -> None:
    """Tastes are sought among main directions only; with all of them it is the whole problem, and a start is kept."""
    cells = shop.cells(300)
    whole, some = (
        Problem(cells, shop.queries, shop.catalogue, directions=count).solve(LOOSE, max_iterations=ENOUGH)
        for count in (DIM, 4)
    )
    assert np.linalg.matrix_rank(whole.weights.taste, tol=1e-4) > 4
    assert np.linalg.matrix_rank(some.weights.taste, tol=1e-4) == 4
    assert some.loss > whole.loss
    again = Problem(cells, shop.queries, shop.catalogue, directions=4).solve(LOOSE, start=some.weights)
    assert again.loss == pytest.approx(some.loss, rel=1e-4)
    assert again.iterations <= 3

"""What is remembered of a query: as much as its clicks say beyond the model, single products apart, lately first."""

import numpy as np
import pytest

from tests.support.planted_shop import cells_of
from towers.memory import MOST_NATS, MOST_PRODUCTS
from trainer.preference.evidence import Cells
from trainer.preference.memory import LISTED_CLICKS, PRIOR_CLICKS, lifts, remember


def grid(clicks: list[float]) -> Cells:
    """Return one query's choices among a whole catalogue."""
    size = len(clicks)
    zeros = np.zeros(size)
    return Cells(np.array([5]), np.array([0]), zeros.astype(int), np.arange(size), np.array(clicks), zeros, width=size)


def test_of_a_catalogue_it_is_the_predictive_rule_of_a_dirichlet_process() -> None:
    """The chance of a product is (n + k p) / (N + k), whatever the model's opinion p of it."""
    scores, clicks = np.log([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 4.0])
    found = np.exp(scores + lifts(grid(clicks.tolist()), scores))
    expected = (clicks + PRIOR_CLICKS * np.exp(scores)) / (clicks.sum() + PRIOR_CLICKS)
    assert found / found.sum() == pytest.approx(expected)
    assert lifts(grid(clicks.tolist()), scores)[0] == pytest.approx(0.0)


def test_of_lists_it_is_what_was_chosen_beside_what_was_expected() -> None:
    """A product that is chosen as the model expects is not moved, however often; one looked at and left falls."""
    rows = [(1, 0, 6.0, 10.0), (1, 1, 2.0, 10.0), (1, 2, 0.0, 10.0)]
    even = lifts(cells_of(rows), np.log([6.0, 2.0, 1e-9]))
    assert even == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    found = lifts(cells_of(rows), np.zeros(3))
    chosen = np.array([6.0, 2.0, 0.0])
    assert found == pytest.approx(np.log((chosen + LISTED_CLICKS) / (8 / 3 + LISTED_CLICKS)))


def test_what_was_looked_at_seldom_says_little() -> None:
    """Showings count by how much they were looked at: no click at the end of a list is no verdict."""
    rows = [(1, 0, 40.0, 10.0), (1, 1, 0.0, 0.1), (1, 2, 0.0, 10.0)]
    found = lifts(cells_of(rows), np.zeros(3))
    assert found[2] < -0.5 < found[1] < 0


def test_more_of_the_same_says_more() -> None:
    """One click moves a product less than ten do."""
    few, many = (lifts(cells_of([(1, 0, n, 9.0), (1, 1, 0.0, 9.0)]), np.zeros(2)) for n in (1.0, 10.0))
    assert 0 < few[0] < many[0]
    assert many[1] < few[1] < 0


def test_lately_outweighs_long_ago() -> None:
    """A product that is chosen now comes before the one that was chosen for years."""
    cells = cells_of([(1, 0, 40.0, 90.0), (1, 1, 8.0, 90.0), (2, 0, 5.0, 9.0), (2, 1, 1.0, 9.0)])
    recent = cells_of([(1, 0, 4.0, 40.0), (1, 1, 32.0, 40.0)])
    before, now = (remember(cells, np.zeros(4), lately) for lately in (None, recent))
    assert before[1][1][0] > before[1][1][1]
    assert now[1][1][0] < now[1][1][1]
    assert now[2][1] == pytest.approx(before[2][1])


def test_what_only_lately_knows_lifts_nobody_else() -> None:
    """The table of all evidence may have had no room for it: its neighbours are not taken for it."""
    cells = cells_of([(1, 0, 40.0, 90.0), (1, 5, 8.0, 90.0), (3, 0, 5.0, 9.0), (3, 1, 1.0, 9.0)])
    known = [(1, 0, 4.0, 40.0), (1, 5, 32.0, 40.0)]
    strangers = [(1, 3, 9.0, 9.0), (2, 0, 9.0, 9.0), (9, 9, 9.0, 9.0)]
    expected = remember(cells, np.zeros(4), cells_of(known))
    found = remember(cells, np.zeros(4), cells_of([*known, *strangers]))
    assert found.keys() == expected.keys()
    for query, (products, nats) in expected.items():
        assert found[query][0].tolist() == products.tolist()
        assert found[query][1] == pytest.approx(nats)
    alone = remember(cells, np.zeros(4), cells_of(strangers))
    assert alone.keys() == remember(cells, np.zeros(4)).keys()


def test_a_query_remembers_its_most_moved_products_only() -> None:
    """However many were shown, and never more than a bound; what is hardly moved is not kept."""
    rows = [(1, product, float(5 * (product % 7)), 5.0) for product in range(3 * MOST_PRODUCTS)]
    products, nats = remember(cells_of(rows), np.zeros(len(rows)))[1]
    assert len(products) == MOST_PRODUCTS
    assert np.all(np.diff(products) > 0)
    assert remember(cells_of([(1, 0, 5.0, 9.0), (1, 1, 5.0, 9.0)]), np.zeros(2)) == {}
    assert remember(cells_of([]), np.zeros(0)) == {}
    assert np.abs(nats).max() <= MOST_NATS


def test_what_is_kept_is_what_moves_the_list_and_not_what_is_moved_from_next_to_nothing() -> None:
    """A stray click on what the model rules out lifts it by many nats, and to no place that anyone sees."""
    strays = MOST_PRODUCTS + 4
    scores = np.log([0.5, 0.3, *[1e-6] * strays])
    products, nats = remember(grid([10.0, 90.0, *[1.0] * strays]), scores)[5]
    assert products[:2].tolist() == [0, 1]
    assert nats[0] < nats[1] < nats[2]


def test_what_the_model_rules_out_can_still_be_remembered() -> None:
    """However far behind it is, what shoppers choose comes forward, within a bound."""
    products, nats = remember(grid([0.0, 500.0]), np.array([0.0, -20.0]))[5]
    assert (products.tolist(), nats.tolist()) == ([1], [MOST_NATS])

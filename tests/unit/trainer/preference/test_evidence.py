"""The table of evidence: sums that depend on no order, fade by one factor and are capped by query."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.planted_shop import PlantedShop, cells_of, table_of
from trainer.preference.evidence import FORGOTTEN, MAX_QUERY_CLICKS, Cells, EvidenceTable, Shown

QUARTERS = st.integers(0, 8).map(lambda number: number / 4)
"""Numbers that add without rounding."""
LISTS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.builds(Shown, st.integers(0, 4), QUARTERS, QUARTERS), max_size=5)),
    max_size=12,
)


def same(one: Cells, two: Cells) -> bool:
    """Whether two evidences are equal, number by number."""
    names = ("queries", "starts", "query_of", "products", "clicks", "log_showings")
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names) and one.width == two.width


@given(LISTS, st.randoms(use_true_random=False))
def test_the_order_of_lists_does_not_matter(lists: list[tuple[int, list[Shown]]], random: object) -> None:
    """The same lists in any order give the same arrays."""
    shuffled = [lists[place] for place in np.random.default_rng(len(repr(random))).permutation(len(lists))]
    assert same(table_of(lists).cells(), table_of(shuffled).cells())
    assert same(table_of(lists).cells(), table_of(lists[::-1]).cells())


@given(LISTS)
def test_counts_are_sums_and_queries_without_clicks_are_left_out(lists: list[tuple[int, list[Shown]]]) -> None:
    """Each cell holds the sums of its clicks and showings; queries that nobody clicked for have none."""
    cells = table_of(lists).cells()
    clicked = {query for query, shown in lists if any(slot.click for slot in shown)}
    assert set(cells.queries.tolist()) == clicked
    for query, product, clicks, log_showings in zip(
        cells.queries[cells.query_of], cells.products, cells.clicks, cells.log_showings, strict=True
    ):
        slots = [slot for typed, shown in lists if typed == query for slot in shown if slot.product == product]
        assert clicks == sum(slot.click for slot in slots)
        assert np.exp(log_showings) == pytest.approx(max(sum(slot.showing for slot in slots), FORGOTTEN))


def test_forgetting_is_one_multiplication() -> None:
    """What was counted before weighs the factor, what comes after weighs 1, whatever the query."""
    shop = PlantedShop()
    old, new = list(shop.lists(60, seed=1)), list(shop.lists(60, seed=2))
    faded = table_of(old)
    faded.forget(0.25)
    for query, shown in new:
        faded.add(query, shown)
    weighed = [(query, [Shown(p, s / 4, c / 4) for p, s, c in shown]) for query, shown in old]
    expected = table_of([*weighed, *new]).cells()
    found = faded.cells()
    assert np.array_equal(found.products, expected.products)
    assert found.clicks == pytest.approx(expected.clicks)
    assert found.log_showings == pytest.approx(expected.log_showings)
    assert faded.lists == pytest.approx(60 * 0.25 + 60)


def test_cells_that_weigh_next_to_nothing_are_dropped() -> None:
    """Memory is bounded: what has faded away leaves the table."""
    table = table_of([(1, [Shown(1, 1.0, 1.0), Shown(2, 0.01, 0.0)])])
    table.forget(FORGOTTEN * 2)
    assert len(table) == 1
    table.forget(0.4)
    assert len(table) == 0
    assert len(table.cells()) == 0


def test_an_empty_table_has_no_cells() -> None:
    """Before the first list all arrays are empty, and sums over them too."""
    cells = EvidenceTable().cells()
    assert (len(cells), len(cells.queries), len(cells.query_clicks)) == (0, 0, 0)
    assert cells.sums(cells.clicks).shape == (0,)
    assert cells.highest(cells.clicks).shape == (0,)


def test_a_head_query_is_capped_in_proportion() -> None:
    """A query with ten times the most clicks counts as the most, its products in the same ratio; others stay."""
    clicks = 10 * MAX_QUERY_CLICKS
    table = table_of([(1, [Shown(1, 1.0, clicks * 0.75), Shown(2, 1.0, clicks * 0.25)]), (2, [Shown(1, 1.0, 3.0)])])
    cells = table.cells()
    assert cells.clicks == pytest.approx([MAX_QUERY_CLICKS * 0.75, MAX_QUERY_CLICKS * 0.25, 3.0])
    assert np.exp(cells.log_showings) == pytest.approx([1.0, 1.0, 1.0])


def grid() -> tuple[Cells, Cells]:
    """Return three queries times four products, as a grid and as plain cells."""
    rng = np.random.default_rng(3)
    plain = cells_of([(q, p, float(rng.integers(0, 3)), 1.0) for q in (2, 5, 9) for p in range(4)])
    return Cells(
        plain.queries, plain.starts, plain.query_of, plain.products, plain.clicks, plain.log_showings, 4
    ), plain


def test_a_grid_sums_as_plain_cells_do() -> None:
    """Sums, highest values and spreading do not depend on whether the cells are known to be a grid."""
    one, two = grid()
    values = np.random.default_rng(4).standard_normal(12)
    assert one.sums(values) == pytest.approx(two.sums(values))
    assert one.highest(values) == pytest.approx(two.highest(values))
    assert np.array_equal(one.spread(np.arange(3.0)), two.spread(np.arange(3.0)))
    assert one.query_clicks == pytest.approx(two.query_clicks)


@pytest.mark.parametrize("chosen", [[True, False, True], [False, False, False], [True, True, True]])
def test_some_queries_keep_their_own_cells(chosen: list[bool]) -> None:
    """The cells of some queries are theirs alone, as a grid and otherwise; none of them has none."""
    for cells in grid():
        some = cells.of_queries(np.array(chosen))
        kept = np.array(chosen)[cells.query_of]
        assert some.queries.tolist() == cells.queries[chosen].tolist()
        assert np.array_equal(some.clicks, cells.clicks[kept])
        assert np.array_equal(some.products, cells.products[kept])
        assert some.sums(some.clicks) == pytest.approx(cells.sums(cells.clicks)[chosen])
        assert some.width == cells.width

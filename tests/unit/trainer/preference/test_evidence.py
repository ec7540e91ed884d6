"""The table of evidence: sums that depend on no order, fade by one factor and are capped by query."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.planted_shop import PlantedShop, cells_of, table_of
from trainer.preference.evidence import FORGOTTEN, MAX_QUERY_CLICKS, Cells, EvidenceTable, Shown

DAY_MS = 86_400_000

QUARTERS = st.integers(0, 8).map(lambda number: number / 4)
"""Numbers that add without rounding."""
LISTS = st.lists(
    st.tuples(
        st.integers(0, 3), st.lists(st.builds(Shown, st.integers(0, 4), QUARTERS, QUARTERS, QUARTERS), max_size=5)
    ),
    max_size=12,
)


def same(one: Cells, two: Cells) -> bool:
    """Whether two evidences are equal, number by number."""
    names = ("queries", "starts", "query_of", "products", "clicks", "log_showings")
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names) and one.width == two.width


@given(st.lists(st.tuples(LISTS, st.integers(0, 40)), max_size=4), st.integers(0, 2**32))
def test_the_order_of_lists_does_not_matter(days: list[tuple[list[tuple[int, list[Shown]]], int]], seed: int) -> None:
    """The same lists at the same times in any order give the same arrays, bit by bit, faded or not."""
    lists = [
        (query, [Shown(p, s / 3, c, s / 7) for p, s, c, _ in shown], day)
        for of_day, day in days
        for query, shown in of_day
    ]
    tables = []
    for order in (np.arange(len(lists)), np.random.default_rng(seed).permutation(len(lists))):
        table = EvidenceTable(half_life_ms=16 * DAY_MS)
        for place in order.tolist():
            query, shown, day = lists[place]
            table.add(query, shown, time_ms=day * DAY_MS + 7)
        tables.append(table)
    assert same(tables[0].cells(), tables[1].cells())
    assert tables[0].lists == len(lists)


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


def test_what_is_one_half_life_older_weighs_half() -> None:
    """Relative to the newest list, whatever the query and whichever came first."""
    shop = PlantedShop()
    old, new = list(shop.lists(60, seed=1)), list(shop.lists(60, seed=2))
    faded = EvidenceTable(half_life_ms=16 * DAY_MS)
    for time_ms, lists in ((100 * DAY_MS, new), (68 * DAY_MS, old)):
        for query, shown in lists:
            faded.add(query, shown, time_ms=time_ms)
    weighed = [(query, [Shown(p, s / 4, c / 4, n / 4) for p, s, c, n in shown]) for query, shown in old]
    expected = table_of([*weighed, *new]).cells()
    found = faded.cells()
    assert np.array_equal(found.products, expected.products)
    assert found.clicks == pytest.approx(expected.clicks)
    assert found.log_showings == pytest.approx(expected.log_showings, abs=1e-4)


def test_cells_that_weigh_next_to_nothing_are_dropped() -> None:
    """Memory is bounded in time: what has faded away leaves the table."""
    table = EvidenceTable(half_life_ms=DAY_MS)
    table.add(1, [Shown(1, 1.0, 1.0), Shown(2, 0.01, 0.0)])
    table.add(2, [Shown(1, 1.0, 1.0)], time_ms=5 * DAY_MS)
    assert len(table) == 2
    table.add(3, [Shown(1, 1.0, 1.0)], time_ms=12 * DAY_MS)
    assert table.used()[0].tolist() == [2, 3]


def test_too_many_cells_leave_the_lightest_behind() -> None:
    """Memory is bounded in size: what weighs least leaves, is counted, and the rest stays as it was."""
    table = EvidenceTable(max_cells=100)
    for number in range(101):
        table.add(number, [Shown(number, 1.0, float(number))])
    assert (len(table), table.dropped) == (95, 6)
    assert table.cells().queries.tolist() == list(range(6, 101))


@given(LISTS, LISTS)
def test_a_table_goes_on_from_its_state(
    before: list[tuple[int, list[Shown]]], after: list[tuple[int, list[Shown]]]
) -> None:
    """Written and read in between, it ends the same, bit by bit."""
    whole, first = (EvidenceTable(half_life_ms=16 * DAY_MS) for _ in range(2))
    for query, shown in before:
        whole.add(query, shown, time_ms=3 * DAY_MS)
        first.add(query, shown, time_ms=3 * DAY_MS)
    second = EvidenceTable.from_state(first.state(), half_life_ms=16 * DAY_MS)
    for query, shown in after:
        whole.add(query, shown, time_ms=40 * DAY_MS)
        second.add(query, shown, time_ms=40 * DAY_MS)
    assert same(whole.cells(), second.cells())
    assert all(np.array_equal(value, second.state()[name]) for name, value in whole.state().items())


def test_what_may_not_be_used_is_left_out() -> None:
    """Cells of a product or a query that has no vector count for nothing."""
    table = table_of([(0, [Shown(0, 1.0, 1.0), Shown(1, 1.0, 0.0)]), (1, [Shown(0, 1.0, 1.0)])])
    cells = table.cells(queries=np.array([True, False]), products=np.array([True, False]))
    assert (cells.queries.tolist(), cells.products.tolist()) == ([0], [0])


def test_renumbered_cells_are_the_same_cells() -> None:
    """Numbers are names: new ones change nothing else."""
    table = table_of(PlantedShop().lists(50))
    before = table.cells()
    queries, products = np.arange(40)[::-1].copy(), np.arange(24) + 3
    table.renumber(queries, products)
    after = table.cells()
    assert after.queries.tolist() == sorted(queries[before.queries].tolist())
    assert sorted(zip(after.products, after.clicks, strict=True)) == sorted(
        zip(products[before.products], before.clicks, strict=True)
    )


def test_what_gets_no_number_leaves() -> None:
    """One table may have cells that the other, by which numbers are given out, had no room for."""
    table = table_of(PlantedShop().lists(50))
    before = table.cells()
    queries, products = np.arange(40), np.arange(24)
    queries[before.queries[:3]] = -1
    products[before.products[0]] = -1
    table.renumber(queries, products)
    left = (queries[before.queries[before.query_of]] >= 0) & (products[before.products] >= 0)
    assert len(table.cells()) <= left.sum()
    assert not np.isin(before.queries[:3], table.used()[0]).any()
    assert before.products[0] not in table.used()[1]


def test_a_product_with_a_million_clicks_does_not_outshout_the_shop() -> None:
    """Over however many queries they came, its clicks are a tenth of all at most."""
    table = table_of(
        [(query, [Shown(0, 1.0, 2_000.0), *(Shown(p, 1.0, 5.0) for p in range(1, 60))]) for query in range(500)]
    )
    cells = table.cells()
    of_product = np.bincount(cells.products, cells.clicks)
    assert np.isfinite(cells.clicks).all()
    assert of_product[0] < 0.11 * of_product.sum()
    assert np.ptp(of_product[1:]) == pytest.approx(0.0, abs=1e-6)


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


def test_showings_count_weighed_or_as_they_were_listed() -> None:
    """In full by the chance of a look, without it by how often the product was listed, and in between."""
    table = EvidenceTable()
    for _ in range(2):
        table.add(1, [Shown(1, 1.0, 1.0), Shown(2, 0.25, 1.0, 1.0)])
    showings = {weight: np.exp(table.cells(debiasing=weight).log_showings).tolist() for weight in (0.0, 0.5, 1.0)}
    assert showings[1.0] == pytest.approx([2.0, 0.5])
    assert showings[0.5] == pytest.approx([2.0, 1.0])
    assert showings[0.0] == pytest.approx([2.0, 2.0])


def test_a_table_of_the_former_form_is_weighed_alike_either_way() -> None:
    """It did not know how often products were listed: nothing of it speaks for or against weighing."""
    table = table_of(list(PlantedShop().lists(50)))
    state = table.state()
    old = EvidenceTable.from_state({**state, "counts": state["counts"][:, :2]}, half_life_ms=np.inf)
    assert same(old.cells(), table.cells())
    assert same(old.cells(debiasing=0.0), old.cells())
    assert not same(table.cells(debiasing=0.0), table.cells())


def lists_of(places: list[int], *, sought: bool, lists: int = 400) -> EvidenceTable:
    """Return lists of ten products, looked at by 1/place; where product 0 stands is chosen always, or as looks go."""
    table, rng = EvidenceTable(), np.random.default_rng(1)
    for number in range(lists * len(places)):
        place = places[number % len(places)]
        rest = iter(range(1, 10))
        ranked = [0 if one == place else next(rest) for one in range(1, 11)]
        clicked = rng.random(10) < 0.5 / np.arange(1, 11)
        clicked[place - 1] |= sought
        shown = [Shown(p, 1 / k, float(c)) for p, k, c in zip(ranked, range(1, 11), clicked, strict=True)]
        table.add(number % len(places), shown)
    return table


@pytest.mark.parametrize("places", [[10], [3], [2], [4, 6, 8]])
def test_what_is_chosen_more_often_than_it_is_looked_at_is_sought(places: list[int]) -> None:
    """Whoever clicks a product wherever it stands, by one name or many, is found, and the click of who looks is not."""
    assert lists_of(places, sought=True).sought().tolist() == [0]
    assert lists_of(places, sought=False).sought().tolist() == []


def test_nobody_is_found_by_few_clicks_or_at_the_top() -> None:
    """A few clicks may be chance, and at the top each is a look."""
    assert lists_of([10], sought=True, lists=3).sought().tolist() == []
    assert lists_of([1], sought=True).sought().tolist() == []


def test_who_is_found_does_not_depend_on_how_showings_are_weighed() -> None:
    """Else a robot could have them weighed less by its own clicks, and would be found no more."""
    table = lists_of([10], sought=True)
    assert all(table.cells(debiasing=strength).sought.tolist() == [0] for strength in (0.0, 0.5, 1.0))


def test_clicks_of_a_sought_product_take_no_room_from_others() -> None:
    """A query counts at most so many clicks: those that seek one product leave all the room to what others chose."""
    cells = lists_of([10], sought=True, lists=4_000).cells()
    assert cells.query_clicks.tolist() > [MAX_QUERY_CLICKS]
    assert cells.of_all_queries().query_clicks == pytest.approx([MAX_QUERY_CLICKS])


def test_where_looks_are_told_too_low_for_all_nobody_is_found() -> None:
    """Whoever opens a second page looks at it: what stands there is chosen more often than a look by place has it."""
    table, rng = EvidenceTable(), np.random.default_rng(1)
    for number in range(2_000):
        query, before = number % 20, 10 * (number % 2)
        for k, clicked in enumerate(rng.random(10) < 0.5 / np.arange(1, 11), start=before + 1):
            table.add(query, [Shown(100 * query + k, 1 / k, float(clicked))])
    chosen, looks = table._counts[: len(table), 3], table._counts[: len(table), 4]
    assert (chosen > 2 * looks).any()
    assert table.sought().tolist() == []


def test_a_product_that_is_sought_says_nothing_of_other_queries() -> None:
    """Its cells have neither clicks nor showings there, the others keep theirs, and every cell stays in its place."""
    cells = lists_of([10], sought=True, lists=100).cells()
    told = cells.of_all_queries()
    assert same(told.of_cells(told.products > 0), cells.of_cells(cells.products > 0))
    assert told.clicks[told.products == 0].tolist() == [0.0]
    assert np.exp(told.log_showings[told.products == 0]) < FORGOTTEN
    assert len(told) == len(cells)


def test_a_table_that_did_not_know_how_often_a_product_was_chosen_goes_on() -> None:
    """What it counted is believed, and what comes from now on is judged."""
    state = lists_of([10], sought=True, lists=100).state()
    old = EvidenceTable.from_state({**state, "counts": state["counts"][:, :3]}, half_life_ms=np.inf)
    assert old.sought().tolist() == []
    assert same(old.cells(), lists_of([10], sought=True, lists=100).cells())

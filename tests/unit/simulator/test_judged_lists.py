"""Lists that make trouble, and what the live pairs stage makes of them; nothing is solved here."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contracts.telemetry import Filter
from simulator.judged_lists import JudgedList, JudgedLists
from simulator.shop.world import World
from simulator.shown_lists import SHOWN, Listed, Ranking, ShownLists, SimulateOptions
from tests.unit.simulator.test_simulate import world

LISTS = 300


def shown(options: SimulateOptions, *, on: World | None = None) -> list[Listed]:
    """Return lists that show the first products for every query."""
    shop = on or world()
    products = [(str(one["product_id"]), str(one["product_id"]).partition("-")[2]) for one in shop.products]
    numbers = {query.query_id: number for number, query in enumerate(shop.queries)}
    rows = np.arange(2 * SHOWN)
    ranking: Ranking = {number: (rows, -rows.astype(float)) for number in numbers.values()}
    lists = ShownLists(shop, options, products=products, numbers=numbers)
    return [lists.next(ranking, lambda rows: np.zeros(len(rows))) for _ in range(options.lists)]


def judged(
    lists: Iterable[Listed], *filters: Filter, look_ahead_s: float = 0.0
) -> tuple[list[JudgedList], JudgedLists]:
    """Return what may be learned of lists, and the stage that says so."""
    shop = world()
    row_of = {str(one["product_id"]): row for row, one in enumerate(shop.products)}
    stage = JudgedLists(filters, look_ahead_s, queries=[query.query for query in shop.queries], row_of=row_of)
    found = [one for listed in lists for one in stage.take(listed)]
    return [*found, *stage.finish()], stage


def evidence(found: Iterable[JudgedList]) -> tuple[float, float, float]:
    """Return the sums of what is learned from."""
    slots = np.array([(slot.listed, slot.showing, slot.click) for one in found for slot in one.shown])
    listed, showing, click = slots.sum(axis=0).tolist()
    return listed, showing, click


@pytest.mark.parametrize(
    ("trouble", "by"),
    [
        ("crawl", Filter.ROBOTS),
        ("fraud", Filter.ROBOTS),
        ("fraud", Filter.REPEATS),
        ("heavy", Filter.CAPS),
        ("again", Filter.REPEATS),
        ("later", Filter.LATER_CLICKS),
        ("hasty", Filter.REFORMULATIONS),
        ("variants", Filter.VARIANTS),
    ],
)
def test_a_filter_finds_the_trouble_that_it_is_for(trouble: Any, by: Filter) -> None:
    """Of simple shoppers' lists it finds nothing to object to, but variants, which they choose between too."""
    lists = shown(SimulateOptions(lists=LISTS, trouble=trouble, troubled=0.5))
    assert 0.45 <= np.mean([not one.is_usual for one in lists]) <= 0.55
    ((kept, _), (filtered, _)) = judged(lists), judged(lists, by, look_ahead_s=300)
    assert evidence(filtered) < evidence(kept)
    if by is not Filter.VARIANTS:
        usual = [evidence(one for one in found if one.listed.is_usual) for found in (kept, filtered)]
        assert usual[0] == pytest.approx(usual[1])


def test_a_robot_of_many_addresses_is_not_found() -> None:
    """Each of its lists is a shopper's of its own: what looks at a shopper's other lists cannot tell."""
    lists = shown(SimulateOptions(lists=LISTS, trouble="ring"))
    others = {*Filter} - {Filter.VARIANTS}
    assert evidence(judged(lists, *others, look_ahead_s=300)[0]) == evidence(judged(lists)[0])


def test_what_comes_later_is_waited_for() -> None:
    """With a look-ahead a list is judged once its time has passed; none is lost at the end."""
    lists = shown(SimulateOptions(lists=LISTS, trouble="later"))
    found, stage = judged(lists, Filter.LATER_CLICKS, look_ahead_s=300)
    assert len(found) == sum(stage.outcomes().values()) == LISTS
    late = JudgedLists((), 300, queries=[query.query for query in world().queries], row_of={})
    assert late.take(lists[0]) == []
    assert late.outcomes() == {"pending": 1}


def test_exchanged_neighbours_are_told_by_the_seed() -> None:
    """As the trainer reads them of a training search."""
    lists = shown(SimulateOptions(lists=20, swaps=1.0))
    found, _ = judged(lists)
    assert all(len(one.exchanged) in {4, 5} for one in found)
    assert not any(one.exchanged for one in judged(shown(SimulateOptions(lists=20)))[0])


def test_a_shops_own_shoppers_come_back_by_name() -> None:
    """Their sessions and clients are those of the shop simulator, in the order of event time."""
    lists = shown(replace(SimulateOptions(), lists=LISTS, shoppers="shop"))
    assert len({one.session for one in lists}) > len({one.client for one in lists}) > 1
    assert [one.at_ms for one in lists] == sorted(one.at_ms for one in lists)

"""What a list says of examination: written-out sums of swaps and histories, and what is left out."""

from typing import Any

import pytest

from contracts import events
from contracts.outcomes import Cell
from contracts.structs import JoinedSearch, JoinedSlot, Ranking, struct_of
from streams.propensity.evidence import (
    GROUPS,
    UNIT,
    CellSums,
    Products,
    Showing,
    cells_of,
    ranking_of,
    swapped_pairs,
)
from tests.support.search_events import T0

Exploration: Any = struct_of(events.Exploration)
ANCHOR = Ranking(query_release=0, product_release=0, arm="anchor", exploration=Exploration(policy="jitter", seed=3))


def swapped(seed: int) -> Ranking:
    """Return the ranking of a list whose neighbours were exchanged by this seed."""
    return Ranking(arm="live", exploration=Exploration(policy="swap", seed=seed))


def listed(
    ranking: Ranking, products: str = "abcdef", *, slots: dict[int, dict[str, Any]] | None = None, **fields: Any
) -> JoinedSearch:
    """Return a list of one-letter products; `slots` says more about positions."""
    shown = tuple(
        JoinedSlot(product_id=product, position=position, **(slots or {}).get(position, {}))
        for position, product in enumerate(products, start=1)
    )
    base: dict[str, Any] = {
        "search_id": "s1",
        "search_time": T0,
        "closed_at": T0 + 1,
        "query": "q",
        "surface": "search",
    }
    return JoinedSearch(**{**base, "ranking": ranking, "slots": shown, **fields})


def shown_of(search: JoinedSearch, kind: str = "examined") -> tuple[Showing, ...]:
    """Return what counts of a list in its cell of a kind; nothing if it has none."""
    by_kind: dict[str, tuple[Showing, ...]] = {cell.kind: shown for cell, shown in cells_of(search)}
    return by_kind.get(kind, ())


def pairs(search: JoinedSearch) -> list[tuple[int, int]]:
    """Return the positions of the neighbours that count as exchanged."""
    return [(upper.position, lower.position) for upper, lower in swapped_pairs(search, shown_of(search))]


def totals(sums: CellSums) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Return the clicks of each pair of positions, all groups together."""
    return {pair: (sum(clicks[:GROUPS]) / UNIT, sum(clicks[GROUPS:]) / UNIT) for pair, clicks in sums.clicks.items()}


@pytest.mark.parametrize(("seed", "expected"), [(4, [(1, 2), (3, 4), (5, 6)]), (7, [(2, 3), (4, 5)])])
def test_the_seed_says_which_neighbours_were_exchanged(seed: int, expected: list[tuple[int, int]]) -> None:
    """The pairs begin at the first or the second position, and follow one another."""
    assert pairs(listed(swapped(seed))) == expected


@pytest.mark.parametrize("oddity", [{"pinned": True}, {"sponsored": True}, {"in_stock": False}])
def test_a_pair_of_which_one_did_not_stand_by_rank_is_left_out(oddity: dict[str, bool]) -> None:
    """Of a pinned, sponsored or sold-out slot's pair nothing was exchanged at random, or nothing could be chosen."""
    assert pairs(listed(swapped(4), slots={3: oddity})) == [(1, 2), (5, 6)]


def test_later_pages_are_left_out() -> None:
    """Their slots were seen by those alone who asked for the page, and no pair across the break was exchanged."""
    assert pairs(listed(swapped(7), first_page_ends=4)) == [(2, 3)]
    assert shown_of(listed(swapped(7), page=2)) == ()


def test_a_list_that_was_not_swapped_gives_no_pair() -> None:
    """Of neighbours that nobody exchanged the better one is above."""
    assert pairs(listed(ANCHOR)) == []


def test_clicks_on_exchanged_neighbours_are_summed_by_position() -> None:
    """Their ratio is that of the examinations: products are at both alike."""
    sums = CellSums()
    for clicked in (1, 1, 1, 2):
        search = listed(swapped(4), "ab", slots={clicked: {"clicked": True}})
        for upper, lower in swapped_pairs(search, shown_of(search)):
            sums.count_swap(upper, lower)
    assert totals(sums) == {("swap", 1, 2): (3.0, 1.0)}


def test_a_stay_or_a_cart_is_a_click() -> None:
    """The click itself may have been lost; whoever stayed or bought has looked."""
    slots: dict[int, dict[str, Any]] = {
        1: {"dwell_ms": 900},
        2: {"cart_quantity": 1},
        3: {"purchase_quantity": 1},
        4: {"clicked": True},
    }
    assert [one.clicked for one in shown_of(listed(ANCHOR, slots=slots))] == [True, True, True, True, False, False]


def known(counts: dict[int, tuple[int, int]]) -> tuple[CellSums, Products]:
    """Return the sums and the table after a product had these showings and clicks at these positions."""
    sums, products = CellSums(), Products()
    for position, (showings, clicks) in counts.items():
        for number in range(showings):
            sums.count_showing(Showing(7, 0, position, number < clicks), products)
    return sums, products


def test_a_product_is_compared_with_itself_at_other_positions() -> None:
    """10 showings in all: between 1 and 2, 2 x 5 / 10 clicks above and 1 x 4 / 10 below, and so on."""
    sums, _ = known({1: (4, 2), 2: (5, 1), 3: (1, 1)})
    assert totals(sums) == {
        ("history", 1, 2): (1.0, 0.4),
        ("history", 1, 3): (0.2, 0.4),
        ("history", 2, 3): (0.1, 0.5),
    }


def test_the_order_of_showings_does_not_matter() -> None:
    """What a product says depends on its counts alone, up to the unit of the sums."""
    one, _ = known({1: (4, 2), 2: (5, 1), 3: (1, 1)})
    other, _ = known({3: (1, 1), 2: (5, 1), 1: (4, 2)})
    assert one.clicks == other.clicks


def test_a_product_known_at_no_other_position_near_by_says_nothing() -> None:
    """Without an intervention nothing separates what a product is worth from where it was."""
    assert totals(known({1: (90, 30), 5: (90, 10)})[0]) == {}


def test_trust_is_judged_by_what_a_product_had_at_the_top() -> None:
    """Known at 1: 10 showings, 4 clicks; clicked at 2. Summed: 1, c, x = 4/10, c x, and 4 3 / 10 9 for x squared."""
    sums, _ = known({1: (10, 4), 2: (1, 1)})
    whole = [sum(sums.trust[2][name * GROUPS : (name + 1) * GROUPS]) / UNIT for name in range(5)]
    assert whole == pytest.approx([1, 1, 0.4, 0.4, 12 / 90], abs=1e-4)


@pytest.mark.parametrize(
    ("ranking", "frozen"),
    [
        (ANCHOR, True),
        (Ranking(arm="anchor", query_release=0), False),
        (Ranking(arm="live", query_release=7, exploration=Exploration(policy="jitter")), False),
        (Ranking(ranker="shop", query_release=7), True),
        (Ranking(ranker="shop"), False),
    ],
)
def test_only_a_frozen_ranking_has_a_history(ranking: Ranking, frozen: bool) -> None:
    """A live ranking moves products because of clicks, and one that names no release may."""
    assert (ranking_of(listed(ranking)) is not None) is frozen


def test_releases_and_rankers_are_kept_apart() -> None:
    """What one release showed at one position and another elsewhere may have moved because of clicks."""
    lists = [listed(Ranking(ranker=name, query_release=n)) for name in ("shop", "other") for n in (1, 2)]
    assert len({shown_of(one)[0].key for one in lists}) == 4
    assert len({shown_of(one)[0].group for one in lists}) == 1


def test_view_events_make_a_cell_of_their_own() -> None:
    """Attention given visible counts the slots that were in view for a second, beside all of them."""
    slots = {1: {"visible_ms": 4_000}, 2: {"visible_ms": 1_000}, 3: {"visible_ms": 999}}
    search = listed(ANCHOR, slots=slots)
    assert [len(shown_of(search, kind)) for kind in ("examined", "visible")] == [6, 2]
    assert shown_of(listed(ANCHOR), "visible") == ()


def test_a_cell_is_where_lists_look_alike() -> None:
    """Surface, device, layout and columns tell cells apart."""
    ((cell, _),) = cells_of(listed(ANCHOR, device="mobile", layout="grid", columns=2))
    assert cell == Cell("search", "mobile", "grid", 2, "examined")


def test_after_a_half_life_of_lists_a_click_counts_half() -> None:
    """What is older than the layout of today fades, by lists and not by days, whenever it is seen to."""
    sums = CellSums(clicks={("swap", 1, 2): [UNIT] * (2 * GROUPS)})
    for times in (300, 700):
        for _ in range(times):
            sums.count_list()
        sums.decay(1_000)
    assert sums.clicks["swap", 1, 2] == pytest.approx([UNIT / 2] * (2 * GROUPS), abs=2)
    assert (sums.lists, sums.fresh) == (1_000, 0)


def test_sums_of_partitions_add_up_exactly() -> None:
    """A pair that one partition never saw, and one that both did."""
    one, other = (
        CellSums(n, n, {("swap", n, n + 1): [n] * 32, ("swap", 5, 6): [1] * 32}, {2: [n] * 80}) for n in (1, 2)
    )
    one.add(other)
    assert one.lists == 3
    assert one.clicks == {("swap", 1, 2): [1] * 32, ("swap", 5, 6): [2] * 32, ("swap", 2, 3): [2] * 32}
    assert (one.trust, other.clicks["swap", 2, 3]) == ({2: [3] * 80}, [2] * 32)


def test_a_query_is_one_query_however_it_is_spelled() -> None:
    """A product is compared with itself over all lists of its query, as everywhere else: accents, case and signs."""
    spelled = ["th\u00e9 noir", "The\u0301  NOIR!", "th\u00e9-noir"]
    assert len({shown_of(listed(ANCHOR, query=query)) for query in spelled}) == 1
    assert shown_of(listed(ANCHOR, query="the noir")) != shown_of(listed(ANCHOR, query=spelled[0]))

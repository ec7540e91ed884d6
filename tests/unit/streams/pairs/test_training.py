"""What a list says to the learner, product by product, and what is left out of it."""

from collections.abc import Sequence
from typing import Any

import pytest

from contracts.outcomes import Cell, exchanged_positions
from contracts.structs import Exploration, JoinedSearch, JoinedSlot, Ranking
from contracts.telemetry import SlotReason
from indexer.search.exploration import swapped
from streams.pairs.training import training_search
from tests.support.search_events import T0


def search(*slots: JoinedSlot, **told: Any) -> JoinedSearch:
    """Return a list of these slots."""
    return JoinedSearch(**{"search_id": "s", "search_time": T0, "closed_at": T0 + 1, "query": "q", **told}, slots=slots)


def slot(product_id: str, position: int, **told: Any) -> JoinedSlot:
    """Return a slot."""
    return JoinedSlot(product_id=product_id, position=position, **told)


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([slot("a", 1), slot("b", 4, clicked=True)], {"a": (1.0, 0.0), "b": (0.25, 1.0)}),
        ([slot("a", 1, clicked=True, dwell_ms=31_000)], {"a": (1.0, 1.5)}),
        ([slot("a", 1, purchase_quantity=1), slot("b", 2, cart_quantity=2)], {"a": (1.0, 10.0), "b": (0.5, 4.0)}),
        ([slot("a", 1, clicked=True, dwell_ms=900), slot("b", 2, clicked=True)], {"b": (0.5, 1.0)}),
        ([slot("a", 1, sponsored=True), slot("b", 2, pinned=True), slot("c", 3, in_stock=False)], {}),
        ([slot("a", 1, sponsored=True, clicked=True), slot("a", 2), slot("b", 4)], {"b": (0.25, 0.0)}),
        ([slot("a", 1, sponsored=True), slot("a", 2), slot("b", 4)], {"a": (0.5, 0.0), "b": (0.25, 0.0)}),
        ([slot("a", 1, visible_ms=800), slot("b", 2), slot("c", 4, clicked=True)], {"a": (1.0, 0.0), "c": (0.25, 1.0)}),
        ([slot("a", 2), slot("a", 4, clicked=True)], {"a": (0.5, 1.0)}),
    ],
)
def test_a_list_says_what_was_looked_at_and_chosen(
    slots: Sequence[JoinedSlot], expected: dict[str, tuple[float, float]]
) -> None:
    """Grades, bounces, places that were not ranked, slots out of sight, and a product that stands twice."""
    training = training_search(search(*slots))
    told = {} if training is None else {one.product_id: (one.showing, one.value) for one in training.slots}
    assert told == expected


@pytest.mark.parametrize(
    ("slots", "reasons"),
    [
        ([slot("b", 2, pinned=True), slot("c", 3, in_stock=False)], {"b": "placed", "c": "sold_out"}),
        ([slot("b", 2, clicked=True, dwell_ms=900)], {"b": "bounced"}),
        ([slot("b", 2, sponsored=True, clicked=True), slot("b", 3)], {"b": "engaged_elsewhere"}),
        ([slot("b", 2), slot("c", 3, visible_ms=700)], {"b": "unseen"}),
    ],
)
def test_what_does_not_count_is_named_with_its_reason(slots: Sequence[JoinedSlot], reasons: dict[str, str]) -> None:
    """Whoever asks why a product has not moved can read it in the list."""
    training = training_search(search(slot("a", 1, visible_ms=1_000), *slots))
    assert training is not None
    assert {one.product_id: one.reason for one in training.left_out} == reasons


def test_other_lists_may_leave_a_product_out() -> None:
    """Neither its showing nor its click counts then; the others keep theirs."""
    training = training_search(
        search(slot("a", 1), slot("b", 2, clicked=True)), excluded={"b": SlotReason.ENGAGED_ELSEWHERE}
    )
    assert training is not None
    assert [one.product_id for one in training.slots] == ["a"]


def test_a_list_that_names_nothing_says_nothing() -> None:
    """A blank query, and a list without a slot that counts."""
    assert training_search(search(slot("a", 1), query=" ")) is None
    assert training_search(search()) is None


def test_the_propensity_in_force_when_the_list_was_shown_is_used() -> None:
    """By its cell and its time, relative to the top position, with its version."""
    asked = set()

    def theta(cell: Cell, position: int, at_ms: int) -> tuple[float, int]:
        asked.add((cell, at_ms))
        return {1: 0.8, 2: 0.4, 3: 0.9}[position], 12

    shown = search(slot("a", 1), slot("b", 2), slot("c", 3), surface="search", device="mobile", layout="grid")
    training = training_search(shown, theta=theta)
    assert training is not None
    assert [one.showing for one in training.slots] == [1.0, 0.5, 1.0]
    assert training.propensity_version == 12
    assert asked == {(Cell("search", "mobile", "grid"), T0)}


def test_a_product_that_stands_twice_counts_once() -> None:
    """Its best look, its best outcome, its first click, its highest position."""
    training = training_search(
        search(slot("a", 2, clicked=True, click_time=T0 + 9), slot("a", 4, cart_quantity=1, click_time=T0 + 5))
    )
    assert training is not None
    (one,) = training.slots
    assert (one.position, one.showing, one.value, one.click_time) == (2, 0.5, 4.0, T0 + 5)


def swap(seed: int) -> Ranking:
    """Return a ranking whose neighbours were exchanged."""
    return Ranking(exploration=Exploration(policy="swap", seed=seed))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"ranking": swap(7)}, (2, 4)),
        ({"ranking": swap(6)}, (1, 3)),
        ({"ranking": swap(7), "first_page_ends": 4}, (2,)),
        ({"ranking": swap(7), "first_page_ends": 3}, (2,)),
        ({"ranking": swap(7), "page": 2}, ()),
        ({}, None),
        ({"ranking": Ranking(exploration=Exploration(policy="jitter", seed=7))}, None),
    ],
)
def test_a_list_tells_which_neighbours_stood_in_random_order(
    told: dict[str, Any], expected: tuple[int, ...] | None
) -> None:
    """Those of the first page that policy `swap` may have exchanged: no pair crosses its end."""
    shown = search(*(slot(f"p-{position}", position) for position in range(1, 6)), **told)
    training = training_search(shown)
    assert training is not None
    assert training.exchanged == expected


@pytest.mark.parametrize("seed", range(40, 60))
def test_what_search_exchanges_is_what_a_list_tells(seed: int) -> None:
    """Any product that search moved is one of the two of a named position; the others stand where they stood."""
    before = [f"p-{position}" for position in range(1, 8)]
    after = swapped([before], seed)[0]
    shown = search(*(slot(one, position) for position, one in enumerate(after, start=1)), ranking=swap(seed))
    positions = exchanged_positions(shown)
    assert positions is not None
    moved = {position for position in range(1, 8) if before[position - 1] != after[position - 1]}
    assert moved <= {either for position in positions for either in (position, position + 1)}

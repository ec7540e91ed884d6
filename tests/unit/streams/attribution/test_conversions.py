"""Which events tell of a value, when they are due, what they belong to, and that a restart changes nothing."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ContractError
from contracts.joined import CLOSING_NUMBER_HEADER, ClosingNumber, Origin
from contracts.outcomes import VALUE, Grade
from contracts.pairs import PreferencePair, pair_id
from contracts.topics import LATE_EVENTS, SEARCH_EVENTS, set_aside_headers
from streams.agents.spec import Emit, Plan, SetAside
from streams.attribution import conversions
from streams.attribution.conversions import (
    Conversion,
    Found,
    PartitionConversions,
    candidates,
    conversion_of,
    origin_of,
    value_pair,
)
from streams.attribution.remembered import HORIZON_MS, ChosenProduct, SessionClick, kept_pair
from tests.support.pairs import preference_pair
from tests.support.search_events import T0, Record, at, cart, click, encoded, purchase

DELAY_MS = 10_000
LATE = 500_000
"""When the purchases of these tests happened, after T0, and were set aside."""


def set_aside(offset: int, event: dict[str, Any] | bytes, number: int | None = None, *, time_ms: int = LATE) -> Record:
    """Return an event as the join sets it aside."""
    headers = set_aside_headers(SEARCH_EVENTS, 0, 100 + offset, stage="join", reason="after_deadline")
    if number is not None:
        headers.append((CLOSING_NUMBER_HEADER, ClosingNumber("0-0", number).encode()))
    return Record(offset, at(time_ms), encoded(event), b"s1", headers)


def chosen(grade: Grade = Grade.CLICK) -> ChosenProduct:
    """Return a product that was chosen once."""
    pair = preference_pair("s1", chosen="a", rejected="b")
    return ChosenProduct("s1", "a", grade, T0 + HORIZON_MS, kept_pair(pair))


def rules(past: Any = None) -> PartitionConversions:
    """Return the rules of a partition of late events."""
    return PartitionConversions(LATE_EVENTS, 0, delay_ms=DELAY_MS, past=past)


def decide(state: PartitionConversions, *, found: Found | None = None, clock_ms: int = LATE + DELAY_MS) -> Plan:
    """Decide what is due, of which Redis knows always the same; None: Redis is away."""
    plan: Plan = []
    while due := state.due(at(clock_ms)):
        state.settle(len(due), None if found is None else {record.offset: found for record, _ in due}, plan)
    return plan


def feed(state: PartitionConversions, log: Sequence[Record]) -> None:
    """Let records be read; that alone plans nothing."""
    plan: Plan = []
    for record in log:
        state.take(record, plan)
    assert plan == []


def value_pairs(plan: Plan) -> list[PreferencePair]:
    """Return the pairs of a plan."""
    return [PreferencePair.model_validate_json(one.value) for one in plan if isinstance(one, Emit)]


def test_a_late_purchase_adds_what_it_is_worth_more_than_the_click() -> None:
    """The pair repeats the earlier one but for source, value, weight, grade and time, and names the event's record."""
    state = rules()
    feed(state, [set_aside(0, purchase("a", LATE))])
    (pair,) = value_pairs(decide(state, found=Found("found", chosen())))
    earlier = preference_pair("s1", chosen="a", rejected="b")
    added = VALUE[Grade.PURCHASE] - VALUE[Grade.CLICK]
    assert (pair.source, pair.factors.value, pair.weight, pair.chosen.grade) == ("value", added, added, 4)
    assert (pair.query, pair.rejected, pair.closed_at) == (earlier.query, earlier.rejected, earlier.closed_at)
    assert (pair.event_time, pair.inferred) == (at(LATE), None)
    assert pair.origins == (Origin(topic=SEARCH_EVENTS, partition=0, offset=100),)
    assert (state.progress().counts, state.progress().pairs) == ({"attributed/raised": 1}, 1)


def test_two_upgrades_of_one_pair_have_two_ids_and_their_values_add_up() -> None:
    """A cart and then a purchase say together what the purchase alone would have said."""
    at_once = Conversion(Origin(topic="t", partition=0, offset=0), ("x",), Grade.PURCHASE, "a", at(1), None, "s1")
    put = value_pair(at_once._replace(grade=Grade.CART), chosen(), inferred=False)
    bought = value_pair(at_once, chosen(Grade.CART), inferred=True)
    whole = value_pair(at_once, chosen(), inferred=False)
    assert put is not None
    assert bought is not None
    assert whole is not None
    assert put.factors.value + bought.factors.value == whole.factors.value
    assert len({put.pair_id, bought.pair_id, pair_id("s1", "a", "b", source="value")}) == 3
    assert (whole.pair_id, bought.inferred) == (bought.pair_id, True)


@pytest.mark.parametrize("grade", [Grade.CART, Grade.PURCHASE])
def test_what_was_worth_as_much_before_makes_no_pair_and_is_attributed(grade: Grade) -> None:
    """A second cart, or a cart after the purchase, belongs to its list and adds nothing."""
    state = rules()
    feed(state, [set_aside(0, cart("a", LATE))])
    assert decide(state, found=Found("found", chosen(grade))) == []
    assert state.progress().counts == {"attributed/unchanged": 1}


def test_an_event_waits_until_its_lists_are_closed_and_remembered() -> None:
    """A purchase may follow a click of the same minute, whose list is open for a window; the rest need not wait."""
    state = rules()
    feed(state, [set_aside(0, click()), set_aside(1, purchase()), set_aside(2, click())])
    assert [record.offset for record, _ in state.due(at(LATE + DELAY_MS - 1))] == [0]
    assert [record.offset for record, _ in state.due(None)] == [0]
    assert [record.offset for record, _ in state.due(at(LATE + DELAY_MS))] == [0, 1, 2]
    decide(state, clock_ms=LATE, found=Found("nothing"))
    assert (state.progress().next_offset, state.progress().hold_offset, state.waits) == (1, 1, True)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (Found("nothing"), "unmatched/no_pair"),
        (Found("expired"), "unmatched/expired"),
        (Found("duplicate"), "left/duplicate"),
        (None, "unmatched/no_memory"),
    ],
)
def test_what_raises_no_pair_is_counted_with_its_reason(found: Found | None, outcome: str) -> None:
    """Nothing is dropped silently."""
    state = rules()
    feed(state, [set_aside(0, purchase("a", LATE))])
    assert decide(state, found=found) == []
    assert state.progress().counts == {outcome: 1}


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (click(), "left/other_type"),
        ({**cart(), "synthetic": True}, "left/synthetic"),
        ({**purchase(), "consent": "denied"}, "left/consent"),
    ],
)
def test_what_is_none_of_attributions_business_is_left(event: dict[str, Any], outcome: str) -> None:
    """Probes, events without consent and everything that tells no value are not looked up."""
    state = rules()
    feed(state, [set_aside(0, event)])
    assert [conversion for _, conversion in state.due(None)] == [None]
    decide(state, found=Found("found", chosen()))
    assert state.progress().counts == {outcome: 1}


def test_what_breaks_the_contract_is_a_dead_letter() -> None:
    """Anyone may write to the topics; an order of several lines the join would have refused."""
    two_lines = {**purchase(), "items": [{"product_id": "a"}, {"product_id": "b"}]}
    state = rules()
    feed(state, [set_aside(0, b"{"), set_aside(1, two_lines)])
    plan = decide(state, found=Found("nothing"))
    assert [one.reason for one in plan if isinstance(one, SetAside)] == ["malformed_json", "unsplit_purchase"]
    assert state.progress().counts == {"dead_lettered": 2}
    with pytest.raises(ContractError):
        conversion_of(set_aside(0, two_lines), LATE_EVENTS, 0)


def test_what_a_killed_join_wrote_again_is_counted_once() -> None:
    """Its number is known; what comes with a higher one is new, and so is what has none."""
    log = [(purchase("a", 1), 1), (purchase("b", 2), 2), (purchase("a", 1), 1), (purchase("c", 3), 3)]
    state = rules()
    feed(state, [set_aside(offset, event, number) for offset, (event, number) in enumerate(log)])
    feed(state, [set_aside(4, purchase("d", 4))])
    decide(state, found=Found("nothing"))
    assert state.progress().counts == {"unmatched/no_pair": 4, "left/repeated": 1}


@given(st.lists(st.integers(0, 8), max_size=6))
def test_a_restart_anywhere_decides_and_counts_as_if_there_had_been_none(kills: list[int]) -> None:
    """What waits is read again, what was decided is not; the log has repeats, other events and a dead letter."""
    events: list[dict[str, Any] | bytes] = [purchase("a", 1), click(), b"{", cart("b", 2), purchase("a", 1), click("c")]
    numbers = [1, 2, 3, 4, 1, 5]
    log = [set_aside(offset, event, number) for offset, (event, number) in enumerate(zip(events, numbers, strict=True))]
    at_once, state, plan = rules(), rules(), Plan()
    feed(at_once, log)
    expected = decide(at_once, found=Found("found", chosen()))
    for kill in sorted(kills):
        feed(state, log[:kill])
        for _ in range(kill % 3):
            if due := state.due(at(LATE + DELAY_MS))[:1]:
                state.settle(1, {due[0][0].offset: Found("found", chosen())}, plan)
        state = rules(None if state.next_offset < 0 else state.progress())
    feed(state, log)
    plan += decide(state, found=Found("found", chosen()))
    assert plan == expected
    assert state.progress() == at_once.progress()


@pytest.mark.parametrize(("bound", "most"), [("MOST_WAITING", 2), ("MOST_WAITING_BYTES", 600)])
def test_what_waits_is_bounded_and_the_oldest_are_decided_before_their_time(
    monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    """With Redis away for hours memory must not grow, however large records are; what had no room is counted."""
    monkeypatch.setattr(conversions, bound, most)
    state = rules()
    feed(state, [set_aside(offset, purchase(event_id=f"p{offset}")) for offset in range(5)])
    assert state.is_full
    assert [record.offset for record, _ in state.due(None)] == [0, 1, 2]
    decide(state, clock_ms=0)
    assert (state.progress().counts, state.is_full) == ({"unmatched/no_memory": 3}, False)
    decide(state)
    assert (state.waits, state._waiting_bytes) == (False, 0)


def test_the_search_that_an_event_names_comes_first_then_the_sessions_clicks_the_last_one_first() -> None:
    """Whose list gave no pair, as of a click that says nothing new, hides no earlier one for the same query.

    Of clicks on other products, after the event, or more than a day before it, none is taken.
    """
    conversion = conversion_of(set_aside(0, purchase("a", LATE, "s9")), LATE_EVENTS, 0)
    assert isinstance(conversion, Conversion)
    clicks = [
        SessionClick(at(LATE) - HORIZON_MS - 1, "a", "too old"),
        SessionClick(at(100), "a", "s1", "q"),
        SessionClick(at(200), "a", "s2", "q"),
        SessionClick(at(150), "a", "s2", "q"),
        SessionClick(at(300), "b", "another product", "q"),
        SessionClick(at(LATE + 1), "a", "too late", "q"),
    ]
    assert candidates(conversion, clicks) == [("s9", False), ("s2", True), ("s1", True)]
    assert candidates(conversion._replace(search_id=None), clicks) == [("s2", True), ("s1", True)]
    assert candidates(conversion._replace(search_id="s2"), clicks) == [("s2", False), ("s1", True)]
    assert candidates(conversion._replace(search_id=None), []) == []


@pytest.mark.parametrize(
    ("queries", "named_found", "unnamed_found"),
    [(("q", "other"), [], []), (("", ""), [], []), (("q", "q"), [("s1", True)], [("s1", True)])],
    ids=["another query", "of before queries were kept", "the same query"],
)
def test_past_a_known_search_only_its_own_query_is_looked_at(
    queries: tuple[str, str], named_found: list[tuple[str, bool]], unnamed_found: list[tuple[str, bool]]
) -> None:
    """What happened in a list that is held out, or a robot's, is no evidence for what was asked otherwise."""
    named = conversion_of(set_aside(0, purchase("a", LATE, "s2")), LATE_EVENTS, 0)
    assert isinstance(named, Conversion)
    clicks = [SessionClick(at(100 * n), "a", f"s{n}", query) for n, query in enumerate(queries, start=1)]
    assert candidates(named, clicks) == [("s2", False), *named_found]
    assert candidates(named._replace(search_id=None), clicks) == [("s2", True), *unnamed_found]
    of_another = [clicks[0], clicks[1]._replace(product_id="b")]
    assert candidates(named, of_another) == [("s2", False), *named_found]


def test_an_order_counts_each_of_its_products_once_and_a_cart_event_counts_once() -> None:
    """Whatever the events are called that tell of an order: its number and the product make it unique."""
    lines = [purchase("a", 1, event_id="e1"), purchase("a", 9, event_id="e2"), purchase("b", 1, event_id="e1#2")]
    carts = [cart("a", 1, event_id="e1"), cart("a", 9, event_id="e2")]
    found = [conversion_of(set_aside(0, event), LATE_EVENTS, 0) for event in (*lines, *carts)]
    identities = [one.identity for one in found if isinstance(one, Conversion)]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 4


@pytest.mark.parametrize("headers", [[], [("millrace.origin.topic", b"search-events")], "negative"])
def test_without_the_joins_headers_the_record_itself_is_the_origin(headers: Any) -> None:
    """Anyone may write headers; what they do not say is not made up."""
    if headers == "negative":
        headers = [*set_aside_headers(SEARCH_EVENTS, 0, 1, stage="join", reason="x"), ("millrace.origin.offset", b"-1")]
    record = Record(7, T0, orjson.dumps(purchase()), b"k", headers)
    assert origin_of(record) is None
    conversion = conversion_of(record, LATE_EVENTS, 3)
    assert isinstance(conversion, Conversion)
    assert conversion.origin == Origin(topic=LATE_EVENTS, partition=3, offset=7)

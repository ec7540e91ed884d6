"""The join, case by case: a log in, what is joined and what is set aside out. Window 1,000 ms, lateness 100 ms."""

from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from contracts.joined import JoinedSearch
from contracts.topics import partition_for
from streams.agents.spec import Emit, Plan, SetAside
from streams.join.partition_join import PartitionJoin
from tests.support.search_events import (
    T0,
    Record,
    at,
    cart,
    click,
    dwell,
    encoded,
    impression,
    log,
    purchase,
    tick,
    view,
)

WINDOW_MS, LATENESS_MS = 1_000, 100
CLOSES_ALL = tick(10_000)


@dataclass(frozen=True)
class Case:
    """A log, and what must follow from it.

    Args:
        sentence: what it shows.
        events: the log.
        joined: ids of the searches that are joined, in order.
        aside: (event id or None, outcome, reason) of what is set aside, in order.
        counts: outcomes that are not zero.
    """

    sentence: str
    events: tuple[dict[str, Any] | bytes, ...]
    joined: tuple[str, ...] = ()
    aside: tuple[tuple[str | None, str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


def page(first: int, products: str, *, event_id: str, **fields: Any) -> dict[str, Any]:
    """Return an impression of the first search that shows one-letter products from a position on."""
    slots = [{"product_id": product, "position": position} for position, product in enumerate(products, start=first)]
    return {**impression(event_id=event_id, **fields), "slots": slots}


CASES = [
    Case(
        "a search stays open at its deadline and closes right after it",
        (impression(), tick(1_100)),
        counts=(("pending", 1), ("ticks", 1)),
    ),
    Case(
        "a search closes when the watermark has passed its deadline",
        (impression(), tick(1_101)),
        joined=("s1",),
        counts=(("joined", 1), ("ticks", 1)),
    ),
    Case(
        "a click may come before its impression",
        (click(), impression(), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("ticks", 1)),
    ),
    Case(
        "a click at the deadline counts, one after it is late though the search is open",
        (
            impression(),
            click("a", time_ms=1_000, event_id="in"),
            click("a", time_ms=1_001, event_id="out"),
            CLOSES_ALL,
        ),
        joined=("s1",),
        aside=(("out", "late", "after_deadline"),),
        counts=(("joined", 2), ("late", 1), ("ticks", 1)),
    ),
    Case(
        "a straggler of a closed search is late and opens nothing",
        (impression(), tick(1_101), click("a", time_ms=500, event_id="slow")),
        joined=("s1",),
        aside=(("slow", "late", "after_close"),),
        counts=(("joined", 1), ("late", 1), ("ticks", 1)),
    ),
    Case(
        "carts and purchases after the window are late",
        (impression(), cart("a", time_ms=1_500, event_id="c"), purchase("a", time_ms=1_600, event_id="p")),
        joined=("s1",),
        aside=(("c", "late", "after_deadline"), ("p", "late", "after_deadline")),
        counts=(("joined", 1), ("late", 2)),
    ),
    Case(
        "a repeated event is a duplicate",
        (impression(), click("a", event_id="c"), click("a", event_id="c"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("duplicate", 1), ("ticks", 1)),
    ),
    Case(
        "of two impressions of one search one counts",
        (impression(event_id="z"), impression(event_id="b"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 1), ("duplicate", 1), ("ticks", 1)),
    ),
    Case(
        "a search id shown at two times is two searches",
        (impression(), impression(time_ms=50), CLOSES_ALL),
        joined=("s1", "s1"),
        counts=(("joined", 2), ("ticks", 1)),
    ),
    Case(
        "a search without its impression makes orphans of its events",
        (click("a", event_id="c"), dwell("a", event_id="d"), CLOSES_ALL),
        aside=(("c", "orphan", "no_impression"), ("d", "orphan", "no_impression")),
        counts=(("orphan", 2), ("ticks", 1)),
    ),
    Case(
        "an event that names no search is an orphan at once",
        (cart(search_id=None, search_time_ms=None, event_id="c"),),
        aside=(("c", "orphan", "no_search"),),
        counts=(("orphan", 1),),
    ),
    Case(
        "an event without the search's time joins the list that is open",
        (impression(), click("a", search_time_ms=None), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("ticks", 1)),
    ),
    Case(
        "it may come before the impression",
        (click("a", search_time_ms=None), impression(), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("ticks", 1)),
    ),
    Case(
        "it never opens a search: without an impression it waits for a window and is an orphan",
        (click("a", time_ms=0, search_time_ms=None, event_id="c"), tick(1_101)),
        aside=(("c", "orphan", "no_impression"),),
        counts=(("orphan", 1), ("ticks", 1)),
    ),
    Case(
        "until then it is pending",
        (click("a", time_ms=0, search_time_ms=None, event_id="c"), tick(1_100)),
        counts=(("pending", 1), ("ticks", 1)),
    ),
    Case(
        "of two lists with one id it belongs to the later one",
        (impression(), impression(time_ms=400), click("a", time_ms=500, search_time_ms=None), tick(1_101)),
        joined=("s1",),
        counts=(("joined", 1), ("pending", 2), ("ticks", 1)),
    ),
    Case(
        "unless only the earlier one shows its product",
        (
            impression(),
            impression(time_ms=400, products="xyz"),
            click("a", time_ms=500, search_time_ms=None),
            tick(1_101),
        ),
        joined=("s1",),
        counts=(("joined", 2), ("pending", 1), ("ticks", 1)),
    ),
    Case(
        "or the later one was shown after it",
        (click("a", time_ms=300, search_time_ms=None), impression(time_ms=400), impression(), tick(1_101)),
        joined=("s1",),
        counts=(("joined", 2), ("pending", 1), ("ticks", 1)),
    ),
    Case(
        "or its window does not reach so far",
        (impression(), click("a", time_ms=1_001, search_time_ms=None, event_id="c"), CLOSES_ALL),
        joined=("s1",),
        aside=(("c", "orphan", "no_impression"),),
        counts=(("joined", 1), ("orphan", 1), ("ticks", 1)),
    ),
    Case(
        "a product that no list showed makes an orphan of it",
        (impression(), click("z", search_time_ms=None, event_id="c"), CLOSES_ALL),
        joined=("s1",),
        aside=(("c", "orphan", "no_impression"),),
        counts=(("joined", 1), ("orphan", 1), ("ticks", 1)),
    ),
    Case(
        "two events of different types may share an id",
        (impression(event_id="x"), click("a", event_id="x"), dwell("a", event_id="x"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 3), ("ticks", 1)),
    ),
    Case(
        "an impression that shows further positions is a page of its list",
        (impression(event_id="z"), page(7, "ghi", event_id="b"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("ticks", 1)),
    ),
    Case(
        "one that shows the same again is a duplicate, whatever its id",
        (impression(event_id="z"), page(4, "de", event_id="b"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 1), ("duplicate", 1), ("ticks", 1)),
    ),
    Case(
        "and so is one that shows something else there",
        (impression(event_id="z"), page(6, "xyz", event_id="b"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 1), ("duplicate", 1), ("ticks", 1)),
    ),
    Case(
        "an order line that comes once more as another event is a duplicate",
        (impression(), purchase("a", event_id="p"), purchase("a", time_ms=500, event_id="q"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("duplicate", 1), ("ticks", 1)),
    ),
    Case(
        "two lines of one event are two lines, and so are those of two products",
        (
            impression(),
            purchase("a", event_id="p#0"),
            purchase("a", event_id="p#1"),
            purchase("b", event_id="q"),
            CLOSES_ALL,
        ),
        joined=("s1",),
        counts=(("joined", 4), ("ticks", 1)),
    ),
    Case(
        "an order line belongs to the search that its line names",
        (impression(), purchase("b"), CLOSES_ALL),
        joined=("s1",),
        counts=(("joined", 2), ("ticks", 1)),
    ),
    Case(
        "an order of several lines in one record is refused",
        ({**purchase(event_id="p"), "items": purchase()["items"] * 2},),
        aside=(("p", "dead_lettered", "unsplit_purchase"),),
        counts=(("dead_lettered", 1),),
    ),
    Case(
        "what is not JSON is refused and moves no time",
        (impression(), b"oops", CLOSES_ALL),
        joined=("s1",),
        aside=((None, "dead_lettered", "malformed_json"),),
        counts=(("joined", 1), ("dead_lettered", 1), ("ticks", 1)),
    ),
    Case(
        "closed searches come out in the order of their deadlines, whatever the order of arrival",
        (impression("s2", 20), impression("s3", 10), impression("s1", 0), CLOSES_ALL),
        joined=("s1", "s3", "s2"),
        counts=(("joined", 3), ("ticks", 1)),
    ),
]


def run(records: list[Record]) -> tuple[PartitionJoin, Plan]:
    """Feed records to a join."""
    join, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS), Plan()
    for record in records:
        join.take(record, plan)
    return join, plan


def joined(*events: dict[str, Any] | bytes) -> JoinedSearch:
    """Return the one search that events make."""
    _, plan = run(log([*events, CLOSES_ALL]))
    (emitted,) = [one for one in plan if isinstance(one, Emit)]
    return JoinedSearch.model_validate_json(emitted.value)


def event_id(output: SetAside) -> str | None:
    """Return the id of an event that was set aside, where it has one."""
    try:
        found: str | None = orjson.loads(output.record.value or b"").get("event_id")
    except orjson.JSONDecodeError:
        return None
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_case(case: Case) -> None:
    """The log of each case gives what its sentence says."""
    join, plan = run(log(list(case.events)))
    assert tuple(orjson.loads(one.value)["search_id"] for one in plan if isinstance(one, Emit)) == case.joined
    aside = tuple((event_id(one), str(one.outcome), str(one.reason)) for one in plan if isinstance(one, SetAside))
    assert aside == case.aside
    assert {name: n for name, n in join.counts().items() if n} == dict(case.counts)


def test_every_slot_carries_what_happened_to_it() -> None:
    """Clicks, stays, carts, purchases and views stand on the slot they name: first, longest, sums, longest."""
    search = joined(
        impression(products="ba"),
        click("a", time_ms=300),
        click("a", time_ms=200),
        dwell("a", dwell_ms=1_000),
        dwell("a", dwell_ms=9_000, time_ms=900),
        cart("a", quantity=2),
        cart("a", time_ms=350),
        purchase("a", quantity=3),
        view({"a": 500, "b": 100}),
        view({"a": 400}, time_ms=160),
    )
    first, second = search.slots
    assert (first.product_id, first.clicked, first.visible_ms, first.dwell_ms) == ("b", False, 100, None)
    assert (second.clicked, second.click_time, second.dwell_ms) == (True, at(200), 9_000)
    assert (second.cart_quantity, second.purchase_quantity, second.visible_ms) == (3, 3, 500)


def test_slots_come_in_the_order_of_their_positions() -> None:
    """A shop may send slots in any order; the joined search has them by position."""
    shuffled = {**impression(), "slots": list(reversed(impression()["slots"]))}
    assert [slot.product_id for slot in joined(shuffled).slots] == list("abcdef")


def test_events_on_products_that_the_list_lacks_are_counted() -> None:
    """They are joined, because they happened, and counted as unlisted, because they help nobody."""
    assert joined(impression(), click("z"), view({"a": 1, "y": 1})).unlisted == 2


def test_the_smallest_impression_is_the_one_that_counts() -> None:
    """Of two lists with one identity the smaller event id is kept, whatever came first."""
    assert joined(impression(event_id="z", products="xyz"), impression(event_id="b")).slots[0].product_id == "a"


def test_denied_consent_and_synthetic_events_mark_the_whole_search() -> None:
    """One event without consent keeps the search out of learning, and so does one that no person made."""
    assert joined(impression(consent="granted"), click(consent="denied")).consent == "denied"
    assert joined(impression(consent="granted"), click()).consent == "granted"
    assert joined(impression(), click(synthetic=True)).synthetic
    assert not joined(impression(), click()).synthetic


def test_origins_are_the_records_that_counted() -> None:
    """They stand in the log's order, without the duplicate."""
    assert [origin.offset for origin in joined(impression(), click("a"), click("a"), click("b")).origins] == [0, 1, 3]


def test_the_deadline_is_the_moment_of_closing() -> None:
    """`closed_at` is event time, so that a replay on another day says the same."""
    search = joined(impression(time_ms=7))
    assert (search.search_time, search.closed_at) == (at(7), at(1_007))


@pytest.mark.parametrize(("session", "key"), [("k7", b"k7"), (None, b"s1")])
def test_a_joined_search_is_keyed_by_session_else_by_search(session: str | None, key: bytes) -> None:
    """The pairs agent sees a session's lists in one partition."""
    shown = {**impression(client_id="c1"), "session_id": session}
    _, plan = run(log([shown, CLOSES_ALL]))
    assert [one.key for one in plan if isinstance(one, Emit)] == [key]


def test_a_clock_that_is_a_little_ahead_is_set_back_to_the_arrival() -> None:
    """Up to five minutes ahead an event counts at its append time; its own time would close its neighbours."""
    records = [Record(0, T0, encoded(impression(time_ms=0))), Record(1, T0 + 50, encoded(click(time_ms=200_000)))]
    join, plan = run(records)
    assert (join.counts()["pending"], plan) == (2, [])


@pytest.mark.parametrize("field", ["event_time", "search_time"])
def test_a_time_far_ahead_is_refused(field: str) -> None:
    """More than five minutes ahead of its arrival, a time can be used for nothing, least of all to hold the log."""
    event = {**click(), field: T0 + 300_001}
    join, plan = run([Record(0, T0, encoded(event))])
    (aside,) = plan
    assert isinstance(aside, SetAside)
    assert (aside.reason, join.event_time.watermark_ms) == ("too_far_ahead", -1)


def test_of_two_events_with_one_id_the_same_is_kept_in_any_order() -> None:
    """A sender that uses an id twice gets one of the two, and always the same one."""
    one, other = click("a", time_ms=100, event_id="x"), click("b", time_ms=90, event_id="x")
    assert joined(impression(), one, other).slots == joined(impression(), other, one).slots


def test_an_event_in_a_partition_that_its_search_does_not_belong_to_is_told_apart() -> None:
    """Its list lies elsewhere: the producer places keys otherwise than Kafka's own clients do."""
    reasons = {}
    for partition in range(4):
        join = PartitionJoin(partition, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, partitions=4)
        plan: Plan = []
        for record in log([click("a"), click("b", search_time_ms=None), CLOSES_ALL]):
            join.take(record, plan)
        reasons[partition] = {one.reason for one in plan if isinstance(one, SetAside)}
    right = partition_for(b"s1", 4)
    assert reasons == {number: {"no_impression" if number == right else "wrong_partition"} for number in range(4)}

"""What the join costs while many searches are open: bytes, objects that the garbage collector walks, and work."""

import gc
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from typing_extensions import override

from contracts.topics import MOST_SENT_BYTES
from streams.agents.spec import Plan, SetAside
from streams.join.open_search import HeldEvent, KeptRecord
from streams.join.partition_join import PartitionJoin
from streams.join.waiting_events import WaitingEvent, WaitingEvents
from tests.support.lines import Lines
from tests.support.search_events import Record, at, click, dwell, encoded, impression, log, tick, view

WINDOW_MS, LATENESS_MS = 600_000, 10_000
SEARCHES = 2_000
BYTES_PER_EVENT = {1: 1_000, 9: 500}


def new_join() -> PartitionJoin:
    """Return a join with the windows of a shop."""
    return PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, person_key=b"key")


def shop_list(number: int) -> dict[str, Any]:
    """Return a list as shops send them: ten slots with every field."""
    slots = [
        {
            "product_id": f"P-{number * 10 + position:08d}", "position": position, "sponsored": False, "pinned": False,
            "in_stock": True, "price": number + position / 100, "score": 1 / (number + position),
            "parent_id": f"V-{number * 10 + position:08d}",
        }
        for position in range(1, 11)
    ]  # fmt: skip
    persons = {"session_id": f"k{number:020d}", "client_id": f"{number:064x}", "locale": "en-IN", "device": "mobile"}
    ranking = {"ranker": "millrace", "query_release": 17, "product_release": 3, "arm": "live"}
    event = impression(f"01J{number:023d}", number, event_id=f"018f{number:032d}", **persons, surface="search")
    return {**event, "query": f"quiet fridge {number}", "slots": slots, "ranking": ranking, "total_results": 412}


def followed(number: int) -> list[dict[str, Any]]:
    """Return what follows a list: looks, clicks, stays."""
    named: dict[str, Any] = {"search_id": f"01J{number:023d}", "search_time_ms": number}
    products = [slot["product_id"] for slot in shop_list(number)["slots"]]
    return [
        view(dict.fromkeys(products, 1_800), number + 1, **named, event_id=f"v{number:035d}"),
        *(click(product, number + 2, **named, event_id=f"{product}{number:026d}") for product in products[:4]),
        *(dwell(product, 9_000, number + 3, **named, event_id=f"{product}{number:026d}") for product in products[:3]),
    ]


@pytest.mark.parametrize("reverse", [False, True], ids=["list first", "list last"])
@pytest.mark.parametrize("events", [1, 9])
def test_an_event_costs_less_than_a_kilobyte_while_its_search_is_open(events: int, reverse: bool) -> None:
    """A list of ten slots too; the garbage collector walks none of it, and nothing is left of a closed search."""
    order = -1 if reverse else 1
    records = log([one for n in range(SEARCHES) for one in [shop_list(n), *followed(n)][:events][::order]])
    join, plan = new_join(), Plan()
    gc.collect()
    walked = len(gc.get_objects())
    tracemalloc.start()
    try:
        for record in records:
            join.take(record, plan)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        assert len(gc.get_objects()) - walked < 100
        assert held / len(records) < BYTES_PER_EVENT[events]
        join.take(Record(len(records), at(2_000_000), encoded(tick(2_000_000))), plan)
        plan.clear()
        gc.collect()  # Python keeps up to 2,000 freed tuples of each size
        assert tracemalloc.get_traced_memory()[0] < held / 8
    finally:
        tracemalloc.stop()
    assert join.counts()["joined"] == len(records)


def work(events: Sequence[dict[str, Any]]) -> float:
    """Return how many lines the join executes for an event, until everything is closed."""
    join, lines = new_join(), Lines("streams/join")
    records = log([*events, tick(2_000_000)])
    with lines.counted():
        for record in records:
            join.take(record, [])
    assert join.progress().counts.pending == 0
    return lines.count / len(records)


@pytest.mark.parametrize("timed", [True, False], ids=["with the search's time", "without it"])
def test_a_constant_search_id_makes_no_more_work(timed: bool) -> None:
    """A site that gives every list one id costs about what others cost, whether its events name the time or not."""

    def events(search_id: str) -> list[dict[str, Any]]:
        """Return lists and clicks, in the order in which they happen."""
        pairs = [
            (impression(search_id.format(n), n), click("a", n + 1, search_id.format(n), n if timed else None, f"c{n}"))
            for n in range(1_000)
        ]
        return [event for pair in pairs for event in pair]

    assert work(events("constant")) < 1.5 * work(events("s{}"))


@pytest.mark.parametrize("products", ["a", "abcde"], ids=["the same product", "five in turn"])
@pytest.mark.parametrize("lists", [0, 60], ids=["no list", "thirty lists open"])
def test_events_that_wait_under_one_id_make_little_more_work(products: str, lists: int) -> None:
    """Though as many lists of the id are open as may be, most waiting events are not compared with most of them."""

    def events(search_id: str, count: int) -> list[dict[str, Any]]:
        """Return lists over two windows, and so many clicks between them, a third of them on what no list shows."""
        every_ms = 2 * WINDOW_MS // 60
        shown = [
            impression(search_id.format(n), n * every_ms, products=products[n % len(products)]) for n in range(lists)
        ]
        clicks = [
            click("a" if n % 3 else "unlisted", time_ms, search_id.format(time_ms // every_ms), None, f"c{n}")
            for n, time_ms in enumerate(range(0, 2 * WINDOW_MS, 2 * WINDOW_MS // count))
        ]
        return sorted([*shown, *clicks], key=lambda event: event["event_time"])

    assert work(events("constant", 2_000)) < 2 * work(events("s{}", 2_000))
    assert work(events("constant", 4_000)) < 1.1 * work(events("constant", 2_000))


class Compared(int):
    """A number that counts how often it is compared."""

    count = 0

    @override
    def __lt__(self, other: int) -> bool:
        """Count and compare."""
        Compared.count += 1
        return super().__lt__(other)

    @override
    def __eq__(self, other: object) -> bool:
        """Count and compare."""
        Compared.count += 1
        return super().__eq__(other)

    __hash__ = int.__hash__


def test_waits_that_end_at_once_are_not_compared_with_all_that_wait() -> None:
    """A tick may end the waits of any number of events under one id, in an order that is not the one of arrival."""
    count = 2_000
    waiting = WaitingEvents()
    for offset in range(count):
        until_ms = Compared(offset * 7919 % count)
        event = HeldEvent("click", until_ms, until_ms, "a", None, 0, b"", None, False, False, offset)
        event.record = KeptRecord(offset, until_ms, None, None, ())
        waiting.add(WaitingEvent(until_ms, f"click {offset}", "constant", offset, event))
    Compared.count = 0
    ended = []
    while (expired := waiting.pop_expired(count)) is not None:
        ended.append(expired[1].timestamp)
    assert ended == list(range(count))
    assert list(waiting) == []
    assert Compared.count < 50 * count


def test_one_event_without_its_search_time_holds_the_log_for_one_window() -> None:
    """Everything behind it is free once its own window is over, whether a list took it or none did."""
    for product in ("a", "unlisted"):
        events = [impression(), click(product, 1_000, search_time_ms=None), impression("s2", 2_000)]
        join, _ = run([*events, tick(WINDOW_MS + LATENESS_MS + 1_000)])
        assert join.progress().hold_offset <= 1
        join, _ = run([*events, tick(WINDOW_MS + LATENESS_MS + 1_001)])
        assert join.progress().hold_offset == 2


def test_a_record_is_bounded_as_it_is_unpacked() -> None:
    """Kafka bounds packed records; what is larger in itself would fit no topic of ours, so it is a dead letter."""
    event = impression()
    join, plan = new_join(), Plan()
    for offset, size in enumerate((MOST_SENT_BYTES, MOST_SENT_BYTES + 1)):
        join.take(Record(offset, at(0), encoded(event | {"event_id": f"i-{size}"}).ljust(size)), plan)
    assert [(one.record.offset, one.reason) for one in plan if isinstance(one, SetAside)] == [(1, "too_large")]
    assert join.open_searches == 1


def run(events: Sequence[dict[str, Any]]) -> tuple[PartitionJoin, Plan]:
    """Feed events to a join."""
    join, plan = new_join(), Plan()
    for record in log(events):
        join.take(record, plan)
    return join, plan

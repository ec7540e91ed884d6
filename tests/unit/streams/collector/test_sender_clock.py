"""Devices whose clocks are wrong: their lists and what follows them stay together, in order, and near the truth."""

from random import Random
from typing import Any, Final

import orjson
import pytest

from contracts.base import YEAR_2000_MS, YEAR_2100_MS
from streams.collector.intake import Accepted, Arrival, Rejected, decide_event
from streams.collector.sender_clock import JITTER_MS, STEP_MS, TOLERANCE_MS, by_our_clock
from streams.join.partition_join import PartitionJoin
from tests.support.collector import NOW_MS, click, impression, purchase
from tests.support.search_events import Record, encoded

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
WINDOW_MS: Final = 10 * MINUTE
SHOWN_MS: Final = NOW_MS
"""When the list was really shown."""


def list_as_sent(error_ms: int, *, by_page: bool, after_ms: int = 0, way_ms: int = 0) -> tuple[dict[str, Any], int]:
    """Return the impression of a device whose clock is wrong, and when it came in.

    Args:
        error_ms: how far the clock is ahead.
        by_page: the page stamps the list by this clock; if not, it repeats the time that a search service gave it.
        after_ms: how long after the list it is sent.
        way_ms: how long it takes to us.
    """
    sent_at = SHOWN_MS + after_ms + error_ms
    shown = impression(event_time=SHOWN_MS + by_page * error_ms, sent_at=sent_at)
    return shown, SHOWN_MS + after_ms + way_ms


def click_as_sent(
    error_ms: int, *, by_page: bool, pause_ms: int, way_ms: int = 0, **fields: Any
) -> tuple[dict[str, Any], int]:
    """Return a click on that list so long after it, and when it came in."""
    clicked_at = SHOWN_MS + pause_ms + error_ms
    times = {"event_time": clicked_at, "sent_at": clicked_at, "search_time": SHOWN_MS + by_page * error_ms}
    return click(**{**times, **fields}), SHOWN_MS + pause_ms + way_ms


def taken(event: dict[str, Any], received_at: int) -> dict[str, Any]:
    """Return the record that an event becomes."""
    decision = decide_event(event, Arrival(received_at=received_at, person_key=b"person"))
    assert isinstance(decision, Accepted), decision
    (record,) = decision.records
    value: dict[str, Any] = orjson.loads(record.value)
    return value


def joined(*records: dict[str, Any]) -> int:
    """Return how many records the join brings together, each appended to the log when it came in."""
    join = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=SECOND)
    later = impression("later", search_id="s2", event_time=SHOWN_MS + HOUR, received_at=SHOWN_MS + HOUR)
    for offset, record in enumerate([*records, later]):
        join.take(Record(offset, record["received_at"], encoded(record)), [])
    return join.counts()["joined"]


ERRORS = [0, HOUR, -HOUR, DAY, -DAY, 5 * HOUR + 30 * MINUTE, -400 * DAY, 20_000 * DAY, -9_000 * DAY]


@pytest.mark.parametrize("by_page", [True, False], ids=["stamped by the page", "stamped by a search service"])
@pytest.mark.parametrize("error_ms", ERRORS)
def test_a_list_and_its_click_stay_together_though_each_request_measures_another_error(
    error_ms: int, by_page: bool
) -> None:
    """Both name the very same time, which is the true one; the click comes after it, and the join takes both."""
    shown = taken(*list_as_sent(error_ms, by_page=by_page, after_ms=40, way_ms=2_900))
    clicked = taken(*click_as_sent(error_ms, by_page=by_page, pause_ms=4_000, way_ms=60))
    assert shown["event_time"] == clicked["search_time"] == SHOWN_MS
    assert 0 < clicked["event_time"] - SHOWN_MS <= 4_060
    assert joined(shown, clicked) == joined(clicked, shown) == 2


def any_device(random: Random) -> tuple[int, bool, int, int, int, int]:
    """Draw how wrong a clock is, who stamps the list, and how long everything takes."""
    error_ms = random.choice(
        [
            random.randint(-400 * DAY, 400 * DAY),
            random.randint(-30 * MINUTE, 30 * MINUTE),
            random.randint(-2 * MINUTE, 2 * MINUTE),
            random.randint(-24, 24) * HOUR + random.randint(-2_000, 2_000),
        ]
    )
    pause_ms = random.choice([random.randint(100, 5_000), random.randint(100, WINDOW_MS - MINUTE)])
    way_ms = random.randint(0, 3_000)
    ways_ms = way_ms + random.randint(0, JITTER_MS), way_ms + random.randint(0, JITTER_MS)
    return error_ms, random.random() < 0.5, pause_ms, random.randint(0, 20_000), *ways_ms


def test_whatever_the_clock_says_no_event_names_another_time_than_its_lists() -> None:
    """Over thousands of devices: the list's time or none at all, never before it, and the list near its true time."""
    random = Random(6)
    unnamed = 0
    for _ in range(5_000):
        error_ms, by_page, pause_ms, after_ms, *ways_ms = any_device(random)
        told = f"{error_ms=} {by_page=} {pause_ms=} {after_ms=} {ways_ms=}"
        shown = by_our_clock(*list_as_sent(error_ms, by_page=by_page, after_ms=after_ms, way_ms=ways_ms[0]))
        clicked = by_our_clock(*click_as_sent(error_ms, by_page=by_page, pause_ms=pause_ms, way_ms=ways_ms[1]))
        assert clicked.get("search_time", shown["event_time"]) == shown["event_time"], told
        assert clicked["event_time"] >= shown["event_time"] - TOLERANCE_MS, told
        assert abs(shown["event_time"] - SHOWN_MS) <= STEP_MS // 2 + ways_ms[0], told
        unnamed += "search_time" not in clicked
    assert 0 < unnamed < 2_000


def test_the_join_brings_them_together_even_if_the_click_could_not_name_its_list() -> None:
    """Clocks that are wrong by minutes leave it open whose time a list has; the id of the search decides."""
    random = Random(7)
    for _ in range(300):
        error_ms, by_page, pause_ms, after_ms, *ways_ms = any_device(random)
        told = f"{error_ms=} {by_page=} {pause_ms=} {after_ms=} {ways_ms=}"
        shown, clicked = (
            taken(*list_as_sent(error_ms, by_page=by_page, after_ms=after_ms, way_ms=ways_ms[0])),
            taken(*click_as_sent(error_ms, by_page=by_page, pause_ms=pause_ms, way_ms=ways_ms[1])),
        )
        assert joined(*sorted((shown, clicked), key=lambda record: record["received_at"])) == 2, told


def test_pages_of_one_list_are_one_list_though_they_are_sent_one_by_one() -> None:
    """Every request of a device moves the time of the list by as many minutes."""
    pages = [taken(*list_as_sent(-7 * MINUTE, by_page=True, after_ms=n * 900, way_ms=n * 600)) for n in range(5)]
    assert len({page["event_time"] for page in pages}) == 1


def test_a_time_that_may_be_by_either_clock_is_left_out_and_counted() -> None:
    """Two minutes ahead, three minutes after the list: by the sender's clock, or by that of the search service?"""
    sent, received_at = click_as_sent(2 * MINUTE, by_page=False, pause_ms=3 * MINUTE)
    decision = decide_event(sent, Arrival(received_at=received_at, person_key=b"person"))
    assert isinstance(decision, Accepted)
    assert sorted(decision.corrections) == ["clock", "search_time"]
    record = orjson.loads(decision.records[0].value)
    assert "search_time" not in record
    assert record["event_time"] == SHOWN_MS + 3 * MINUTE


@pytest.mark.parametrize(
    ("skew_ms", "moved_ms"), [(HOUR, HOUR), (-HOUR, -HOUR), (1_001, 1_001), (1_000, 0), (-1_000, 0), (0, 0)]
)
def test_what_no_event_repeats_moves_by_what_was_measured(skew_ms: int, moved_ms: int) -> None:
    """A click moves to the millisecond; a difference of up to a second is the way of the request."""
    sent_at = NOW_MS - skew_ms
    record = taken(click(event_time=sent_at - 5_000, sent_at=sent_at), NOW_MS)
    assert record["event_time"] == sent_at - 5_000 + moved_ms
    assert record["search_time"] == click()["search_time"]
    assert record["sent_at"] == sent_at


def test_a_clock_that_is_a_little_wrong_moves_no_list_and_puts_no_click_before_it() -> None:
    """Below half a minute lists stay where they are, and a click that would come before its list comes with it."""
    shown = taken(*list_as_sent(20 * SECOND, by_page=True))
    clicked = taken(*click_as_sent(20 * SECOND, by_page=True, pause_ms=4_000))
    assert shown["event_time"] == clicked["search_time"] == clicked["event_time"] == SHOWN_MS + 20 * SECOND


def test_without_sent_at_nothing_moves() -> None:
    """An old event of a right clock and a new one of a wrong clock look the same."""
    record = taken(click(event_time=NOW_MS - DAY, search_time=NOW_MS - DAY - 1_000), NOW_MS)
    assert (record["event_time"], record["search_time"]) == (NOW_MS - DAY, NOW_MS - DAY - 1_000)


def test_lines_of_an_order_move_with_their_own_lists() -> None:
    """An order may hold lines of several lists, and lines of none."""
    sent = purchase("s1", "s2", None, event_time=NOW_MS - DAY, sent_at=NOW_MS - DAY)
    for line, ago_ms in zip(sent["items"][:2], (5 * MINUTE, 9 * MINUTE), strict=True):
        line["search_time"] = NOW_MS - DAY - ago_ms
    decision = decide_event(sent, Arrival(received_at=NOW_MS, person_key=b"person"))
    assert isinstance(decision, Accepted)
    lines = [orjson.loads(record.value) for record in decision.records]
    assert [line["event_time"] for line in lines] == [NOW_MS] * 3
    named = [line["items"][0].get("search_time") for line in lines]
    assert named == [NOW_MS - 5 * MINUTE, NOW_MS - 9 * MINUTE, None]


def test_an_event_that_names_no_time_comes_after_the_latest_list_that_it_can_mean() -> None:
    """The list of a device may have moved half a minute further than the click did; one of no list moves exactly."""
    sent_at = NOW_MS - 95 * SECOND
    shown = taken(impression(event_time=sent_at - 100, sent_at=sent_at), NOW_MS)
    put = click(type="cart", event_time=sent_at, sent_at=sent_at)
    put.pop("search_time")
    assert shown["event_time"] == sent_at - 100 + 2 * MINUTE
    assert taken(put, NOW_MS)["event_time"] == sent_at + 2 * MINUTE
    put.pop("search_id")
    assert taken(put, NOW_MS)["event_time"] == NOW_MS


@pytest.mark.parametrize(
    ("sent_at", "field"),
    [(0, "event_time"), (NOW_MS // 1_000, "event_time"), (YEAR_2100_MS + DAY, "event_time")],
    ids=["1970", "seconds instead of milliseconds", "2100"],
)
@pytest.mark.parametrize("kind", [impression, click])
def test_times_that_are_none_are_refused_not_corrected(kind: Any, sent_at: int, field: str) -> None:
    """A clock that began anew in 1970 and a wrong unit look the same: the sender has to hear of it."""
    decision = decide_event(kind(event_time=sent_at, sent_at=sent_at), Arrival(received_at=NOW_MS, person_key=b"p"))
    assert isinstance(decision, Rejected), decision
    assert (decision.reason, decision.field) == ("out_of_range", field)


@pytest.mark.parametrize("sent_at", [YEAR_2000_MS + DAY, YEAR_2100_MS])
def test_clocks_at_either_end_of_what_is_a_time_are_corrected(sent_at: int) -> None:
    """A device that believes to be in the year 2000 or 2100 is as good as any other."""
    shown = taken(impression(event_time=sent_at - 6_000, sent_at=sent_at - 5_900), NOW_MS - 5_900)
    clicked = taken(click(event_time=sent_at, search_time=sent_at - 6_000, sent_at=sent_at), NOW_MS)
    assert shown["event_time"] == clicked["search_time"]
    assert abs(shown["event_time"] - NOW_MS + 6_000) <= STEP_MS // 2
    assert clicked["event_time"] >= shown["event_time"]


def test_a_list_that_comes_after_its_event_is_passed_on_as_it_is_named() -> None:
    """What contradicts itself by every clock is not made to agree."""
    record = taken(click(event_time=NOW_MS - HOUR, sent_at=NOW_MS - HOUR, search_time=NOW_MS + MINUTE), NOW_MS)
    assert (record["event_time"], record["search_time"]) == (NOW_MS, NOW_MS + MINUTE)

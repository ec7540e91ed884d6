"""Event time: the earlier of two clocks, a mark that trails it, ticks that Kafka stamps, and what holds the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import MalformedMessage
from streams.join.event_time import BEFORE_FIRST_MS, EventTime, Hold, LowWater, happened_ms
from tests.support.search_events import T0


def test_a_record_happened_at_the_earlier_of_its_two_times() -> None:
    """Kafka's clock corrects a sender's that is a little ahead; a late arrival keeps its own time."""
    assert happened_ms(T0 + 300_000, T0) == T0
    assert happened_ms(T0 - 7, T0) == T0 - 7


def test_a_time_more_than_five_minutes_ahead_is_refused() -> None:
    """Such a clock says nothing about when the event happened."""
    with pytest.raises(MalformedMessage) as refused:
        happened_ms(T0 + 300_001, T0, field="search_time")
    assert (refused.value.reason, refused.value.field) == ("too_far_ahead", "search_time")


@given(times=st.lists(st.integers(T0, T0 + 10_000), min_size=1), lateness_ms=st.integers(0, 5_000))
def test_the_watermark_trails_the_newest_time(times: list[int], lateness_ms: int) -> None:
    """After any times it is a lateness below the largest, and it never went back."""
    time = EventTime(lateness_ms)
    assert time.watermark_ms == BEFORE_FIRST_MS
    marks = [time.advance(time_ms, append_ms=time_ms) for time_ms in times]
    assert marks == sorted(marks)
    assert time.watermark_ms == max(times) - lateness_ms


@given(
    times=st.lists(st.integers(T0, T0 + 10_000), min_size=1),
    delay_ms=st.integers(0, 100_000),
    passed_ms=st.integers(0, 3_600_000),
    made=st.integers(T0 - 4_000_000, T0 + 4_000_000),
)
def test_a_tick_moves_event_time_by_what_passed(times: list[int], delay_ms: int, passed_ms: int, made: int) -> None:
    """Whatever clock made it, it moves event time by what passed on Kafka's clock, to a quarter of a second."""
    time = EventTime(1_000)
    for time_ms in times:
        time.advance(time_ms, append_ms=time_ms + delay_ms)
    newest_ms = max(times)
    happened = time.tick_happened_ms(made, newest_ms + delay_ms + passed_ms)
    assert abs(happened - newest_ms - passed_ms) <= 250
    assert happened <= newest_ms + passed_ms + delay_ms


def test_the_first_record_of_a_partition_may_be_a_tick() -> None:
    """There is nothing to count on from: it is an event like any other."""
    assert EventTime(10).tick_happened_ms(T0 + 7, T0) == T0


def test_the_log_is_held_at_the_oldest_that_is_undecided() -> None:
    """Later ones that are done do not matter as long as an older one is not; one may have to be held for longer."""
    hold = Hold()
    assert hold.low_water(70) is None
    hold.begin(3, (30, 30), until_ms=60)
    hold.begin(5, (50, 50), until_ms=40)
    hold.begin(8, (60, 60), until_ms=55)
    assert hold.low_water(60) == LowWater(3, 30, 30)
    hold.extend(8, until_ms=80)
    assert hold.low_water(61) == LowWater(8, 60, 60)
    assert Hold(hold.save()).low_water(80) == LowWater(8, 60, 60)
    assert hold.low_water(81) is None


def test_a_hold_lets_go_of_what_it_passed() -> None:
    """Its columns stay as long as what is undecided, not as long as the log."""
    hold = Hold()
    for offset in range(1_000):
        hold.begin(offset, (offset, offset), until_ms=offset + 10)
        hold.low_water(offset)
    assert all(len(column) <= 8 * 30 for column in hold.save())

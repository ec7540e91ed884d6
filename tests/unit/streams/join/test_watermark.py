"""Event time: the earlier of two clocks, and a mark that trails it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import MalformedMessage
from streams.join.hold import Hold, LowWater
from streams.join.watermark import BEFORE_FIRST_MS, Watermark, record_time_ms
from tests.support.search_events import T0


class Held:
    """Something undecided."""

    def __init__(self, first_offset: int) -> None:
        self.first_offset = first_offset
        self.watermark_ms = first_offset * 10
        self.released = False


def test_a_record_happened_at_the_earlier_of_its_two_times() -> None:
    """Kafka's clock corrects a sender's that is a little ahead; a late arrival keeps its own time."""
    assert record_time_ms(T0 + 300_000, T0) == T0
    assert record_time_ms(T0 - 7, T0) == T0 - 7


def test_a_time_more_than_five_minutes_ahead_is_refused() -> None:
    """Such a clock says nothing about when the event happened."""
    with pytest.raises(MalformedMessage) as refused:
        record_time_ms(T0 + 300_001, T0, field="search_time")
    assert (refused.value.reason, refused.value.field) == ("too_far_ahead", "search_time")


@given(times=st.lists(st.integers(T0, T0 + 10_000), min_size=1), lateness_ms=st.integers(0, 5_000))
def test_the_watermark_trails_the_newest_time(times: list[int], lateness_ms: int) -> None:
    """After any times it stands a lateness below the largest, and it never went back."""
    watermark = Watermark(lateness_ms)
    assert watermark.at_ms == BEFORE_FIRST_MS
    stood = [watermark.advance(time_ms) for time_ms in times]
    assert stood == sorted(stood)
    assert watermark.at_ms == max(times) - lateness_ms


def test_the_log_is_held_at_the_oldest_that_is_undecided() -> None:
    """Later ones that are done do not matter as long as an older one is not."""
    hold, old, new = Hold(), Held(3), Held(5)
    hold.add(old)
    hold.add(new)
    new.released = True
    assert hold.low_water(9, 70) == LowWater(3, 30)
    old.released = True
    assert hold.low_water(9, 70) == LowWater(9, 70)

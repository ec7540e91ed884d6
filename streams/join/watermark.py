"""Event time: when a record happened, and how far a partition has come.

A sender's clock may run ahead, Kafka's append time may not: a record's time is the earlier of the two. The watermark
trails the newest time by the lateness we grant to disorder, and it never runs backwards.
"""

from contracts.errors import MalformedMessage
from contracts.events import FUTURE_TOLERANCE_MS

BEFORE_FIRST_MS = -1
"""The watermark of a partition of which nothing was read."""


def record_time_ms(event_time: int, append_ms: int, *, field: str = "event_time") -> int:
    """Return the time that the join gives a record.

    Args:
        event_time: when it happened, by the sender's clock.
        append_ms: when Kafka appended it.
        field: where the time was found, for the error.

    Raises:
        MalformedMessage: the sender's clock is so far ahead that its times cannot be used.

    >>> record_time_ms(2_000, 5_000), record_time_ms(6_000, 5_000)
    (2000, 5000)
    """
    if event_time > append_ms + FUTURE_TOLERANCE_MS:
        ahead_s = (event_time - append_ms) // 1000
        raise MalformedMessage("too_far_ahead", f"{field} is {ahead_s} s ahead of its arrival", field=field)
    return min(event_time, append_ms)


class Watermark:
    """How far the event time of one partition has come.

    Args:
        lateness_ms: how much disorder is waited for.
        at_ms: where it stands.

    >>> watermark = Watermark(10, at_ms=100)
    >>> watermark.advance(105), watermark.advance(120), watermark.advance(90)
    (100, 110, 110)
    """

    __slots__ = ("at_ms", "lateness_ms")

    def __init__(self, lateness_ms: int, *, at_ms: int = BEFORE_FIRST_MS) -> None:
        self.lateness_ms = lateness_ms
        self.at_ms = at_ms

    def advance(self, time_ms: int) -> int:
        """Take note of a record's time and return where the watermark stands now."""
        self.at_ms = max(self.at_ms, time_ms - self.lateness_ms)
        return self.at_ms

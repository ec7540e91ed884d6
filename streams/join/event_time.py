"""Event time in one partition: when a record happened, how far the partition has come, and what a restart reads again.

A sender's clock may run ahead, Kafka's append time may not: a record happened at the earlier of the two. The watermark
trails the newest such time by the lateness that we grant to disorder, and it never runs backwards.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from contracts.errors import MalformedMessage
from contracts.events import FUTURE_TOLERANCE_MS
from contracts.progress import EarlierWindows

BEFORE_FIRST_MS: Final = -1
"""The watermark of a partition of which nothing was read."""
CLOCK_TOLERANCE_MS: Final = 250
"""A smaller difference between the clocks of a worker and of Kafka is the way of a record, not an error."""


def happened_ms(event_time: int, append_ms: int, *, field: str = "event_time") -> int:
    """Return the time that the join gives a record.

    Args:
        event_time: when it happened, by the sender's clock.
        append_ms: when Kafka appended it.
        field: where the time was found, for the error.

    Raises:
        MalformedMessage: the sender's clock is so far ahead that its times cannot be used.

    >>> happened_ms(2_000, 5_000), happened_ms(6_000, 5_000)
    (2000, 5000)
    """
    if event_time <= append_ms:
        return event_time
    if event_time > append_ms + FUTURE_TOLERANCE_MS:
        ahead_s = (event_time - append_ms) // 1000
        raise MalformedMessage("too_far_ahead", f"{field} is {ahead_s} s ahead of its arrival", field=field)
    return append_ms


class EventTime:
    """How far the event time of one partition has come.

    Args:
        lateness_ms: how much disorder is waited for.
        watermark_ms: what happened before this is not waited for any more.
        moved_append_ms: when Kafka appended the record that moved the watermark there.

    >>> time = EventTime(10, watermark_ms=100)
    >>> time.advance(105, append_ms=106), time.advance(120, append_ms=121), time.advance(90, append_ms=122)
    (100, 110, 110)
    >>> time.next_tick_ms(2_121)
    2120
    """

    __slots__ = ("lateness_ms", "moved_append_ms", "newest_append_ms", "newest_ms", "watermark_ms")

    def __init__(
        self, lateness_ms: int, *, watermark_ms: int = BEFORE_FIRST_MS, moved_append_ms: int = BEFORE_FIRST_MS
    ) -> None:
        self.lateness_ms = lateness_ms
        self.watermark_ms = watermark_ms
        self.moved_append_ms = moved_append_ms
        self.newest_ms = self.newest_append_ms = BEFORE_FIRST_MS

    def advance(self, time_ms: int, *, append_ms: int) -> int:
        """Take note of when a record happened and return the watermark."""
        if time_ms > self.newest_ms:
            self.newest_ms, self.newest_append_ms = time_ms, append_ms
        if time_ms - self.lateness_ms > self.watermark_ms:
            self.watermark_ms, self.moved_append_ms = time_ms - self.lateness_ms, append_ms
        return self.watermark_ms

    def next_tick_ms(self, now_ms: int) -> int:
        """Return the event time of a tick: the newest, and what passed since Kafka appended the record that has it."""
        return self.newest_ms + now_ms - self.newest_append_ms

    def tick_happened_ms(self, event_time: int, append_ms: int) -> int:
        """Return the time for which a tick stands that Kafka has stamped.

        If the clock by which it was made is wrong, event time moves on by what passed between Kafka's own stamps.

        >>> time = EventTime(10)
        >>> time.advance(100, append_ms=50_000)
        90
        >>> [time.tick_happened_ms(made, append_ms=52_003) for made in (2_100, 362_100, -358_000)]
        [2100, 2103, 2103]
        """
        if self.moved_append_ms != BEFORE_FIRST_MS:
            passed_ms = max(0, append_ms - self.moved_append_ms)
            expected_ms = self.watermark_ms + self.lateness_ms + passed_ms
            if abs(event_time - expected_ms) > CLOCK_TOLERANCE_MS:
                event_time = expected_ms
        return min(event_time, append_ms)


class Windows:
    """Which window belongs to a moment, and which lateness to a record, over changes of their settings.

    A deadline has to be the same whatever process computes it: else a search that was closed could be opened again. So
    a changed window holds for what is shown after everything that was decided before the change, a changed lateness for
    the records read after it. What held before is part of the progress while something of that time could be open.

    Args:
        window_ms: the newest.
        lateness_ms: the newest.
        earlier: what held before, oldest first.

    >>> windows = Windows(1_000, 100)
    >>> windows.change(5_000, 200, shown_from_ms=7_000, read_from=42)
    >>> windows.window_at(6_999), windows.window_at(7_000), windows.lateness_at(41), windows.lateness_at(42)
    (1000, 5000, 100, 200)
    """

    __slots__ = ("earlier", "lateness_ms", "window_ms")

    def __init__(self, window_ms: int, lateness_ms: int, *, earlier: Iterable[EarlierWindows] = ()) -> None:
        self.window_ms = window_ms
        self.lateness_ms = lateness_ms
        self.earlier = tuple(earlier)

    def window_at(self, time_ms: int) -> int:
        """Return the window of what happened at a moment."""
        if not self.earlier:
            return self.window_ms
        return next((one.window_ms for one in self.earlier if time_ms < one.until_ms), self.window_ms)

    def lateness_at(self, offset: int) -> int:
        """Return the lateness with which a record is read."""
        return next((one.lateness_ms for one in self.earlier if offset < one.until_offset), self.lateness_ms)

    def last_deadline(self, time_ms: int) -> int:
        """Return the latest deadline of all lists that can have been shown up to a moment.

        >>> windows = Windows(5_000, 0)
        >>> windows.change(100, 0, shown_from_ms=7_000, read_from=42)
        >>> windows.last_deadline(6_999), windows.last_deadline(7_500), windows.last_deadline(20_000)
        (11999, 11999, 20100)
        """
        ended = [one.until_ms - 1 + one.window_ms for one in self.earlier if one.until_ms <= time_ms]
        return max(time_ms + self.window_at(time_ms), *ended, 0)

    def change(self, window_ms: int, lateness_ms: int, *, shown_from_ms: int, read_from: int) -> None:
        """Let other settings hold from here on; nothing changes if they are the same.

        Args:
            window_ms: of what is shown from now on.
            lateness_ms: of what is read from now on.
            shown_from_ms: after everything that was shown so far.
            read_from: offset of the next record.
        """
        if (window_ms, lateness_ms) == (self.window_ms, self.lateness_ms):
            return
        until_ms = max(shown_from_ms, *(one.until_ms for one in self.earlier), 0)
        ended = EarlierWindows(
            until_ms=until_ms, until_offset=read_from, window_ms=self.window_ms, lateness_ms=self.lateness_ms
        )
        self.earlier = (*self.earlier, ended)
        self.window_ms, self.lateness_ms = window_ms, lateness_ms

    def needed_at(self, watermark_ms: int) -> tuple[EarlierWindows, ...] | None:
        """Return what a restart from this watermark has to know of earlier ones; None if that is nothing.

        An event without its search's time waits for one window, and its list was open for another before.
        """
        reach_ms = 2 * max(self.window_ms, *(one.window_ms for one in self.earlier), 0)
        return tuple(one for one in self.earlier if watermark_ms <= one.until_ms + reach_ms) or None


class LowWater(NamedTuple):
    """Where a restart begins, and how far event time had come just before that record."""

    offset: int
    watermark_ms: int
    moved_append_ms: int


class Hold:
    """What a restart has to read again: the log from the oldest record on with which something undecided began.

    A restart that repeats the log from there, with the event time of that moment, comes to the same state.

    Args:
        saved: what `save` returned.
    """

    def __init__(self, saved: Sequence[bytes] = (b"", b"", b"", b"")) -> None:
        self._columns = [array("q", numbers) for numbers in saved]
        self._offsets, self._watermarks, self._moved, self._until = self._columns
        self._oldest = 0

    def begin(self, offset: int, before: tuple[int, int], *, until_ms: int) -> None:
        """Hold the log at the record that was just read.

        Args:
            offset: of the record.
            before: the watermark before it, and when Kafka appended what had moved it there.
            until_ms: event time after which no decision depends on what began there.
        """
        self._offsets.append(offset)
        self._watermarks.append(before[0])
        self._moved.append(before[1])
        self._until.append(until_ms)

    def extend(self, offset: int, *, until_ms: int) -> None:
        """Hold the log for longer at a record at which it is held."""
        place = bisect_right(self._offsets, offset) - 1
        self._until[place] = max(self._until[place], until_ms)

    def low_water(self, watermark_ms: int) -> LowWater | None:
        """Return where a restart has to begin; None if nothing is undecided."""
        while self._oldest < len(self._until) and self._until[self._oldest] < watermark_ms:
            self._oldest += 1
        if 2 * self._oldest >= len(self._until):
            for column in self._columns:
                del column[: self._oldest]
            self._oldest = 0
        oldest = self._oldest
        if not self._until:
            return None
        return LowWater(self._offsets[oldest], self._watermarks[oldest], self._moved[oldest])

    def save(self) -> list[bytes]:
        """Return everything that holds the log."""
        return [column.tobytes() for column in self._columns]

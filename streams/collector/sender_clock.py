"""Times by our clock, as far as `sent_at` tells what the sender's clock says.

The time of a list is the identity of its search, and later events repeat it. Two requests never measure quite the same
error, because each holds its own way to us. So times of lists move by whole minutes, on which all requests of a device
agree, and only what no event repeats moves by what was measured. If an event does not tell for certain which time its
list has by our clock, it leaves without `search_time`: the join then finds the list by `search_id`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

TOLERANCE_MS: Final = 1_000
"""A smaller difference between two clocks is the way of the request, not an error."""
STEP_MS: Final = 60_000
"""Times of lists move by multiples of this; clocks are mostly wrong by whole hours."""
JITTER_MS: Final = 5_000
"""How much two requests of one device may differ in what they measure."""
LIKELY_PAUSE_MS: Final = 1_800_000
"""Longest time from a list to what follows it, if a shorter one is possible."""


@dataclass(frozen=True, slots=True)
class SenderClock:
    """The clock that stamped `sent_at`.

    Args:
        sent_at: when the request left, by that clock.
        received_at: when it came in, by ours.
    """

    sent_at: int
    received_at: int

    @property
    def behind_ms(self) -> int:
        """What to add to the sender's times: the error of its clock, and the way of the request."""
        return self.received_at - self.sent_at

    def shown_at(self, event_time: int) -> int:
        """Return when a list was shown, of which its impression tells.

        A page may stamp the impression itself or repeat the time that a search service gave it. A list cannot be newer
        than its sending; if both clocks allow it, the one by which it was sent sooner is believed.

        >>> an_hour_ahead, an_hour_behind = SenderClock(3_700_000, 100_400), SenderClock(100_000, 3_700_400)
        >>> an_hour_ahead.shown_at(3_699_000), an_hour_ahead.shown_at(99_000)
        (99000, 99000)
        >>> an_hour_behind.shown_at(99_000), an_hour_behind.shown_at(3_699_000)
        (3699000, 3699000)
        """
        by_sender = event_time <= self.sent_at + TOLERANCE_MS
        by_us = event_time <= self.received_at + TOLERANCE_MS
        if by_sender and not (by_us and self.behind_ms < 0):
            return event_time + _whole_steps(self.behind_ms)
        return event_time

    def list_times(self, search_time: int, *, event_time: int) -> set[int]:
        """Return every time, by our clock, that the list of an event may have; none if the list came after the event.

        It holds what `shown_at` made of the impression, whichever clock stamped it and however long either request took
        within `JITTER_MS`.

        Args:
            search_time: as the event names it, by the sender's clock or by that of a search service.
            event_time: when the event happened, by the sender's clock.

        >>> SenderClock(3_700_000, 100_400).list_times(3_690_000, event_time=3_695_000)
        {90000}
        >>> SenderClock(3_700_000, 100_400).list_times(90_000, event_time=3_695_000)
        {90000}
        >>> sorted(SenderClock(220_000, 100_400).list_times(90_000, event_time=215_000))
        [-30000, 90000]
        """
        happened_at = event_time + self.behind_ms
        possible: set[int] = set()
        if search_time <= event_time:
            least, most = self.behind_ms - JITTER_MS, self.behind_ms + JITTER_MS
            possible |= {search_time + _whole_steps(least), search_time + _whole_steps(most)}
        if search_time <= happened_at + TOLERANCE_MS:
            possible.add(search_time)
        likely = {time_ms for time_ms in possible if happened_at - time_ms <= LIKELY_PAUSE_MS}
        return likely or {max(possible)} if possible else possible


def _whole_steps(difference_ms: int) -> int:
    return STEP_MS * round(difference_ms / STEP_MS)


def by_our_clock(event: Mapping[str, Any], received_at: int) -> dict[str, Any]:
    """Return a shop event with its times by our clock; as it came if its sender's clock is right or says nothing.

    No event is moved before the list that it names.

    Args:
        event: its form is right.
        received_at: when it came in.
    """
    sent_at = event.get("sent_at")
    if sent_at is None or abs(received_at - sent_at) <= TOLERANCE_MS:
        return dict(event)
    clock, event_time = SenderClock(sent_at, received_at), event["event_time"]
    if event["type"] == "impression":
        return {**event, "event_time": clock.shown_at(event_time)}
    if event["type"] == "purchase":
        lines = [_with_list_time(line, clock, event_time) for line in event["items"]]
        moved, lists_at = {**event, "items": [line for line, _ in lines]}, [shown_at for _, shown_at in lines]
    else:
        moved, shown_at = _with_list_time(event, clock, event_time)
        lists_at = [shown_at]
    moved["event_time"] = max(event_time + clock.behind_ms, *lists_at)
    return moved


def _with_list_time(fields: Mapping[str, Any], clock: SenderClock, event_time: int) -> tuple[dict[str, Any], int]:
    """Return the fields that name a list with its time by our clock, if that is certain, and its latest possible time.

    A list of which the time is not named may have been shown just before the event.
    """
    happened_at, named = event_time + clock.behind_ms, fields.get("search_time")
    if named is None and fields.get("search_id") is None:
        return dict(fields), happened_at
    possible = clock.list_times(event_time if named is None else named, event_time=event_time)
    latest = max(possible, default=happened_at)
    if named is None or not possible:
        return dict(fields), latest
    if len(possible) == 1:
        return {**fields, "search_time": latest}, latest
    return {name: value for name, value in fields.items() if name != "search_time"}, latest

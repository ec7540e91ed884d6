"""Ticks: what moves the event time of a partition in which nothing happens.

Without them the last searches of an evening would stay open until the next morning. A tick is a record like any other,
in the log's order, so that a search which a tick closed is closed by every replay at the same place.
"""

from typing import Final

from contracts.events import Tick
from contracts.wire import encode

IDLE_S: Final = 1.0
"""How long a partition is quiet before a tick is due."""


def is_due(*, position: int, end: int | None, idle_s: float) -> bool:
    """Whether a partition was read to its end and has been quiet for long enough.

    >>> is_due(position=7, end=7, idle_s=1.5), is_due(position=6, end=7, idle_s=1.5)
    (True, False)
    """
    return end is not None and position >= end and idle_s >= IDLE_S


def tick_value(event_time: int) -> bytes:
    """Return the record's value."""
    return encode(Tick(type="tick", event_time=event_time))

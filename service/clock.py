"""The wall clock in the wire's unit; the one place that reads it for times that leave the process."""

import time
from collections.abc import Callable

EpochClock = Callable[[], int]
"""Returns epoch milliseconds; core code is given one, or the time itself."""


def epoch_ms() -> int:
    """Return the time now, milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000

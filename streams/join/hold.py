"""The oldest record that a restart has to read again.

Everything that is undecided holds the log at the record where it began, with the watermark of that moment; a restart
that repeats the log from there comes to the same state.
"""

from collections import deque
from typing import NamedTuple, Protocol


class Holder(Protocol):
    """Something undecided: an open search, a waiting event."""

    first_offset: int
    watermark_ms: int
    released: bool


class LowWater(NamedTuple):
    """Where a restart begins, and the watermark just before that record."""

    offset: int
    watermark_ms: int


class Hold:
    """The holders of one partition, in the order in which they began."""

    def __init__(self) -> None:
        self._holders: deque[Holder] = deque()

    def add(self, holder: Holder) -> None:
        """Hold the log at the holder's first record; that of a later one must not be smaller."""
        self._holders.append(holder)

    def low_water(self, next_offset: int, watermark_ms: int) -> LowWater:
        """Return where a restart has to begin, given how far the log was read."""
        while self._holders and self._holders[0].released:
            self._holders.popleft()
        if not self._holders:
            return LowWater(next_offset, watermark_ms)
        oldest = self._holders[0]
        return LowWater(oldest.first_offset, oldest.watermark_ms)

"""Collects pairs until there are enough for a step, or the oldest has waited long enough."""

from collections.abc import Sequence
from typing import Generic, TypeVar

P = TypeVar("P")


class MicroBatcher(Generic[P]):
    """First in, first out; the clock is the caller's.

    Args:
        size: pairs of a full micro-batch.
        max_age_s: how long a pair waits for others at most.
    """

    def __init__(self, size: int, max_age_s: float) -> None:
        self._size = size
        self._max_age_s = max_age_s
        self._waiting: list[P] = []
        self._oldest_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pairs: Sequence[P], *, now_s: float) -> None:
        """Add pairs that arrived now."""
        if pairs and not self._waiting:
            self._oldest_s = now_s
        self._waiting.extend(pairs)

    def take(self, *, now_s: float) -> list[P]:
        """Return the next micro-batch, empty while none is due.

        >>> batcher = MicroBatcher[str](size=2, max_age_s=5.0)
        >>> batcher.add(["a", "b", "c"], now_s=0.0)
        >>> batcher.take(now_s=0.0), batcher.take(now_s=0.0), batcher.take(now_s=5.0)
        (['a', 'b'], [], ['c'])
        """
        full = len(self._waiting) >= self._size
        old = bool(self._waiting) and now_s - self._oldest_s >= self._max_age_s
        if not full and not old:
            return []
        batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        self._oldest_s = now_s
        return batch

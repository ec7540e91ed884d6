"""What keeps load within what the machine can do: a bound that learns, and one call for equal searches."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from cachetools import TTLCache

from contracts.errors import MillraceError, Overloaded

FEWEST_OPEN: Final = 4
MOST_OPEN: Final = 64
"""Searches under way at one time, and so calls to the vector store."""
T = TypeVar("T")


class AdaptiveLimit:
    """How many searches may be under way, so that those that are begun end in time, whatever the machine can do.

    A call to the vector store that failed, or took three quarters of the deadline, takes a quarter off; each quicker
    one adds a little. So if the vector store hangs, few wait for it and the others are answered from memory at once.

    Args:
        deadline_s: how long a search may take.
        monotonic_s: clock that measures them.
    """

    def __init__(self, deadline_s: float, monotonic_s: Callable[[], float]) -> None:
        self._slow_s = 0.75 * deadline_s
        self._monotonic_s = monotonic_s
        self._open = 0
        self._most = float(MOST_OPEN)
        self._lowered_at_s = -math.inf

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a search while it is under way.

        Raises:
            Overloaded: too many are.
        """
        if self._open >= self._most:
            raise Overloaded(f"{self._open} searches are under way", fix="send it again")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Learn from a call to the vector store, of one of them; an error of another kind than ours says nothing."""
        began_s = self._monotonic_s()
        try:
            yield
        except MillraceError:
            self._learn(began_s, answered=False)
            raise
        self._learn(began_s, answered=True)

    def _learn(self, began_s: float, *, answered: bool) -> None:
        now_s = self._monotonic_s()
        if answered and now_s - began_s <= self._slow_s:
            self._most = min(self._most + 1 / self._most, MOST_OPEN)
        elif began_s >= self._lowered_at_s:  # what began before is late for a reason that is dealt with already
            self._most = max(0.75 * self._most, FEWEST_OPEN)
            self._lowered_at_s = now_s


class Flights(Generic[T]):
    """Equal calls at one time are one call, and its result is kept for a moment.

    Args:
        kept_for_s: how long a result serves those who come after; 0 if not at all.
        most: how much is kept.
        size: of a result, in units of `most`.
        monotonic_s: clock that ends it.
    """

    def __init__(
        self,
        kept_for_s: float,
        *,
        most: int,
        size: Callable[[T], int] = lambda _result: 1,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._size = size
        self._kept: TTLCache[bytes, T] = TTLCache(most, kept_for_s, timer=monotonic_s, getsizeof=size)
        self._under_way: dict[bytes, asyncio.Task[T]] = {}

    async def result(self, key: bytes, call: Callable[[], Awaitable[T]], *, keeps: Callable[[T], bool]) -> T:
        """Return what a call gives, or gave a moment ago. Whoever hangs up takes nothing from the others.

        Args:
            key: equal for equal calls.
            call: bounded in time by itself; what it raises, all who wait get.
            keeps: whether a result may serve those who come after.
        """
        kept: T | None = self._kept.get(key)
        if kept is not None:
            return kept
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._called(key, call, keeps))
            task.add_done_callback(_is_seen)
        return await asyncio.shield(task)

    async def _called(self, key: bytes, call: Callable[[], Awaitable[T]], keeps: Callable[[T], bool]) -> T:
        try:
            result = await call()
        finally:
            del self._under_way[key]
        if keeps(result) and self._size(result) <= self._most:
            self._kept[key] = result
        return result


def _is_seen(task: asyncio.Task[T]) -> None:
    """Take note of an error, for nobody may wait for it any more."""
    if not task.cancelled():
        task.exception()

"""The site's outbox: collects events, posts them in batches, and knows what became of each."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from simulator.shop.messages import Event
from simulator.shop.posting import Delivery, Poster

BATCH: Final = 40
"""Events in one request: well below the 64 KiB that a write key may send."""
FLUSH_S: Final = 0.1
"""Longest wait for a batch to fill."""
LANES: Final = 4
"""Requests under way at once."""


@dataclass(frozen=True, slots=True)
class Due:
    """An event on its way, and the error of the clock that will stamp it."""

    event: Event
    skew_ms: int


class Outbox:
    """Sends events in the background.

    Args:
        poster: of `/v1/events`.
        delivery: counts kept up to date while events are sent.
    """

    def __init__(self, poster: Poster, delivery: Delivery) -> None:
        self._poster = poster
        self._delivery = delivery
        self._waiting: asyncio.Queue[Due] = asyncio.Queue()
        self.sent = 0

    def put(self, due: Due) -> None:
        """Take an event over; from now on it is counted."""
        self.sent += 1
        self._waiting.put_nowait(due)

    async def run(self) -> None:
        """Send what is put in, until cancelled; cancel only after `drain`."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(LANES):
                lanes.create_task(self._lane())

    async def drain(self) -> None:
        """Return once every event put in has an outcome."""
        await self._waiting.join()

    async def _lane(self) -> None:
        while True:
            batch = await self._batch()
            try:
                self._delivery.add(await self._poster.post([due.event for due in batch], stamp=_stamp(batch)))
            finally:
                for _ in batch:
                    self._waiting.task_done()

    async def _batch(self) -> list[Due]:
        """Wait for an event, then a little for others."""
        batch = [await self._waiting.get()]
        deadline = asyncio.get_running_loop().time() + FLUSH_S
        while len(batch) < BATCH:
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._waiting.get())
            except TimeoutError:
                break
        return batch


def _stamp(batch: Sequence[Due]) -> Callable[[Event], Event]:
    """Return what puts the sending device's time on an event, whenever it is sent."""
    skews = {str(due.event["event_id"]): due.skew_ms for due in batch}
    return lambda event: {**event, "sent_at": now_ms() + skews[str(event["event_id"])]}


def now_ms() -> int:
    """Return the wall clock in epoch milliseconds."""
    return time.time_ns() // 1_000_000

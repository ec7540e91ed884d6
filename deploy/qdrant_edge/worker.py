"""Which call the engine runs next: one at a time, out of two queues, and what could not begin soon is refused."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

from deploy.qdrant_edge.requests import ApiError

T = TypeVar("T")

_WEIGHT: Final = 0.1
"""Of the newest call in the mean time of a call."""


class Kind(Enum):
    """What a call does, with the most that may wait before it: seconds of work, and calls."""

    READ = (0.25, 256)
    WRITE = (1.0, 16)


@dataclass(slots=True, eq=False)
class _Job:
    call: Callable[[], Any]
    outcome: "asyncio.Future[Any]"
    expires_s: float | None


@dataclass(slots=True, eq=False)
class _Queue:
    jobs: deque[_Job] = field(default_factory=deque)
    mean_s: float = 0.0
    used_s: float = 0.0
    """Time that its calls took; of two queues that wait, the one that had less is next."""


class Worker:
    """Runs one call at a time, in the thread of the event loop, out of two queues.

    Edge holds the interpreter's lock while it works, so a thread of its own would not leave the event loop free, and
    under overload hardly any request would even be refused. While reads and writes wait, each kind gets half of the
    time. What could not begin soon is refused at once, and what nobody waits for is not begun.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues = {kind: _Queue() for kind in Kind}
        self._held: set[Kind] = set()
        self._asked = asyncio.Event()

    def waiting(self, kind: Kind) -> int:
        """Return how many calls of a kind wait for their turn."""
        return len(self._queues[kind].jobs)

    def admit(self, kind: Kind) -> None:
        """Refuse a call that could not begin soon."""
        most_s, most_calls = kind.value
        queue = self._queues[kind]
        waiting = len(queue.jobs)
        if waiting >= most_calls or waiting * queue.mean_s > most_s:
            raise ApiError(503, f"Service overloaded: {waiting} {kind.name.lower()}s wait; try again later")

    async def run(
        self, kind: Kind, call: Callable[[], T], *, timeout_s: float | None = None, must_run: bool = False
    ) -> T:
        """Run a call when its turn comes, and return what it returns; a caller that goes away takes its call back.

        It waits at most `timeout_s`; if it `must_run`, it may wait however many do.
        """
        if not must_run:
            self.admit(kind)
        queue = self._queues[kind]
        expires_s = None if timeout_s is None else self._clock() + timeout_s
        job = _Job(call, asyncio.get_running_loop().create_future(), expires_s)
        if not queue.jobs:  # time that it did not need is not owed to it
            queue.used_s = max(other.used_s for other in self._queues.values())
        queue.jobs.append(job)
        self._asked.set()
        try:
            result: T = await job.outcome
        except asyncio.CancelledError:
            with suppress(ValueError):
                queue.jobs.remove(job)
            raise
        return result

    @contextmanager
    def holding(self, kind: Kind) -> Iterator[None]:
        """Begin no call of a kind until the block ends; they may be asked for and wait."""
        self._held.add(kind)
        try:
            yield
        finally:
            self._held.discard(kind)
            self._asked.set()

    def _runnable(self) -> list[_Queue]:
        return [queue for kind, queue in self._queues.items() if queue.jobs and kind not in self._held]

    async def work(self) -> None:
        """Run what is asked for, until cancelled."""
        while True:
            while not (waiting := self._runnable()):
                self._asked.clear()
                await self._asked.wait()
            self._run_next(min(waiting, key=lambda queue: queue.used_s))
            await asyncio.sleep(0)

    def _run_next(self, queue: _Queue) -> None:
        job = queue.jobs.popleft()
        if job.outcome.cancelled():  # its caller went away and had no turn yet to take it back
            return
        began_s = self._clock()
        if job.expires_s is not None and began_s >= job.expires_s:
            job.outcome.set_exception(ApiError(408, "Timeout error: the request waited longer than its timeout"))
            return
        try:
            job.outcome.set_result(job.call())
        except BaseException as error:  # noqa: BLE001 -- it is the caller's; the others are served
            job.outcome.set_exception(error)
        took_s = self._clock() - began_s
        queue.used_s += took_s
        queue.mean_s += _WEIGHT * (took_s - queue.mean_s)

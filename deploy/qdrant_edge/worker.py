"""The one thread that speaks to Edge, and the two queues before it.

Edge holds the interpreter's lock while it works, so more threads would not make it faster, and one thread keeps writes
in the order in which they came. Reads and writes wait apart: while both wait, each kind gets half of the thread's time,
however long its calls are. What could not begin soon is refused at once, and what nobody waits for is not begun.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

from deploy.qdrant_edge.errors import ApiError

T = TypeVar("T")

_WEIGHT: Final = 0.1
"""Of the newest call in the mean time of a call."""


class Kind(Enum):
    """What a call does, with the most that may wait before it: seconds of work, and calls."""

    READ = (0.1, 256)
    WRITE = (1.0, 16)


@dataclass(slots=True, eq=False)
class _Job:
    call: Callable[[], Any]
    expires_s: float | None
    outcome: "Future[Any]" = field(default_factory=Future)


@dataclass(slots=True)
class _Queue:
    kind: Kind
    jobs: deque[_Job] = field(default_factory=deque)
    mean_s: float = 0.0
    used_s: float = 0.0
    """Time that its calls took; of two queues that wait, the one that had less is next."""


class Worker:
    """Runs calls one after another on a thread of its own, those of a kind in the order of asking.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues = {kind: _Queue(kind) for kind in Kind}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="edge", daemon=True)
        self._thread.start()

    def waiting(self, kind: Kind) -> int:
        """Return how many calls of a kind wait for their turn."""
        return len(self._queues[kind].jobs)

    def admit(self, kind: Kind) -> None:
        """Refuse a call that could not begin soon.

        Raises:
            ApiError: as much waits already as may wait.
        """
        most_s, most_calls = kind.value
        waiting = self.waiting(kind)
        if waiting >= most_calls or waiting * self._queues[kind].mean_s > most_s:
            raise ApiError(503, f"Service overloaded: {waiting} {kind.name.lower()}s wait; try again later")

    async def run(
        self, kind: Kind, call: Callable[[], T], *, timeout_s: float | None = None, must_run: bool = False
    ) -> T:
        """Run a call when its turn comes, and return what it returns.

        A caller that goes away takes back a call that has not begun; one that began is finished.

        Args:
            kind: which queue it waits in.
            call: what to do.
            timeout_s: how long it may wait.
            must_run: whether it may wait however many do.

        Raises:
            ApiError: too many wait, or it waited too long and was not done.
        """
        if not must_run:
            self.admit(kind)
        queue = self._queues[kind]
        job = _Job(call, None if timeout_s is None else self._clock() + timeout_s)
        with self._changed:
            if not queue.jobs:  # time that it did not need is not owed to it
                queue.used_s = max(other.used_s for other in self._queues.values())
            queue.jobs.append(job)
            self._changed.notify()
        try:
            result: T = await asyncio.wrap_future(job.outcome)
        except asyncio.CancelledError:
            with self._changed, suppress(ValueError):
                queue.jobs.remove(job)
            raise
        return result

    def close(self) -> None:
        """Finish what was asked for and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            queue, job = taken
            began_s = self._clock()
            if not job.outcome.set_running_or_notify_cancel():
                continue
            if job.expires_s is not None and began_s >= job.expires_s:
                job.outcome.set_exception(ApiError(408, "Timeout error: the request waited longer than its timeout"))
                continue
            try:
                result = job.call()
            except BaseException as error:  # noqa: BLE001 -- it is the caller's; the thread goes on
                job.outcome.set_exception(error)
            else:
                job.outcome.set_result(result)
            took_s = self._clock() - began_s
            queue.used_s += took_s
            queue.mean_s += _WEIGHT * (took_s - queue.mean_s)

    def _next(self) -> tuple[_Queue, _Job] | None:
        with self._changed:
            while not (waiting := [queue for queue in self._queues.values() if queue.jobs]):
                if self._closing:
                    return None
                self._changed.wait()
            queue = min(waiting, key=lambda queue: queue.used_s)
            return queue, queue.jobs.popleft()

"""An event loop in virtual time whose processes can be killed, paused and revived between any two steps.

Whoever is killed loses what it would have done next, as with SIGKILL: no `finally` runs, no exception is raised. What
is left to chance is how long things take; the loop itself draws nothing, so a run depends on its seed alone.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from typing_extensions import override


class Process:
    """A process of the simulation: everything that was started in its context.

    Args:
        name: of the worker; its disk outlives the process.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.paused = False
        self.skew_ms = 0
        """How far its clock is ahead."""
        self.steps_left = -1
        """After so many steps `interrupt` is called; never if negative."""
        self.interrupt: Callable[[], None] = lambda: None
        """Kills or pauses it."""


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""The process that is running; None for the world around: brokers, Redis, the shop."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready, in order; if nothing is, time jumps to the next timer."""

    _ready: "deque[Any]"
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._held: dict[Process, list[Any]] = {}
        self._lost: list[Any] = []
        """What killed processes would have done: kept, so that no `finally` of theirs runs when it is collected."""

    @override
    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._now_s

    def pause(self, process: Process) -> None:
        """Hold a process up, as SIGSTOP does."""
        process.paused = True

    def wake(self, process: Process) -> None:
        """Let it go on where it was."""
        process.paused = False
        self._ready.extend(self._held.pop(process, ()))

    def end_all(self) -> None:
        """Cancel whatever is left, of the killed too, and let it end; whatever goes wrong by that is no news."""
        self.set_exception_handler(lambda loop, context: None)
        self._ready.extend([*self._lost, *itertools.chain(*self._held.values())])
        while tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            if not self._ready:
                break
            while self._ready:
                handle = self._ready.popleft()
                if not handle._cancelled:
                    handle._run()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined] # nobody is to wake it

    @override
    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override] # no thread
        """Do what a thread would do at once, and tell a moment later."""
        future = self.create_future()

        def finish() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - whoever waits for the thread gets it
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(0.001, finish)
        return future

    def _run_once(self) -> None:
        """Do what is ready; if nothing is, go to the next timer."""
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            self._now_s = max(self._now_s, scheduled[0]._when)
            while scheduled and scheduled[0]._when <= self._now_s:
                handle = heapq.heappop(scheduled)
                handle._scheduled = False
                if not handle._cancelled:
                    ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._step(handle)

    def _step(self, handle: Any) -> None:
        """Do one step of a process, if it is alive and not paused."""
        process: Process | None = handle._context.get(PROCESS)
        if process is not None:
            if process.steps_left == 0 and process.is_alive and not process.paused:
                process.interrupt()
            if not process.is_alive:
                self._lost.append(handle)
                return
            if process.paused:
                self._held.setdefault(process, []).append(handle)
                return
            process.steps_left -= 1
        handle._run()

    def _write_to_self(self) -> None:
        """Nothing sleeps in a system call here."""

    def _process_events(self, event_list: Any) -> None:
        """There are no sockets."""

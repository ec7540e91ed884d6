"""What a process says about itself: `/live`, `/ready` and `/metrics`, as values; `service.http` answers with them.

A process is ready when none of its checks gives a reason against; it is alive while its liveness checks give none.
What it leans on is a `Dependency`: an outage is in the metric, in `/ready`, and in the log once.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from contracts.errors import DependencyDown, MillraceError, TransientError
from contracts.telemetry import Process
from service import metrics
from service.logging import get_logger

HEALTH_PATHS: Final = ("/live", "/ready", "/metrics")
PROBE_S: Final = 5.0
_JSON: Final = "application/json"

Check = Callable[[], str | None]
"""Returns the reason against, in words for people, or None."""


class Health:
    """What a process says about itself; its metrics exist at zero from here on.

    Checks run on each request: they must be quick and not block.
    """

    def __init__(self, process: Process | str) -> None:
        self.process = Process(process)
        self._ready: dict[str, Check] = {}
        self._live: dict[str, Check] = {}
        self._shown: dict[str, Callable[[], str]] = {}
        metrics.initialise(self.process)

    def add_check(self, name: str, check: Check) -> None:
        """Add a condition of readiness: may traffic be sent here?"""
        self._ready[name] = check

    def add_liveness_check(self, name: str, check: Check) -> None:
        """Add a condition of life: a reason against means that only a restart helps."""
        self._live[name] = check

    def show(self, name: str, read: Callable[[], str]) -> None:
        """Show a value in `/ready` beside the verdict, which does not depend on it."""
        self._shown[name] = read

    def against_readiness(self) -> list[str]:
        """List the reasons against being ready; the dead are never ready."""
        return _reasons(self._live) + _reasons(self._ready)

    def render(self, path: str) -> tuple[int, str, bytes] | None:
        """Answer a path with (status, content type, body), or None if it is not one of the three."""
        match path:
            case "/live":
                return self._verdict("live", _reasons(self._live))
            case "/ready":
                shown = {name: read() for name, read in self._shown.items()}
                return self._verdict("ready", self.against_readiness(), **shown)
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest()
            case _:
                return None

    def _verdict(self, word: str, reasons: list[str], **shown: str) -> tuple[int, str, bytes]:
        body = {"process": self.process, word: not reasons, "reasons": reasons, **shown}
        return (503 if reasons else 200), _JSON, orjson.dumps(body)


def _reasons(checks: dict[str, Check]) -> list[str]:
    answers = ((name, _ask(check)) for name, check in list(checks.items()))
    return [f"{name}: {reason}" for name, reason in answers if reason is not None]


def _ask(check: Check) -> str | None:
    try:
        return check()
    except MillraceError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - a broken check must not take the answer about the others with it
        return f"check failed: {error!r}"


class Dependency:
    """What is known of one server; safe to use from several threads.

    `meaning` says in the log what its absence means for those who are served. An outage that lasts longer than
    `patience_s` is a reason against readiness.
    """

    def __init__(
        self,
        process: Process,
        *,
        meaning: str = "",
        patience_s: float = 0.0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.process = process
        self._meaning = meaning
        self._patience_s = patience_s
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._error: str | None = None
        self._down_since_s = 0.0
        self.answers = 0
        """How often it has answered."""
        self.failures = 0
        """How often it has not."""

    @property
    def is_up(self) -> bool:
        """Whether it answered when last asked; true before it was ever asked."""
        return self._error is None

    def answered(self) -> None:
        """Note that it answers."""
        with self._lock:
            was_down, self._error = self._error is not None, None
            self.answers += 1
        metrics.DEPENDENCY_UP.labels(self.process).set(1)
        if was_down:
            get_logger().info("dependency_back", dependency=self.process)

    def failed(self, error: MillraceError | str, *, answers: int | None = None) -> None:
        """Note that it does not answer, and why.

        Of calls of one kind that run beside one another: `answers` as it was when this one began. If others were
        answered since, it was late, and there is no outage.
        """
        message, fix = (error.message, error.fix) if isinstance(error, MillraceError) else (error, "")
        with self._lock:
            if answers is not None and answers < self.answers:
                return
            was_up, self._error = self._error is None, message
            self.failures += 1
            if was_up:
                self._down_since_s = self._monotonic_s()
        metrics.DEPENDENCY_UP.labels(self.process).set(0)
        if was_up:
            details = {name: text for name, text in (("fix", fix), ("meaning", self._meaning)) if text}
            get_logger().warning("dependency_down", dependency=self.process, error=message, **details)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note how the block ends: an answer, or the DependencyDown or TransientError that it raises on."""
        try:
            yield
        except (DependencyDown, TransientError) as error:
            self.failed(error)
            raise
        self.answered()

    def not_ready(self) -> str | None:
        """Give the reason against readiness, or None; the form of a health check."""
        error, down_since_s = self._error, self._down_since_s
        if error is None or self._monotonic_s() - down_since_s < self._patience_s:
            return None
        return error if self.process in error.lower() else f"{self.process} does not answer: {error}"


@asynccontextmanager
async def probed(
    dependency: Dependency, ask: Callable[[], Awaitable[bool]], *, every_s: float = PROBE_S
) -> AsyncIterator[None]:
    """Ask a server during the block whenever traffic has told nothing of it for a while.

    Else an outage that ended would be told until the next shopper comes, and one at night not before.

    Args:
        dependency: told how it ended.
        ask: a cheap question; false if there is nothing to ask yet.
        every_s: seconds between two looks.
    """

    async def keep_asking() -> None:
        while True:
            heard = dependency.answers, dependency.failures
            await asyncio.sleep(every_s)
            if heard != (dependency.answers, dependency.failures):
                continue
            try:
                was_asked = await ask()
            except Exception as error:  # noqa: BLE001 - a probe that ended here would leave its last word for ever
                said = error if isinstance(error, MillraceError) else type(error).__name__
                dependency.failed(said, answers=heard[0])
            else:
                if was_asked:
                    dependency.answered()

    asking = asyncio.create_task(keep_asking())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

"""A server that a process leans on: whether it answers, in the metric, in `/ready`, and in the log once per outage."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from contracts.errors import DependencyDown, MillraceError, TransientError
from contracts.telemetry import Process
from service import metrics
from service.logging import get_logger


class Dependency:
    """What is known of one server; safe to use from several threads.

    Args:
        process: the server's name in logs and metrics.
        meaning: what its absence means for those who are served, for the log line.
        patience_s: how long an outage may last before it is a reason against readiness.
        monotonic_s: clock that measures outages.
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

    @property
    def is_up(self) -> bool:
        """Whether it answered when last asked; true before it was ever asked."""
        return self._error is None

    def answered(self) -> None:
        """Note that it answers."""
        with self._lock:
            was_down, self._error = self._error is not None, None
        metrics.DEPENDENCY_UP.labels(self.process).set(1)
        if was_down:
            get_logger().info("dependency_back", dependency=self.process)

    def failed(self, error: MillraceError | str) -> None:
        """Note that it does not answer, and why."""
        message, fix = (error.message, error.fix) if isinstance(error, MillraceError) else (error, "")
        with self._lock:
            was_up, self._error = self._error is None, message
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
        """Return the reason against readiness, or None; the form of a health check."""
        error, down_since_s = self._error, self._down_since_s
        if error is None or self._monotonic_s() - down_since_s < self._patience_s:
            return None
        return error if self.process in error.lower() else f"{self.process} does not answer: {error}"

"""A real trainer of a test: a process that can be asked and killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import orjson

from service.settings import Settings
from tests.support.poll import eventually
from tests.support.ports import free_port

START_S: Final = 300.0
"""A start imports torch; on a busy machine that takes minutes."""


class RunningTrainer:
    """A trainer process and what it says of itself."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.port = free_port()
        self._log = log
        environ = {**os.environ, **settings.as_environ(), "MILLRACE_PORT": str(self.port), "HF_HUB_OFFLINE": "1"}
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer"], env=environ, stderr=stream, stdout=subprocess.DEVNULL
            )

    def reasons(self) -> list[str] | None:
        """Return the reasons against readiness, None while nothing answers."""
        if self.process.poll() is not None:
            raise AssertionError(f"the trainer ended with {self.process.returncode}:\n{self._log.read_text()}")
        try:
            answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/ready", timeout=2).json()
        except httpx.HTTPError:
            return None
        return list(answer["reasons"])

    def wait_ready(self) -> None:
        """Wait until it trains."""
        try:
            eventually(lambda: self.reasons() == [], timeout_s=START_S, interval_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"not ready: {self.reasons()}; log:\n{self._log.read_text()}") from error

    def lines(self) -> list[dict[str, Any]]:
        """Return its log."""
        return [orjson.loads(line) for line in self._log.read_bytes().splitlines()]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of its log about one event."""
        return [line for line in self.lines() if line["event"] == event]

    def published(self) -> int:
        """Return how often it wrote to `models`."""
        return len(self.said("releases_published"))


@contextmanager
def running(settings: Settings, log: Path) -> Iterator[RunningTrainer]:
    """Run a trainer for the length of a block; nothing of it is left afterwards."""
    trainer = RunningTrainer(settings, log)
    try:
        yield trainer
    finally:
        trainer.process.kill()
        trainer.process.wait(timeout=20)

"""A real stream worker of a test: a process that can be asked, killed and started again under the same name."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from service.settings import Settings
from tests.support.poll import eventually

READY_TIMEOUT_S = 60.0


class Worker:
    """A process `python -m streams`.

    Args:
        settings: its settings, with a port of its own.
        log_path: where its lines go.
        module: what Python runs.
    """

    def __init__(self, settings: Settings, log_path: Path, *, module: str = "streams") -> None:
        self.settings = settings
        self.module = module
        self.environ = settings.as_environ()
        self.log_path = log_path
        self.process: subprocess.Popen[bytes] | None = None
        self._logged_before = 0

    @property
    def name(self) -> str:
        """The worker's id."""
        return self.settings.worker_id or "?"

    def start(self) -> None:
        """Start it; it is ready some seconds later."""
        with self.log_path.open("ab") as log:
            self._logged_before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env={**os.environ, **self.environ},
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    def kill(self) -> None:
        """End it as a power cut would, and see that it was running until then."""
        assert self.process is not None
        assert self.process.poll() is None, self.lines()[-2000:]
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL

    def stop(self, *, timeout_s: float = 20.0) -> int:
        """Ask it to end and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self.process is not None and self.process.poll() is not None

    def wait_ended(self, *, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Wait until it ends by itself and return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def complaints(self) -> list[dict[str, Any]]:
        """Return what it logged above info, and errors of its libraries; every line must be one JSON object."""
        return [
            line
            for line in _whole_lines(self.log_path.read_bytes())
            if line["level"] == "error" or (line["level"] != "info" and "library" not in line)
        ]

    def complaint(self) -> dict[str, Any]:
        """Return the only line of that kind, or fail with all of them."""
        found = self.complaints()
        assert len(found) == 1, found
        return found[0]

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def is_ready(self) -> bool:
        """Return whether `/ready` says so."""
        return b'"ready":true' in self._get("/ready")

    def wait_ready(self) -> None:
        """Wait until it is ready, or fail with its log."""
        eventually(self._ready_or_dead, timeout_s=READY_TIMEOUT_S, interval_s=0.1, what=f"{self.name} ready")

    def partitions(self, agent: str) -> list[int]:
        """Return the partitions that it was last given for an agent, by its log; none before that."""
        assigned: list[int] = []
        for line in _whole_lines(self.log_path.read_bytes()):
            if line["event"] == "partitions_assigned" and line["agent"] == agent:
                assigned = line["partitions"]
        return assigned

    def loaded(self, agent: str) -> Counter[int]:
        """Return how often it loaded the state of each partition for an agent, by its log."""
        lines = _whole_lines(self.log_path.read_bytes())
        return Counter(
            line["partition"] for line in lines if (line["event"], line.get("agent")) == ("partition_loaded", agent)
        )

    def metrics(self) -> str:
        """Return what it shows at `/metrics`."""
        return self._get("/metrics").decode()

    def open_searches(self) -> int:
        """Return how many searches it holds open, by its own metric."""
        found = re.search(r"^millrace_join_open_searches (\S+)", self.metrics(), re.MULTILINE)
        return 0 if found is None else int(float(found.group(1)))

    def replays(self) -> dict[int, int]:
        """Return the partitions whose join this process began to read a second time -> up to which offset."""
        lines = _whole_lines(self.log_path.read_bytes()[self._logged_before :])
        return {
            line["partition"]: line["next_offset"]
            for line in lines
            if (line["event"], line.get("agent")) == ("partition_loaded", "join")
            and line["hold_offset"] < line["next_offset"]
        }

    def lines(self) -> str:
        """Return what it logged."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    def _ready_or_dead(self) -> bool:
        """Return whether it is ready; fail at once where it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.lines()[-2000:]
        return self.is_ready()

    def _get(self, path: str) -> bytes:
        """Return an answer of its admin port; nothing where it does not answer or is not well."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.port}{path}", timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except (OSError, urllib.error.URLError):
            return b""


def _whole_lines(logged: bytes) -> list[dict[str, Any]]:
    """Return the lines of a log that is still being written, but for half a line at its end."""
    return [json.loads(line) for line in logged.splitlines(keepends=True) if line.endswith(b"\n")]

"""One supervised process: started when what it needs is ready, watched, started again with back-off, stopped cleanly.

Each has a thread of its own, which also is the process's parent for the kernel (see launch.py). A process that ends
with exit code 2 is not tried again, because a wrong setting stays wrong; one that never becomes ready is given up after
five tries; one that was ready and fell comes back for ever, ever more slowly while it keeps falling.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from deploy.local.last_words import Explain, last_words, read_tail

LAUNCHER: Final = Path(__file__).with_name("launch.py")
STOP_GRACE_S: Final = 20.0
PROBE_INTERVAL_S: Final = 0.1
HEALTHY_S: Final = 10.0
MOST_FAILED_STARTS: Final = 5
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
USAGE_EXIT: Final = 2
LOG_LIMIT_BYTES: Final = 50 * 1024 * 1024


class State(StrEnum):
    """Where a process stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing_off"
    FAILED = "failed"
    STOPPED = "stopped"
    EXTERNAL = "external"


Probe = Callable[[], str | None]
"""A real round trip; returns why the process is not ready, or None."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How one process is run.

    Args:
        name: as in `status` and in the name of its log.
        argv: the command.
        environ: its whole environment.
        log_path: where its output goes.
        probe: asks whether it is ready.
        needs: names of what must be ready before it starts.
        port: where it listens.
        cwd: its working folder; the supervisor's where None.
        explain: finds in its last output why it ended.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    log_path: Path
    probe: Probe
    needs: tuple[str, ...] = ()
    port: int | None = None
    cwd: Path | None = None
    explain: Explain = field(default=last_words)


def pause_s(failures: int) -> float:
    """Return how long to wait before the next try.

    >>> [pause_s(failures) for failures in (1, 2, 3, 20)]
    [0.5, 1.0, 2.0, 30.0]
    """
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16)))


class Child:
    """Keeps one process running.

    Args:
        launch: how it is run.
        needs_ready: returns whether all that it needs is ready.
        on_change: told after each change of state; called from the child's own thread.
    """

    def __init__(
        self, launch: Launch, *, needs_ready: Callable[[], bool], on_change: Callable[["Child"], None]
    ) -> None:
        self.launch = launch
        self.state = State.STOPPED
        self.detail = ""
        self.restarts = 0
        self.exit_code: int | None = None
        self._needs_ready = needs_ready
        self._on_change = on_change
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._end_is_ours = False
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Begin to keep it running; harmless when it is already kept."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopping.clear()
        self._change(State.WAITING)
        self._thread = threading.Thread(target=self._keep_running, name=f"keep-{self.launch.name}", daemon=True)
        self._thread.start()

    def request_stop(self) -> None:
        """Ask it to end, and do not start it again."""
        self._stopping.set()
        self.send(signal.SIGTERM)

    def finish_stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Wait until it has ended; end it by force when the grace is over."""
        thread = self._thread
        if thread is None:
            return
        thread.join(max(0.0, grace_s))
        if thread.is_alive():
            self.send(signal.SIGKILL)
            thread.join()

    def send(self, number: signal.Signals) -> int | None:
        """Send it a signal; what that ends is no failure of its own. Return the process id, None if it is down."""
        process = self._process
        if process is None:
            return None
        self._end_is_ours = number != signal.SIGCONT
        process.send_signal(number)
        return process.pid

    def _keep_running(self) -> None:
        """Run it again and again until it is stopped or given up."""
        failed_starts = falls = 0
        while self._wait_for_needs():
            lasted_s, was_ready = self._run_once()
            if self._stopping.is_set():
                break
            ours, self._end_is_ours = self._end_is_ours, False
            failed_starts = 0 if was_ready or ours else failed_starts + 1
            falls = 1 if ours or lasted_s >= HEALTHY_S else falls + 1
            if self.exit_code == USAGE_EXIT or failed_starts >= MOST_FAILED_STARTS:
                self._change(State.FAILED, self._why())
                return
            self.restarts += 1
            self._change(State.BACKING_OFF, "" if ours else self._why())
            self._stopping.wait(pause_s(falls))
        self._change(State.STOPPED)

    def _wait_for_needs(self) -> bool:
        """Wait until what it needs is ready; return False where it is to stop instead."""
        while not self._needs_ready():
            if self.state is not State.WAITING:
                self._change(State.WAITING)
            if self._stopping.wait(PROBE_INTERVAL_S):
                return False
        return not self._stopping.is_set()

    def _run_once(self) -> tuple[float, bool]:
        """Run it until it ends; return for how many seconds and whether it became ready."""
        started = time.monotonic()
        try:
            self._process = self._spawn()
        except OSError as error:
            self.exit_code = None
            self.detail = f"cannot start: {error.strerror}"
            return 0.0, False
        self._change(State.STARTING)
        was_ready = self._watch_start(self._process)
        self.exit_code = self._process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # whatever it started itself
        self._process = None
        return time.monotonic() - started, was_ready

    def _spawn(self) -> "subprocess.Popen[bytes]":
        """Start it in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        self._end_is_ours = False
        path = self.launch.log_path
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *self.launch.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.launch.environ),
                cwd=self.launch.cwd,
                start_new_session=True,
            )

    def _watch_start(self, process: "subprocess.Popen[bytes]") -> bool:
        """Ask until it is ready or has ended; return whether it is ready."""
        if self._stopping.is_set():
            process.terminate()  # the stop came between the decision to start and the start
        while process.poll() is None and not self._stopping.is_set():
            problem = self.launch.probe()
            if problem is None and process.poll() is None:
                self._change(State.READY)
                return True
            self.detail = problem or ""
            self._stopping.wait(PROBE_INTERVAL_S)
        return False

    def _why(self) -> str:
        """Return why it ended, in its own last words."""
        words = self.launch.explain(read_tail(self.launch.log_path, self._log_start))
        ended = f"exit code {self.exit_code}"
        if self.exit_code is None:
            return self.detail
        if self.exit_code < 0:
            ended = f"killed by {signal.Signals(-self.exit_code).name}"
        return f"{words} ({ended})" if words else ended

    def _change(self, state: State, detail: str = "") -> None:
        """Move to a state and tell about it."""
        self.state, self.detail = state, detail
        self._on_change(self)

"""One supervised process: started when its needs are ready, watched, started again with back-off, stopped cleanly.

Each has a thread of its own, which is also the process's parent for the kernel. Exit code 2 is not tried again, because
a wrong setting stays wrong. A process that never becomes ready is given up after five tries. One that was ready is
started again for ever, ever more slowly, with pauses of half a minute at most, until it has been ready for ten seconds.
Run as a script, this file turns into a command that dies with its supervisor, so it imports the standard library alone.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

STOP_GRACE_S: Final = 20.0
PROBE_INTERVAL_S: Final = 0.1
HEALTHY_S: Final = 10.0
MOST_FAILED_STARTS: Final = 5
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
USAGE_EXIT: Final = 2
LOG_LIMIT_BYTES: Final = 50 * 1024 * 1024
TAIL_BYTES: Final = 16 * 1024
LONGEST_LINE: Final = 400
PR_SET_PDEATHSIG: Final = 1


class State(StrEnum):
    """What a supervised process does now."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing_off"
    FAILED = "failed"
    STOPPED = "stopped"
    EXTERNAL = "external"


Probe = Callable[[], str | None]
"""Asks a process by a real round trip; gives the reason why it is not ready, or None."""

ErrorFinder = Callable[[str], str]
"""Takes the end of a log and gives one line that says why the process ended, empty if the log does not tell."""


def read_tail(path: Path, since: int = 0) -> str:
    """Return the end of a log, no more than was written since an offset; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_logged_error(tail: str) -> str:
    """Find the last error that one of our processes logged: its cause and its fix, or else its last line.

    >>> last_logged_error('{"event":"stopped","error":"port 1 is in use","fix":"free it"}')
    'port 1 is in use; fix: free it'
    """
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    for line in reversed(lines):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            fields = None
        if isinstance(fields, dict) and "error" in fields and fields.get("level", "error") == "error":
            return f"{fields['error']}; fix: {fields['fix']}" if fields.get("fix") else str(fields["error"])
        if not line.startswith("{"):
            break
    return lines[-1][:LONGEST_LINE] if lines else ""


@dataclass(frozen=True, slots=True)
class ProcessCommand:
    """How one process is run.

    It starts when its needs are ready, with this whole environment, and `find_error` tells from its last output why it
    ended.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    log_path: Path
    probe: Probe
    needs: tuple[str, ...] = ()
    port: int | None = None
    folder: Path | None = None
    find_error: ErrorFinder = last_logged_error


def pause_s(failures: int) -> float:
    """Return how long to wait before the next try.

    >>> [pause_s(failures) for failures in (1, 2, 3, 20)]
    [0.5, 1.0, 2.0, 30.0]
    """
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16)))


class SupervisedProcess:
    """Keeps one process running, and tells after each change of state, from a thread of its own."""

    def __init__(
        self,
        command: ProcessCommand,
        *,
        needs_ready: Callable[[Sequence[str]], bool],
        on_change: Callable[["SupervisedProcess"], None],
    ) -> None:
        self.command = command
        self.state = State.STOPPED
        self.detail = ""
        self.restarts = 0
        self.exit_code: int | None = None
        self._needs_ready = needs_ready
        self._on_change = on_change
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._ended_by_us = False
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Begin to keep it running; harmless if it is kept already."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopping.clear()
        self._change(State.WAITING)
        self._thread = threading.Thread(target=self._keep_running, name=f"keep-{self.command.name}", daemon=True)
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
        """Send it a signal and return its process id, None if it is down; an end by our signal is no failure."""
        process = self._process
        if process is None:
            return None
        self._ended_by_us = number != signal.SIGCONT
        process.send_signal(number)
        return process.pid

    def _keep_running(self) -> None:
        failed_starts = failures = 0
        was_ever_ready = False
        while self._wait_for_needs():
            ready_s = self._run_once()
            if self._stopping.is_set():
                break
            by_us, self._ended_by_us = self._ended_by_us, False
            was_ever_ready = was_ever_ready or ready_s is not None
            failed_starts = 0 if was_ever_ready or by_us else failed_starts + 1
            failures = 1 if by_us or (ready_s or 0.0) >= HEALTHY_S else failures + 1
            if self.exit_code == USAGE_EXIT or failed_starts >= MOST_FAILED_STARTS:
                self._change(State.FAILED, self._why_it_ended())
                return
            self.restarts += 1
            self._change(State.BACKING_OFF, "" if by_us else self._why_it_ended())
            self._stopping.wait(pause_s(failures))
        self._change(State.STOPPED)

    def _wait_for_needs(self) -> bool:
        """Wait until all that it needs is ready; False means that it is to stop instead."""
        while not self._needs_ready(self.command.needs):
            if self.state is not State.WAITING:
                self._change(State.WAITING)
            if self._stopping.wait(PROBE_INTERVAL_S):
                return False
        return not self._stopping.is_set()

    def _run_once(self) -> float | None:
        """Run it to its end; return how long it was ready, None if it never was."""
        try:
            self._process = self._spawn()
        except OSError as error:
            self.exit_code = None
            self.detail = f"cannot start: {error.strerror}"
            return None
        self._change(State.STARTING)
        ready_at_s = time.monotonic() if self._watch_start(self._process) else None
        self.exit_code = self._process.wait()
        ready_s = None if ready_at_s is None else time.monotonic() - ready_at_s
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # whatever it started itself
        self._process = None
        return ready_s

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self._ended_by_us = False
        path = self.command.log_path
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid()), *self.command.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.command.environ),
                cwd=self.command.folder,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone
            )

    def _watch_start(self, process: "subprocess.Popen[bytes]") -> bool:
        """Ask until it is ready or has ended; return whether it is ready."""
        if self._stopping.is_set():
            process.terminate()  # the stop came between the decision to start and the start
        while process.poll() is None and not self._stopping.is_set():
            problem = self._problem(process.pid)
            if problem is None and process.poll() is None:
                self._change(State.READY)
                return True
            self.detail = problem or ""
            self._stopping.wait(PROBE_INTERVAL_S)
        return False

    def _problem(self, pid: int) -> str | None:
        port = self.command.port
        try:
            problem = self.command.probe()
        except Exception as error:  # noqa: BLE001 - the end of this thread would end the process with it
            return f"asking it failed: {error!r}"
        if problem is None and port is not None and not _listens(pid, port):
            return f"another process answers on port {port}"
        return problem

    def _why_it_ended(self) -> str:
        if self.exit_code is None:
            return self.detail
        ended = f"exit code {self.exit_code}"
        if self.exit_code < 0:
            ended = f"killed by {signal.Signals(-self.exit_code).name}"
        if self.exit_code in {0, -signal.SIGKILL}:
            return ended  # what it logged before that is another matter
        cause = self.command.find_error(read_tail(self.command.log_path, self._log_start))
        return f"{cause} ({ended})" if cause else ended

    def _change(self, state: State, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self._on_change(self)


def _listens(pid: int, port: int) -> bool:
    """Return whether a process itself listens on a port; True if the system does not tell."""
    import psutil  # not above: no package can be imported while this file runs as a script

    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return True
    return any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in sockets)


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL when the thread that started this process ends; end at once if it has ended.

    Linux alone can do so. A process of its own asks for it, because code that runs between fork and exec in a copy of a
    supervisor with many threads can deadlock.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit(f"the supervisor {parent} has ended")


def main(argv: list[str]) -> None:
    """Tie this process to its parent and turn into the command: `python supervised_process.py PARENT COMMAND...`."""
    parent, *command = argv
    die_with_parent(int(parent))
    try:
        os.execvp(command[0], command)  # noqa: S606 - turning into the command, without a shell, is the purpose
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""One supervised process: it comes back, it is given up when that is hopeless, and it leaves nothing behind."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local import supervised_process
from deploy.local.supervised_process import (
    Probe,
    ProcessCommand,
    State,
    SupervisedProcess,
    last_logged_error,
    read_tail,
)
from tests.support.poll import eventually

READY_FILE = "import pathlib; pathlib.Path('ready').touch(); "
SLEEP = "import time; time.sleep(600)"


class Kept:
    """A process under test and the states that it went through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states: list[State] = []
        self.needs_ready = True
        self.probe: Probe = lambda: None if (folder / "ready").exists() else "no file yet"
        self.process: SupervisedProcess | None = None

    def start(self, script: str) -> SupervisedProcess:
        """Keep a Python script running; it is ready once it has made a file."""
        command = ProcessCommand(
            name="x",
            argv=[sys.executable, "-c", script],
            environ=dict(os.environ),
            log_path=self.folder / "x.log",
            probe=self.probe,
            folder=self.folder,
        )
        self.process = SupervisedProcess(command, needs_ready=lambda _needs: self.needs_ready, on_change=self._note)
        self.process.start()
        return self.process

    def _note(self, changed: SupervisedProcess) -> None:
        """Note a change of state."""
        self.states.append(changed.state)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """Give a process with pauses short enough for a test; whatever it runs is gone afterwards."""
    monkeypatch.setattr(supervised_process, "FIRST_PAUSE_S", 0.01)
    made = Kept(tmp_path)
    yield made
    if made.process is not None:
        made.process.request_stop()
        made.process.finish_stop(grace_s=1.0)


def reached(process: SupervisedProcess, state: State) -> None:
    """Wait until a process has reached a state."""
    eventually(lambda: process.state is state, what=f"{state}, from {process.state} {process.detail}")


def test_a_process_is_ready_only_after_its_probe_says_so(kept: Kept) -> None:
    """Being started is not being ready."""
    process = kept.start(READY_FILE + SLEEP)
    reached(process, State.READY)
    assert kept.states == [State.WAITING, State.STARTING, State.READY]


def test_a_probe_that_fails_says_not_ready(kept: Kept) -> None:
    """An error that nobody foresaw in a probe ends neither the process nor the thread that keeps it."""
    failures = [ValueError("odd answer")]

    def probe() -> str | None:
        """Fail once, then have nothing against it."""
        if failures:
            raise failures.pop()
        return None

    kept.probe = probe
    process = kept.start(SLEEP)
    reached(process, State.READY)
    assert (failures, process.restarts) == ([], 0)


def test_an_answer_of_another_process_is_not_its_own(tmp_path: Path) -> None:
    """Somebody else who took the port and answers there does not make a process ready."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        command = ProcessCommand(
            name="x",
            argv=[sys.executable, "-c", SLEEP],
            environ=dict(os.environ),
            log_path=tmp_path / "x.log",
            probe=lambda: None,
            port=other.getsockname()[1],
        )
        process = SupervisedProcess(command, needs_ready=lambda _needs: True, on_change=lambda changed: None)
        process.start()
        eventually(lambda: "another process answers" in process.detail or process.state is State.READY)
        assert process.state is State.STARTING
        process.request_stop()
        process.finish_stop()


def test_it_waits_for_what_it_needs(kept: Kept) -> None:
    """Nothing is started while a need is not ready."""
    kept.needs_ready = False
    process = kept.start(READY_FILE + SLEEP)
    assert process.pid is None
    kept.needs_ready = True
    reached(process, State.READY)


def test_a_killed_process_comes_back(kept: Kept) -> None:
    """After SIGKILL another process takes its place, and the restart is counted."""
    process = kept.start(READY_FILE + SLEEP)
    reached(process, State.READY)
    first = process.send(signal.SIGKILL)
    eventually(lambda: process.state is State.READY and process.pid not in {None, first})
    assert process.restarts == 1


def test_a_process_that_falls_after_it_was_ready_is_never_given_up(kept: Kept) -> None:
    """Falling often is answered by longer pauses, not by giving up."""
    process = kept.start(READY_FILE + "time = __import__('time'); time.sleep(0.3); raise SystemExit(1)")
    eventually(lambda: process.restarts > supervised_process.MOST_FAILED_STARTS, timeout_s=30)
    assert process.state is not State.FAILED


def test_a_process_that_was_ready_outlasts_any_outage(kept: Kept) -> None:
    """While Kafka is away for minutes no start succeeds; whoever gave it up would be down for good after that."""
    script = "import os, time; os.path.exists('outage') and exit(4); open('ready', 'w').close(); time.sleep(600)"
    process = kept.start(script)
    reached(process, State.READY)
    (kept.folder / "outage").touch()
    (kept.folder / "ready").unlink()
    process.send(signal.SIGKILL)
    eventually(lambda: process.restarts > supervised_process.MOST_FAILED_STARTS + 1, timeout_s=30)
    (kept.folder / "outage").unlink()
    reached(process, State.READY)


def test_starts_that_last_long_and_fail_are_tried_ever_more_slowly(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute of waiting for Kafka is no success; having been ready for a while is, and begins anew."""
    monkeypatch.setattr(supervised_process, "HEALTHY_S", 0.05)
    pauses: list[int] = []

    def pause_s(failures: int) -> float:
        """Note the failures, and wait shortly."""
        pauses.append(failures)
        return 0.01

    monkeypatch.setattr(supervised_process, "pause_s", pause_s)
    (kept.folder / "up").touch()
    process = kept.start(
        "import os, time; os.path.exists('up') or time.sleep(0.1) or exit(4); open('ready', 'w').close()\n"
        "while os.path.exists('up'): time.sleep(0.01)\n"
        "os.remove('ready')"
    )

    def fails(times: int) -> None:
        """Have it end once it was ready for a while, and fail so many starts."""
        reached(process, State.READY)
        time.sleep(0.1)
        pauses.clear()
        (kept.folder / "up").unlink()
        eventually(lambda: len(pauses) >= times, timeout_s=30)
        (kept.folder / "up").touch()

    fails(4)
    assert pauses[:4] == [1, 2, 3, 4]
    fails(2)
    assert pauses[:2] == [1, 2]


def test_a_wrong_setting_is_not_tried_again(kept: Kept) -> None:
    """Exit code 2 ends the tries at once, with the error that it logged."""
    line = '{"error":"MILLRACE_PORT=x: not a number","fix":"set one"}'
    process = kept.start(f"import sys; print('{line}', file=sys.stderr); sys.exit(2)")
    reached(process, State.FAILED)
    assert process.restarts == 0
    assert process.detail == "MILLRACE_PORT=x: not a number; fix: set one (exit code 2)"


@pytest.mark.parametrize(
    ("end", "expected"), [("os.kill(os.getpid(), 9)", "killed by SIGKILL"), ("sys.exit(0)", "exit code 0")]
)
def test_what_was_logged_before_a_kill_or_an_orderly_end_is_not_its_cause(
    kept: Kept, end: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed, or ends in order, had no time or no reason to say why; an earlier error is another matter."""
    monkeypatch.setattr(supervised_process, "FIRST_PAUSE_S", 600.0)
    line = '{"level":"error","event":"release_refused","error":"too large"}'
    process = kept.start(f"import os, sys; print('{line}', file=sys.stderr, flush=True); {end}")
    reached(process, State.BACKING_OFF)
    assert process.detail == expected


def test_a_process_that_never_becomes_ready_is_given_up_with_its_last_error(kept: Kept) -> None:
    """A missing dependency does not make it spin for ever."""
    process = kept.start("raise SystemExit('no disk left')")
    reached(process, State.FAILED)
    assert process.restarts == supervised_process.MOST_FAILED_STARTS - 1
    assert process.detail == "no disk left (exit code 1)"


@pytest.mark.usefixtures("kept")
def test_a_command_that_is_not_there_is_given_up_with_its_name(tmp_path: Path) -> None:
    """A missing program is one clear line."""
    command = ProcessCommand("y", ["/nowhere/program"], dict(os.environ), tmp_path / "y.log", probe=lambda: "no")
    process = SupervisedProcess(command, needs_ready=lambda _needs: True, on_change=lambda changed: None)
    process.start()
    reached(process, State.FAILED)
    assert "cannot start /nowhere/program: No such file" in process.detail


def test_a_stop_reaches_what_the_process_started_itself(kept: Kept) -> None:
    """No grandchild outlives a process that is ended."""
    process = kept.start(
        f"import subprocess as s; print(s.Popen(['sleep', '600']).pid, flush=True); {READY_FILE + SLEEP}"
    )
    reached(process, State.READY)
    started = int((kept.folder / "x.log").read_text(encoding="ascii"))
    assert psutil.pid_exists(started)
    process.request_stop()
    process.finish_stop()
    assert process.state is State.STOPPED
    eventually(lambda: not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE)


def test_a_process_that_ignores_the_stop_is_ended_by_force(kept: Kept) -> None:
    """After the grace comes SIGKILL."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    process = kept.start(deaf + READY_FILE + SLEEP)
    reached(process, State.READY)
    process.request_stop()
    process.finish_stop(grace_s=0.2)
    assert process.pid is None
    assert process.exit_code == -signal.SIGKILL


def test_a_stopped_process_can_be_started_again(kept: Kept) -> None:
    """Stop and start work in turn on the same process."""
    process = kept.start(READY_FILE + SLEEP)
    reached(process, State.READY)
    process.request_stop()
    process.finish_stop()
    assert process.state is State.STOPPED
    process.start()
    reached(process, State.READY)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (
            '{"event":"a"}\n{"event":"stopped","error":"port 1 is in use","fix":"free it"}\n',
            "port 1 is in use; fix: free it",
        ),
        ('{"event":"crashed","error":"ValueError()"}\n{"event":"bye"}\n', "ValueError()"),
        (
            "Traceback (most recent call last):\n  File x\nModuleNotFoundError: no torch\n",
            "ModuleNotFoundError: no torch",
        ),
        (
            '{"level":"error","error":"ValueError()"}\n{"level":"warning","event":"dead_letter","error":"not JSON"}\n',
            "ValueError()",
        ),
        ("", ""),
        ("[1, 2]\n", "[1, 2]"),
    ],
)
def test_the_last_error_is_found(tail: str, expected: str) -> None:
    """Our own lines that are errors give cause and fix, warnings do not; anything else gives its last line."""
    assert last_logged_error(tail) == expected


def test_what_an_earlier_process_logged_is_not_read(tmp_path: Path) -> None:
    """What was in the log before the process started is not why it ended."""
    log = tmp_path / "x.log"
    log.write_text("old error\nnew\n", encoding="ascii")
    assert read_tail(log, since=len("old error\n")) == "new\n"


def test_a_log_that_is_missing_says_nothing(tmp_path: Path) -> None:
    """Asking for the end of a log that was never written is no failure."""
    assert read_tail(tmp_path / "none.log") == ""

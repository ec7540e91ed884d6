"""One supervised process: it comes back, it is given up when that is hopeless, and it leaves nothing behind."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local import child
from deploy.local.child import Child, Launch, State
from tests.support.poll import eventually

READY_FILE = "import pathlib; pathlib.Path('ready').touch(); "
SLEEP = "import time; time.sleep(600)"


class Kept:
    """A child under test and the states that it went through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states: list[State] = []
        self.needs_ready = True
        self.child: Child | None = None

    def start(self, script: str) -> Child:
        """Keep a Python script running; it is ready once it has made a file."""
        launch = Launch(
            name="x",
            argv=[sys.executable, "-c", script],
            environ=dict(os.environ),
            log_path=self.folder / "x.log",
            probe=lambda: None if (self.folder / "ready").exists() else "no file yet",
            cwd=self.folder,
        )
        self.child = Child(launch, needs_ready=lambda: self.needs_ready, on_change=self._note)
        self.child.start()
        return self.child

    def _note(self, changed: Child) -> None:
        """Note a change of state."""
        self.states.append(changed.state)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """Give a child with pauses short enough for a test; whatever it runs is gone afterwards."""
    monkeypatch.setattr(child, "FIRST_PAUSE_S", 0.01)
    made = Kept(tmp_path)
    yield made
    if made.child is not None:
        made.child.request_stop()
        made.child.finish_stop(grace_s=1.0)


def reached(keeper: Child, state: State) -> None:
    """Wait until a child has reached a state."""
    eventually(lambda: keeper.state is state, what=f"{state}, from {keeper.state} {keeper.detail}")


def test_a_process_is_ready_only_after_its_probe_says_so(kept: Kept) -> None:
    """Being started is not being ready."""
    keeper = kept.start(READY_FILE + SLEEP)
    reached(keeper, State.READY)
    assert kept.states == [State.WAITING, State.STARTING, State.READY]


def test_it_waits_for_what_it_needs(kept: Kept) -> None:
    """Nothing is started while a need is not ready."""
    kept.needs_ready = False
    keeper = kept.start(READY_FILE + SLEEP)
    assert keeper.pid is None
    kept.needs_ready = True
    reached(keeper, State.READY)


def test_a_killed_process_comes_back(kept: Kept) -> None:
    """After SIGKILL another process takes its place, and the restart is counted."""
    keeper = kept.start(READY_FILE + SLEEP)
    reached(keeper, State.READY)
    first = keeper.send(signal.SIGKILL)
    eventually(lambda: keeper.state is State.READY and keeper.pid not in {None, first})
    assert keeper.restarts == 1


def test_a_process_that_falls_after_it_was_ready_is_never_given_up(kept: Kept) -> None:
    """Falling often is answered by longer pauses, not by giving up."""
    keeper = kept.start(READY_FILE + "time = __import__('time'); time.sleep(0.3); raise SystemExit(1)")
    eventually(lambda: keeper.restarts > child.MOST_FAILED_STARTS, timeout_s=30)
    assert keeper.state is not State.FAILED


def test_a_wrong_setting_is_not_tried_again(kept: Kept) -> None:
    """Exit code 2 ends the tries at once, with the process's own words."""
    line = '{"error":"MILLRACE_PORT=x: not a number","fix":"set one"}'
    keeper = kept.start(f"import sys; print('{line}', file=sys.stderr); sys.exit(2)")
    reached(keeper, State.FAILED)
    assert keeper.restarts == 0
    assert keeper.detail == "MILLRACE_PORT=x: not a number; fix: set one (exit code 2)"


def test_a_process_that_never_becomes_ready_is_given_up_with_its_last_words(kept: Kept) -> None:
    """A missing dependency does not make it spin for ever."""
    keeper = kept.start("raise SystemExit('no disk left')")
    reached(keeper, State.FAILED)
    assert keeper.restarts == child.MOST_FAILED_STARTS - 1
    assert keeper.detail == "no disk left (exit code 1)"


@pytest.mark.usefixtures("kept")
def test_a_command_that_is_not_there_is_given_up_with_its_name(tmp_path: Path) -> None:
    """A missing program is one clear line."""
    launch = Launch("y", ["/nowhere/program"], dict(os.environ), tmp_path / "y.log", probe=lambda: "no")
    keeper = Child(launch, needs_ready=lambda: True, on_change=lambda changed: None)
    keeper.start()
    reached(keeper, State.FAILED)
    assert "cannot start /nowhere/program: No such file" in keeper.detail


def test_a_stop_reaches_what_the_process_started_itself(kept: Kept) -> None:
    """No grandchild outlives a process that is ended."""
    keeper = kept.start(
        f"import subprocess as s; print(s.Popen(['sleep', '600']).pid, flush=True); {READY_FILE + SLEEP}"
    )
    reached(keeper, State.READY)
    started = int((kept.folder / "x.log").read_text(encoding="ascii"))
    assert psutil.pid_exists(started)
    keeper.request_stop()
    keeper.finish_stop()
    assert keeper.state is State.STOPPED
    eventually(lambda: not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE)


def test_a_process_that_ignores_the_stop_is_ended_by_force(kept: Kept) -> None:
    """After the grace comes SIGKILL."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    keeper = kept.start(deaf + READY_FILE + SLEEP)
    reached(keeper, State.READY)
    keeper.request_stop()
    keeper.finish_stop(grace_s=0.2)
    assert keeper.pid is None
    assert keeper.exit_code == -signal.SIGKILL


def test_a_stopped_process_can_be_started_again(kept: Kept) -> None:
    """Stop and start work in turn on the same child."""
    keeper = kept.start(READY_FILE + SLEEP)
    reached(keeper, State.READY)
    keeper.request_stop()
    keeper.finish_stop()
    assert keeper.state is State.STOPPED
    keeper.start()
    reached(keeper, State.READY)

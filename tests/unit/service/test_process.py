"""How a process starts and ends: exit codes, one line per failure, signals."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import kafka.errors
import pytest
import redis

from contracts.errors import CheckFailed, DependencyDown, InvariantError, MillraceError, UsageError
from contracts.telemetry import Process
from service.process import Shutdown, execute, expected_failure
from service.settings import Settings
from tests.support.poll import eventually

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start each process without settings from outside."""
    for name in [name for name in os.environ if name.startswith("MILLRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the last line logged."""
    line: dict[str, Any] = json.loads(capsys.readouterr().err.splitlines()[-1])
    return line


def raising(error: BaseException) -> Any:
    """Return a `main` that fails."""

    def main(_settings: Settings, _shutdown: Shutdown) -> None:
        """Fail."""
        raise error

    return main


def test_a_sync_main_runs_to_its_end() -> None:
    """Done means exit code 0."""
    seen: list[str] = []
    assert execute(Process.TRAINER, lambda settings, _: seen.append(settings.host)) == 0
    assert seen == ["127.0.0.1"]


def test_an_async_main_runs_in_a_loop_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync and async processes start alike."""
    seen: list[int] = []

    async def main(settings: Settings, _shutdown: Shutdown) -> None:
        """Await something."""
        await asyncio.sleep(0)
        seen.append(settings.partitions)

    monkeypatch.setenv("MILLRACE_PARTITIONS", "3")
    assert execute(Process.SEARCH, main) == 0
    assert seen == [3]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MillraceError("failed"), 1),
        (UsageError("wrong", fix="correct it"), 2),
        (CheckFailed("no"), 3),
        (DependencyDown("gone", fix="start it"), 4),
        (InvariantError("odd"), 1),
        (kafka.errors.InvalidSessionTimeoutError(), 2),
        (kafka.errors.KafkaTimeoutError("slow"), 4),
        (redis.ConnectionError("refused"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "/data/checkpoint"), 4),
        (OSError(errno.EADDRINUSE, "Address already in use"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), 4),
        (ExceptionGroup("tasks", [DependencyDown("gone", fix="start it")]), 4),
    ],
)
def test_an_expected_failure_is_one_line_and_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, and the fix beside the cause."""
    assert execute(Process.TRAINER, raising(error)) == code
    line = last_line(capsys)
    assert (line["event"], line["level"], line["exit_code"]) == ("stopped", "error", code)
    assert line["error"]
    assert "fix" in line
    assert "exception" not in line


def test_an_unexpected_failure_carries_its_traceback_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What nobody foresaw can be found in the log, still as one line."""
    assert execute(Process.TRAINER, raising(KeyError("offsets"))) == 1
    line = last_line(capsys)
    assert (line["event"], line["error"]) == ("crashed", "KeyError('offsets')")
    assert "Traceback" in line["exception"]


async def cancelled(_settings: Settings, _shutdown: Shutdown) -> None:
    """Await a task that somebody cancels."""
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


def test_a_cancellation_that_nobody_asked_for_is_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    """A process whose work was cancelled under it has not done its work, and says where."""
    assert execute(Process.SEARCH, cancelled) == 1
    line = last_line(capsys)
    assert (line["event"], line["exit_code"]) == ("crashed", 1)
    assert "cancelled" in line["error"]
    assert "await task" in line["exception"]


def test_a_cancellation_after_a_stop_is_a_clean_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks that a stop cancels are no failure."""

    async def stopped(settings: Settings, shutdown: Shutdown) -> None:
        """End by cancellation once stop was asked for."""
        shutdown.request()
        await cancelled(settings, shutdown)

    assert execute(Process.SEARCH, stopped) == 0
    assert last_line(capsys)["event"] == "ended"


def test_wrong_settings_end_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The misspelt setting is the only fact of the log."""
    monkeypatch.setenv("MILLRACE_JION_WINDOW_S", "3")
    assert execute(Process.TRAINER, raising(AssertionError("must not start"))) == 2
    assert "did you mean MILLRACE_JOIN_WINDOW_S" in last_line(capsys)["error"]


def test_a_full_disk_names_the_file_and_the_setting() -> None:
    """Operators see what could not be written."""
    failure = expected_failure(OSError(errno.ENOSPC, "No space", "/data/x"), process="trainer")
    assert isinstance(failure, DependencyDown)
    assert failure.message == "disk full: cannot write /data/x"
    assert "MILLRACE_DATA_DIR" in failure.fix


def test_a_busy_port_found_by_a_framework_names_the_port() -> None:
    """Whoever bound the port, the line is the same."""
    failure = expected_failure(OSError(errno.EADDRINUSE, "in use"), process="search", settings=Settings(port=9))
    assert failure is not None
    assert failure.message == "port 9 is in use"


def test_an_unexpected_error_in_a_group_is_not_hidden() -> None:
    """One expected failure must not cover a bug beside it."""
    group = ExceptionGroup("tasks", [DependencyDown("gone"), KeyError("bug")])
    assert expected_failure(group, process="streams") is None


def test_an_errno_without_a_meaning_is_unexpected() -> None:
    """A failure of the system that nobody foresaw keeps its traceback."""
    assert expected_failure(OSError(errno.EBADF, "Bad file descriptor"), process="streams") is None
    assert expected_failure(ConnectionRefusedError("somewhere"), process="streams") is None


def test_signals_do_afterwards_what_they_did_before() -> None:
    """Running a process inside a test leaves no handler behind."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    execute(Process.TRAINER, lambda _settings, _shutdown: None)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_waiting_ends_with_the_request() -> None:
    """Threads that wait learn of the stop; those that come later see it at once."""
    shutdown = Shutdown()
    assert not shutdown.is_set()
    assert not shutdown.wait(0)
    threading.Timer(0.01, shutdown.request).start()
    assert shutdown.wait(10)
    assert shutdown.is_set()
    assert shutdown.wait()
    shutdown.request()
    shutdown.close()


async def test_several_tasks_can_wait_for_one_stop() -> None:
    """Each task that waits is woken."""
    shutdown = Shutdown()
    waiting = [asyncio.create_task(shutdown.wait_async()) for _ in range(3)]
    await asyncio.sleep(0)
    shutdown.request()
    await asyncio.wait_for(asyncio.gather(*waiting), timeout=5)
    await shutdown.wait_async()
    shutdown.close()


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    """A task that gives up frees its descriptor."""
    shutdown = Shutdown()
    before = len(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(shutdown.wait_async())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(os.listdir("/proc/self/fd")) == before
    shutdown.close()


def started(main: str, tmp_path: Path) -> "subprocess.Popen[str]":
    """Start a process with the given `main` and return once it said that it is ready."""
    script = f"import asyncio, time\nfrom service.process import run\n{main}\nrun('trainer', main)\n"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


SYNC_MAIN = """
def main(settings, shutdown):
    print("ready", flush=True)
    shutdown.wait(60)
    print("cleaned up", flush=True)
"""

ASYNC_MAIN = """
async def main(settings, shutdown):
    print("ready", flush=True)
    await shutdown.wait_async()
    print("cleaned up", flush=True)
"""

DEAF_MAIN = """
def main(settings, shutdown):
    print("ready", flush=True)
    while True:
        time.sleep(0.1)
"""

HANGING_MAIN = (
    """
import functools
from service import process
process._end_late_stop = functools.partial(process._end_late_stop, grace_s=0.2)
"""
    + DEAF_MAIN
)


@pytest.mark.parametrize("main", [SYNC_MAIN, ASYNC_MAIN], ids=["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_cleanly(main: str, number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM and Ctrl-C let `main` finish; the exit code is 0."""
    child = started(main, tmp_path)
    child.send_signal(number)
    output, log = child.communicate(timeout=20)
    assert (child.returncode, output) == (0, "cleaned up\n")
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["started", "ended"]


def test_asking_again_ends_a_deaf_process_at_once(tmp_path: Path) -> None:
    """Who asks a second time does not wait for the grace to pass."""
    child = started(DEAF_MAIN, tmp_path)

    def asked_again() -> bool:
        """Send another signal, and say whether the process has ended."""
        child.send_signal(signal.SIGTERM)
        return child.poll() is not None

    eventually(asked_again, timeout_s=10, interval_s=0.2)
    child.communicate()
    assert child.returncode == 128 + signal.SIGTERM


def test_a_stop_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    """A supervisor gets its answer within its 20 s, and the log says why."""
    child = started(HANGING_MAIN, tmp_path)
    child.send_signal(signal.SIGTERM)
    _, log = child.communicate(timeout=20)
    assert child.returncode == 1
    assert json.loads(log.splitlines()[-1])["event"] == "stop_took_too_long"

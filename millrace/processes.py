"""What `millrace up`, `down` and `status` do: run a deployment on this machine, stop it, ask how it is.

All three return plain data; printing is the command's part.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from contracts.errors import DependencyDown, MillraceError, UsageError
from deploy.local.processes import KAFKA, REDIS, TABLE, base_name, child_environ, http_problem
from deploy.local.servers import kafka_problem, redis_problem
from deploy.local.state import LOG_FOLDER, ProcessState, UpState, holder_pid, load_running_settings, read_state
from deploy.local.supervised_process import State, last_logged_error, read_tail
from deploy.local.supervisor import START_TIMEOUT_S, LocalMillrace, OnProgress
from deploy.local.up import run_until_stopped
from millrace.watch.scrape import scrape_targets
from service.settings import Settings, env_name, load_settings

STOP_TIMEOUT_S: Final = 90.0
POLL_S: Final = 0.1
RUNNING: Final = (State.READY.value, State.EXTERNAL.value)
UNREADY: Final = "unready"

Report = dict[str, Any]


def up(*, brokers: int, on_progress: OnProgress, on_ready: Callable[[Report], None]) -> None:
    """Run everything on this machine until Ctrl-C or SIGTERM; `on_ready` is told how all are once they are ready."""

    def say_where(running: LocalMillrace) -> None:
        on_progress("up", "ready", f"{_addresses(running.urls)}; Ctrl-C stops everything")
        on_ready(_report(read_state(running.settings.data_dir), running.settings))

    run_until_stopped(on_ready=say_where, on_progress=on_progress, brokers=brokers)


def _addresses(urls: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {urls[name]}" for name in ("page", "search", "collector") if name in urls)


def up_detached(
    overrides: Mapping[str, Any] | None = None,
    *,
    processes: Sequence[str] | None = None,
    brokers: int = 1,
    on_progress: OnProgress = lambda name, state, detail: None,
) -> Report:
    """Start a supervisor in the background and return how its processes are once all are ready."""
    data_dir = load_settings(overrides).data_dir.expanduser().absolute()
    if (pid := holder_pid(data_dir)) is not None:
        raise UsageError(f"Millrace already runs on {data_dir} (process {pid})", fix="`millrace down` stops it")
    log = data_dir / LOG_FOLDER / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    since = log.stat().st_size if log.exists() else 0
    started = Background(_spawn(overrides or {}, processes, brokers, log), log, since)
    try:
        state = _wait_all_ready(started, data_dir, on_progress)
    except BaseException:
        started.stop()
        raise
    running = load_running_settings(overrides)
    on_progress("up", "ready", f"{_addresses(scrape_targets(running))}; `millrace down` stops everything")
    return _report(state, running)


class Background(NamedTuple):
    """A supervisor in the background, with its log and where in that its own lines begin."""

    pid: int
    log: Path
    since: int

    def failure(self) -> MillraceError | None:
        """Say why it ended, or None while it runs."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        cause, _, fix = last_logged_error(read_tail(self.log, self.since)).partition("; fix: ")
        kinds = (UsageError, DependencyDown)
        kind = next((kind for kind in kinds if kind.exit_code == code), MillraceError)
        return kind(cause or f"the supervisor ended with exit code {code}", fix=fix or f"read {self.log}")

    def stop(self) -> None:
        """End it, and with it all that it started, unless it has ended."""
        try:
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            return


def _spawn(overrides: Mapping[str, Any], processes: Sequence[str] | None, brokers: int, log: Path) -> int:
    """Start `python -m deploy.local.up` in a session of its own; return its process id."""
    argv = [sys.executable, "-m", "deploy.local.up", "--brokers", str(brokers)]
    if processes is not None:
        argv += ["--processes", ",".join(processes)]
    given = {env_name(name): str(value) for name, value in overrides.items() if value is not None}
    environ = {**child_environ(os.environ), **given}
    redirected = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(sys.executable, argv, environ, file_actions=redirected, setsid=True)


def _wait_all_ready(started: Background, data_dir: Path, tell: OnProgress) -> UpState:
    deadline = time.monotonic() + START_TIMEOUT_S
    told: dict[str, str] = {}
    while time.monotonic() < deadline:
        if (failure := started.failure()) is not None:
            raise failure
        state = read_state(data_dir)
        for process in state.processes if state else ():
            if told.get(process.name) != process.state:
                told[process.name] = process.state
                tell(process.name, process.state, process.detail)
        if state is not None and all(process.state in RUNNING for process in state.processes):
            return state
        time.sleep(POLL_S)
    raise DependencyDown(f"not ready within {START_TIMEOUT_S:g} s", fix=f"read {started.log}")


def down(overrides: Mapping[str, Any] | None = None) -> Report:
    """Stop what runs on the data folder; return whether something ran, and the folder."""
    data_dir = load_settings(overrides).data_dir.expanduser().absolute()
    pid = holder_pid(data_dir)
    if pid is not None:
        _end(pid, data_dir)
    return {"stopped": pid is not None, "data_dir": str(data_dir)}


def _end(pid: int, data_dir: Path) -> None:
    """End a supervisor, by force if it takes too long; the kernel then ends its children."""
    for number, timeout_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + timeout_s
        while holder_pid(data_dir) == pid and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if holder_pid(data_dir) != pid:
            return
    raise DependencyDown(f"the supervisor {pid} does not end", fix=f"look at it with `ps -p {pid}`")


def status(overrides: Mapping[str, Any] | None = None) -> Report:
    """Ask every process how it is now.

    They are those of the supervisor if one runs here, else those that `MILLRACE_SCRAPE` names, else all as stopped.
    """
    settings = load_running_settings(overrides)
    return _report(read_state(settings.data_dir), settings)


def _report(state: UpState | None, settings: Settings) -> Report:
    targets = scrape_targets(settings)
    if state is not None:
        rows = [_row(process, _live_problem(process.name, settings, targets)) for process in state.processes]
    elif targets:
        found = {name: http_problem(f"{url}/ready") for name, url in targets.items()}
        rows = [_row(ProcessState(name, State.READY, None, None), found[name]) for name in targets]
    else:
        rows = [_row(ProcessState(name, State.STOPPED, None, None), None) for name in [KAFKA, REDIS, *TABLE]]
    return {"processes": rows}


def _row(process: ProcessState, problem: str | None) -> Report:
    unready = problem is not None and process.state in RUNNING
    is_asked_anew = process.state == State.STARTING and problem is not None  # its detail is an older answer
    reasons = [reason for reason in ("" if is_asked_anew else process.detail, problem) if reason]
    return {
        "name": process.name,
        "state": UNREADY if unready else str(process.state),
        "pid": process.pid,
        "port": process.port,
        "restarts": process.restarts,
        "reasons": reasons,
    }


def _live_problem(name: str, settings: Settings, targets: Mapping[str, str]) -> str | None:
    servers: dict[str, Callable[[Settings], str | None]] = {KAFKA: kafka_problem, REDIS: redis_problem}
    if base_name(name) in servers:
        return servers[base_name(name)](settings)
    return http_problem(f"{targets[name]}/ready") if name in targets else None

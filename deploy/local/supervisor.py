"""Millrace on one machine: starts servers and processes in order, keeps them running, stops them in reverse.

For `millrace up`, the demo and the tests alike: synchronous to use, threads inside.

    with LocalMillrace({"join_window_s": 3}, processes=["streams"], data_dir=folder) as running:
        running.kill("streams", signal.SIGKILL)
"""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from contracts.errors import DependencyDown, MillraceError, UsageError
from deploy.local.plan import SERVER_SETTING, Plan, PortChooser, make_plan, process_commands
from deploy.local.processes import KAFKA, QDRANT, REDIS, SERVERS, TABLE, Table, http_problem, level, resolve
from deploy.local.servers import kafka_problem, prepare_kafka, redis_problem, require_java
from deploy.local.state import (
    LOG_FOLDER,
    STATE_FILE,
    DataFolderLock,
    ProcessState,
    without_own_servers,
    write_env,
    write_state,
)
from deploy.local.supervised_process import STOP_GRACE_S, USAGE_EXIT, State, SupervisedProcess
from service.kafka import ensure_topics
from service.process import expected_failure
from service.settings import Settings, env_name, load_settings

START_TIMEOUT_S: Final = 300.0
LEAST_FREE_MB: Final = 400
POLL_S: Final = 0.05

OnProgress = Callable[[str, str, str], None]
"""Told (name, state, detail) at each change; may be called from any thread, one call at a time."""


class LocalMillrace:
    """Servers and processes of one deployment on this machine.

    Args:
        overrides: settings by field name, above the environment and millrace.toml.
        processes: what to run, with all that it needs; None for everything, `streams-2` for a further instance.
        data_dir: the folder of this deployment; the setting's if None.
        brokers: how many Kafka nodes, 1 or 3.
        on_progress: told about each change of state.
        environ: the environment that settings are read from; the process's own if None.
        table: the processes there are.
    """

    def __init__(
        self,
        overrides: Mapping[str, Any] | None = None,
        *,
        processes: Sequence[str] | None = None,
        data_dir: Path | None = None,
        brokers: int = 1,
        on_progress: OnProgress | None = None,
        environ: Mapping[str, str] | None = None,
        table: Table = TABLE,
    ) -> None:
        given = load_settings({**(overrides or {}), "data_dir": data_dir or (overrides or {}).get("data_dir")}, environ)
        self._given = without_own_servers(given.model_copy(update={"data_dir": given.data_dir.expanduser().absolute()}))
        self._names = resolve(processes, table)
        self._table = table
        self._brokers = brokers
        self._on_progress = on_progress or (lambda name, state, detail: None)
        self._telling = threading.Lock()
        self._processes: dict[str, SupervisedProcess] = {}
        self._states: dict[str, State] = {}  # as written to up.json and told: a state counts from then on
        self._plan: Plan | None = None
        self._port_chooser = PortChooser()
        self._lock: DataFolderLock | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def plan(self) -> Plan:
        """What runs, once opened."""
        if self._plan is None:
            raise UsageError("this deployment is not open", fix="call open() or use it in a `with` block")
        return self._plan

    @property
    def settings(self) -> Settings:
        """The settings in force, servers and keys included."""
        return self.plan.settings

    @property
    def env(self) -> dict[str, str]:
        """The settings in force as an environment, for clients and for up.env."""
        return self.plan.settings.as_environ()

    @property
    def ports(self) -> dict[str, int]:
        """The port of each name that listens."""
        return dict(self.plan.ports)

    @property
    def urls(self) -> dict[str, str]:
        """The address of each name, as its clients write it."""
        return dict(self.plan.urls)

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each name that runs now."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def open(self) -> None:
        """Start everything; return when all are ready, or stop what was started and raise."""
        try:
            self._open()
        except OSError as error:
            self.close()
            expected = expected_failure(error, process=KAFKA, settings=self._given)
            if expected is None:
                raise
            raise expected from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        folder = self._given.data_dir
        _make_folder(folder / LOG_FOLDER)
        self._lock = DataFolderLock.acquire(folder)
        _require_disk(folder)
        self._plan = make_plan(self._given, self._names, self._table, self._port_chooser, brokers=self._brokers)
        self._check_external()
        if self._plan.nodes:
            prepare_kafka(self._plan.nodes, java=require_java())
        self._processes = {
            command.name: SupervisedProcess(command, needs_ready=self._are_ready, on_change=self._changed)
            for command in process_commands(self._plan)
        }
        self._states = dict.fromkeys(self._processes, State.WAITING)
        own = [SERVER_SETTING[name] for name in SERVERS if name in self.urls and name not in self._plan.external]
        write_env(folder, self.env, own=own)
        self._start_in_order()

    def _start_in_order(self) -> None:
        servers = [name for name in self._processes if level(name, self._table) == 0]
        for name in servers:
            self._processes[name].start()
        if self.plan.needs_topics():
            self._wait([name for name in servers if name.startswith(KAFKA)], START_TIMEOUT_S)
            ensure_topics(self.settings)
        for name in self._processes.keys() - servers:
            self._processes[name].start()
        self._wait(list(self._processes), START_TIMEOUT_S)

    def close(self) -> None:
        """Stop everything in reverse order and give the data folder back; harmless when repeated."""
        levels = {name: level(name, self._table) for name in self._processes}
        for depth in sorted(set(levels.values()), reverse=True):
            self._stop_together([self._processes[name] for name in levels if levels[name] == depth])
        self._port_chooser.release()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _stop_together(self, processes: Sequence[SupervisedProcess]) -> None:
        for process in processes:
            process.request_stop()
        deadline = time.monotonic() + STOP_GRACE_S
        for process in processes:
            process.finish_stop(deadline - time.monotonic())

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a process a signal and return its process id; it comes back with back-off if that ended it."""
        pid = self._process(name).send(number)
        if pid is None:
            raise UsageError(f"{name} does not run: {self._process(name).state}")
        return pid

    def stop(self, name: str) -> None:
        """Stop one process; it stays down until `start`."""
        self._stop_together([self._process(name)])

    def start(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start one process again and return when it is ready."""
        self._process(name).start()
        self.wait_ready(name, timeout_s=timeout_s)

    def wait_ready(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when a process is ready."""
        self._process(name)
        self._wait([name], timeout_s)

    def states(self) -> dict[str, str]:
        """Return the state of each name."""
        external = dict.fromkeys(self.plan.external, State.EXTERNAL)
        return {name: state.value for name, state in {**external, **self._states}.items()}

    def restarts(self, name: str) -> int:
        """Return how often a process was started again."""
        return self._process(name).restarts

    def _process(self, name: str) -> SupervisedProcess:
        if name not in self._processes:
            raise UsageError(f"{name} was not started here", fix=f"started here: {', '.join(self._processes)}")
        return self._processes[name]

    def _are_ready(self, names: Sequence[str]) -> bool:
        """Tell whether all of these are ready; what is external was checked at the start."""
        return all(self._states[name] is State.READY for name in names if name in self._states)

    def _wait(self, names: Sequence[str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while waiting := [name for name in names if self._states[name] is not State.READY]:
            for name in waiting:
                if self._states[name] is State.FAILED:
                    raise self._failure(self._processes[name])
            if time.monotonic() >= deadline:
                raise self._failure(self._processes[waiting[0]], late_s=timeout_s)
            time.sleep(POLL_S)

    def _failure(self, process: SupervisedProcess, *, late_s: float | None = None) -> MillraceError:
        cause, _, fix = process.detail.partition("; fix: ")
        when = "" if late_s is None else f" within {late_s:g} s"
        error = UsageError if process.exit_code == USAGE_EXIT else DependencyDown
        command = process.command
        return error(f"{command.name} did not start{when}: {cause}", fix=fix or f"read {command.log_path}")

    def _changed(self, process: SupervisedProcess) -> None:
        """Write down a change of state and tell who listens; neither may end the thread that keeps the process."""
        name, detail = process.command.name, process.detail
        with self._telling:
            states = {**self._states, name: process.state}
            try:
                write_state(self.plan.data_dir, self._process_states(states))
            except OSError as error:  # the disk is full
                detail = f"{detail}; cannot write {STATE_FILE}: {error.strerror}".removeprefix("; ")
            with suppress(OSError):  # who listened is gone, such as the reader of a pipe
                self._on_progress(name, process.state.value, detail)
            self._states = states

    def _process_states(self, states: Mapping[str, State]) -> list[ProcessState]:
        used = [ProcessState(name, State.EXTERNAL, None, self.plan.ports.get(name)) for name in self.plan.external]
        started = [
            ProcessState(name, states[name], process.pid, process.command.port, process.restarts, process.detail)
            for name, process in self._processes.items()
        ]
        return used + started

    def _check_external(self) -> None:
        """Ask each server that the settings name whether it is there."""
        settings = self.settings
        key = settings.qdrant_api_key
        headers = {} if key is None else {"api-key": key.get_secret_value()}
        questions: dict[str, Callable[[], str | None]] = {
            KAFKA: lambda: kafka_problem(settings),
            REDIS: lambda: redis_problem(settings),
            QDRANT: lambda: http_problem(f"{settings.qdrant_url}/readyz", headers),
        }
        for name in sorted(self.plan.external):
            setting = env_name(SERVER_SETTING[name])
            if (problem := questions[name]()) is not None:
                fix = f"start it, correct {setting}, or unset that to have one started here"
                raise DependencyDown(f"{name}, named by {setting}: {problem}", fix=fix)
            self._on_progress(name, State.EXTERNAL.value, "")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        fix = "grant the right, or set MILLRACE_DATA_DIR to another folder"
        raise DependencyDown(f"cannot make {folder}: {error.strerror}", fix=fix) from error


def _require_disk(folder: Path) -> None:
    """Refuse to start on a disk that is all but full: Kafka would fall over, and take everything with it."""
    free_mb = shutil.disk_usage(folder).free // (1024 * 1024)
    if free_mb < LEAST_FREE_MB:
        raise DependencyDown(
            f"only {free_mb} MB are free on the disk of {folder}",
            fix=f"free at least {LEAST_FREE_MB} MB, or set MILLRACE_DATA_DIR to a larger disk",
        )

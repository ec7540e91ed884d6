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
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from contracts.errors import DependencyDown, MillraceError, UsageError
from deploy.local import kafka, plan, probes, redis
from deploy.local.child import STOP_GRACE_S, USAGE_EXIT, Child, State
from deploy.local.processes import KAFKA, QDRANT, REDIS, TABLE, Table, level, resolve
from deploy.local.state import LOG_FOLDER, DataFolderLock, ProcessState, write_env, write_state
from service.kafka import ensure_topics
from service.process import expected_failure
from service.settings import Settings, load_settings

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
        data_dir: the folder of this deployment; the setting's where None.
        brokers: how many Kafka nodes, 1 or 3.
        on_progress: told about each change of state.
        environ: the environment that settings are read from; the process's own where None.
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
        self._given = given.model_copy(update={"data_dir": given.data_dir.expanduser().absolute()})
        self._names = resolve(processes, table)
        self._table = table
        self._brokers = brokers
        self._on_progress = on_progress or (lambda name, state, detail: None)
        self._telling = threading.Lock()
        self._children: dict[str, Child] = {}
        self._plan: plan.Plan | None = None
        self._lock: DataFolderLock | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def plan(self) -> plan.Plan:
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
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    def open(self) -> None:
        """Start everything; return when all are ready, or stop what was started and raise.

        Raises:
            UsageError: a setting is wrong, or a supervisor already runs on this data folder.
            DependencyDown: something that is needed is missing or does not start.
        """
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
        """Take the folder, decide, start the servers, create the topics, start the processes."""
        folder = self._given.data_dir
        _make_folder(folder / LOG_FOLDER)
        self._lock = DataFolderLock.acquire(folder)
        _require_disk(folder)
        self._plan = plan.make_plan(self._given, self._names, self._table, brokers=self._brokers)
        self._check_external()
        if self._plan.nodes:
            kafka.prepare(self._plan.nodes, java=kafka.require_java())
        self._children = {
            launch.name: Child(launch, needs_ready=self._needs_check(launch.needs), on_change=self._tell)
            for launch in plan.launches(self._plan)
        }
        write_env(folder, self.env)
        self._start_in_order()

    def _start_in_order(self) -> None:
        """Start servers first; processes once their topics exist."""
        servers = [name for name in self._children if level(name, self._table) == 0]
        for name in servers:
            self._children[name].start()
        if self.plan.needs_topics():
            self._wait([name for name in servers if name.startswith(KAFKA)], START_TIMEOUT_S)
            ensure_topics(self.settings)
        for name in self._children.keys() - servers:
            self._children[name].start()
        self._wait(list(self._children), START_TIMEOUT_S)

    def close(self) -> None:
        """Stop everything in reverse order and give the data folder back; harmless when repeated."""
        for depth in sorted({level(name, self._table) for name in self._children}, reverse=True):
            self._stop_together([child for name, child in self._children.items() if level(name, self._table) == depth])
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _stop_together(self, children: Sequence[Child]) -> None:
        """Stop processes that do not need one another, within one grace."""
        for child in children:
            child.request_stop()
        deadline = time.monotonic() + STOP_GRACE_S
        for child in children:
            child.finish_stop(deadline - time.monotonic())

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a process a signal and return its process id; it comes back with back-off if that ended it.

        Raises:
            UsageError: it does not run.
        """
        pid = self._child(name).send(number)
        if pid is None:
            raise UsageError(f"{name} does not run: {self._child(name).state}")
        return pid

    def stop(self, name: str) -> None:
        """Stop one process; it stays down until `start`."""
        self._stop_together([self._child(name)])

    def start(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start one process again and return when it is ready."""
        self._child(name).start()
        self.wait_ready(name, timeout_s=timeout_s)

    def restart(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Stop one process cleanly, start it again and return when it is ready."""
        self.stop(name)
        self._child(name).restarts += 1
        self.start(name, timeout_s=timeout_s)

    def wait_ready(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when a process is ready.

        Raises:
            DependencyDown: it was given up, or the time is over.
        """
        self._child(name)
        self._wait([name], timeout_s)

    def states(self) -> dict[str, str]:
        """Return where each name stands."""
        started = {name: child.state.value for name, child in self._children.items()}
        return {**dict.fromkeys(self.plan.external, State.EXTERNAL.value), **started}

    def restarts(self, name: str) -> int:
        """Return how often a process was started again."""
        return self._child(name).restarts

    def log_path(self, name: str) -> Path:
        """Return where a process's output goes."""
        return self.plan.log_path(name)

    def _child(self, name: str) -> Child:
        """Return the keeper of a process."""
        if name not in self._children:
            raise UsageError(f"{name} was not started here", fix=f"started here: {', '.join(self._children)}")
        return self._children[name]

    def _needs_check(self, needs: Sequence[str]) -> Callable[[], bool]:
        """Return a question whether all needs are ready; what is external was checked at the start."""
        return lambda: all(self._children[need].state is State.READY for need in needs if need in self._children)

    def _wait(self, names: Sequence[str], timeout_s: float) -> None:
        """Return when all names are ready; raise as soon as one is given up."""
        deadline = time.monotonic() + timeout_s
        while waiting := [self._children[name] for name in names if self._children[name].state is not State.READY]:
            for child in waiting:
                if child.state is State.FAILED:
                    raise self._failure(child)
            if time.monotonic() >= deadline:
                raise self._failure(waiting[0], late_s=timeout_s)
            time.sleep(POLL_S)

    def _failure(self, child: Child, *, late_s: float | None = None) -> MillraceError:
        """Return what a process that does not start means, with its own last words."""
        cause, _, fix = child.detail.partition("; fix: ")
        when = "" if late_s is None else f" within {late_s:g} s"
        error = UsageError if child.exit_code == USAGE_EXIT else DependencyDown
        return error(f"{child.launch.name} did not start{when}: {cause}", fix=fix or f"read {child.launch.log_path}")

    def _tell(self, child: Child) -> None:
        """Write down a change of state and tell who listens."""
        with self._telling:
            write_state(self.plan.data_dir, self._process_states())
            self._on_progress(child.launch.name, child.state.value, child.detail)

    def _process_states(self) -> list[ProcessState]:
        """Return the state of every name, servers of the settings included."""
        used = [
            ProcessState(name, State.EXTERNAL.value, None, self.plan.ports.get(name)) for name in self.plan.external
        ]
        kept = [
            ProcessState(name, child.state.value, child.pid, child.launch.port, child.restarts, child.detail)
            for name, child in self._children.items()
        ]
        return used + kept

    def _check_external(self) -> None:
        """Ask each server that the settings name whether it is there.

        Raises:
            DependencyDown: one does not answer.
        """
        settings = self.settings
        key = settings.qdrant_api_key
        headers = {} if key is None else {"api-key": key.get_secret_value()}
        questions: dict[str, Callable[[], str | None]] = {
            KAFKA: lambda: kafka.kafka_problem(settings),
            REDIS: lambda: redis.redis_problem(settings),
            QDRANT: lambda: probes.http_problem(f"{settings.qdrant_url}/readyz", headers),
        }
        for name in sorted(self.plan.external):
            setting = f"MILLRACE_{plan.SERVER_SETTING[name].upper()}"
            if (problem := questions[name]()) is not None:
                fix = f"start it, correct {setting}, or unset that to have one started here"
                raise DependencyDown(f"{name}, named by {setting}: {problem}", fix=fix)
            self._on_progress(name, State.EXTERNAL.value, "")


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; what stands in the way is named."""
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

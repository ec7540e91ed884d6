"""What a running `up` leaves in its data folder for the other commands: up.env, up.json and a lock.

up.env holds the settings and keys in force; its keys outlive a stop, so that pages and scripts of the shop keep
working. up.json holds what runs. The operating system frees the lock however its holder ends, so neither file is
believed while nobody holds it.
"""

import fcntl
import json
import os
import shlex
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from contracts.errors import UsageError
from service.machine import write_atomically
from service.settings import ENV_PREFIX, Settings, env_name, load_settings

ENV_FILE: Final = "up.env"
ANSWERS_WITHIN_S: Final = 1.0
OWN_SERVERS: Final = "# started here: "
"""Begins the first line of up.env, which names the settings of servers that `up` started itself."""
STATE_FILE: Final = "up.json"
LOCK_FILE: Final = "up.lock"
MUTEX_FILE: Final = "up.mutex"
LOG_FOLDER: Final = "logs"
PRIVATE: Final = 0o600
KEYS: Final = ("write_key", "secret_key", "person_key")


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process as its supervisor sees it; `detail` says why it is not ready."""

    name: str
    state: str
    pid: int | None
    port: int | None
    restarts: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class UpState:
    """A supervisor and its processes."""

    pid: int
    processes: tuple[ProcessState, ...]


class DataFolderLock:
    """The right to run on a data folder; one supervisor at a time has it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, data_dir: Path) -> Self:
        """Take the lock."""
        descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        with _mutex(data_dir, fcntl.LOCK_EX):
            taken = _try_lock(descriptor, fcntl.LOCK_EX)
        if not taken:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise UsageError(
                f"Millrace already runs on {data_dir} (process {holder or 'unknown'})",
                fix="`millrace down` stops it; another MILLRACE_DATA_DIR runs a second one beside it",
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def _mutex(data_dir: Path, kind: int) -> Iterator[None]:
    """Keep those who look at the lock, who share this, apart from one who takes it.

    Only an attempt to lock shows whether another holds the lock; without this, a look could make a start fail.
    """
    descriptor = os.open(data_dir / MUTEX_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_running(data_dir: Path) -> bool:
    """Return whether a supervisor runs on the data folder now."""
    try:
        with _mutex(data_dir, fcntl.LOCK_SH):
            descriptor = os.open(data_dir / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return not _try_lock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)
    except OSError:
        return False


def holder_pid(data_dir: Path) -> int | None:
    """Tell which process supervises the data folder now, if any."""
    if not is_running(data_dir):
        return None
    text = (data_dir / LOCK_FILE).read_text(encoding="ascii").strip()
    return int(text) if text.isdecimal() else None


def write_env(data_dir: Path, environ: Mapping[str, str], *, own: Collection[str] = ()) -> None:
    """Write the settings in force, readable by their owner alone, in a form that a shell can source.

    Args:
        data_dir: of the deployment.
        environ: the settings.
        own: names of the settings that say where servers are which were started here.
    """
    rows = [f"{name}={shlex.quote(value)}\n" for name, value in sorted(environ.items()) if value]
    if own:
        rows.insert(0, f"{OWN_SERVERS}{' '.join(sorted(own))}\n")
    write_atomically(data_dir / ENV_FILE, "".join(rows).encode(), mode=PRIVATE)


def without_own_servers(settings: Settings) -> Settings:
    """Leave out the servers that the last `up` on this data folder started: a shell may have loaded its up.env.

    They are started again; taken for servers of somebody else's, they would be waited for in vain. One that answers is
    somebody's.
    """
    try:
        first = (settings.data_dir / ENV_FILE).read_text(encoding="utf-8").partition("\n")[0]
    except (FileNotFoundError, NotADirectoryError):
        return settings
    stored = read_env(settings.data_dir)
    names = first.removeprefix(OWN_SERVERS).split() if first.startswith(OWN_SERVERS) else []
    named = ((name, getattr(settings, name, None)) for name in names)
    own = [name for name, url in named if url and url == stored.get(env_name(name)) and not _answers(url)]
    return settings.model_copy(update=dict.fromkeys(own))


def _answers(url: str) -> bool:
    """Whether somebody listens at an address, of several at the first."""
    found = urlsplit(url if "//" in url else f"//{url.split(',', maxsplit=1)[0]}")
    try:
        with socket.create_connection((found.hostname or "", found.port or 0), timeout=ANSWERS_WITHIN_S):
            return True
    except OSError:
        return False


def read_env(data_dir: Path) -> dict[str, str]:
    """Read up.env, of this run or the last; empty if there was none."""
    try:
        text = (data_dir / ENV_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    assignments = (word.partition("=") for word in shlex.split(text) if word.startswith(ENV_PREFIX))
    return {name: value for name, _, value in assignments}


def write_state(data_dir: Path, processes: Iterable[ProcessState]) -> None:
    """Write what runs, in one step: a reader sees the old state or the new one."""
    state = UpState(os.getpid(), tuple(processes))
    write_atomically(data_dir / STATE_FILE, f"{json.dumps(asdict(state), indent=1)}\n".encode(), mode=PRIVATE)


def read_state(data_dir: Path) -> UpState | None:
    """Read what the running supervisor last wrote; None if none runs."""
    if not is_running(data_dir):
        return None
    try:
        stored = json.loads((data_dir / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if stored["pid"] != holder_pid(data_dir):
        return None
    return UpState(stored["pid"], tuple(ProcessState(**row) for row in stored["processes"]))


def load_running_settings(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings for a command that is a client of what runs.

    millrace.toml < up.env, while an `up` runs < environment < command line.
    """
    given = dict(os.environ if environ is None else environ)
    settings = load_settings(overrides, given)
    if not is_running(settings.data_dir):
        return settings
    return load_settings(overrides, {**read_env(settings.data_dir), **given})

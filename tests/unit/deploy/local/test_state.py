"""What a running `up` leaves in its data folder, and who may believe it."""

import fcntl
import socket
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import UsageError
from deploy.local import state
from deploy.local.state import DataFolderLock, ProcessState
from tests.conftest import SettingsFactory
from tests.support.ports import free_port


def test_the_env_file_is_private_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """Keys are readable by their owner alone, and odd characters survive."""
    environ = {
        "MILLRACE_WRITE_KEY": "k$ey 'with\" all",
        "MILLRACE_PERSON_KEY": "two\nlines",
        "MILLRACE_PARTITIONS": "4",
        "MILLRACE_TOPIC_PREFIX": "",
    }
    state.write_env(tmp_path, environ)
    assert stat.S_IMODE((tmp_path / state.ENV_FILE).stat().st_mode) == 0o600
    assert state.read_env(tmp_path) == {name: value for name, value in environ.items() if value}


def test_a_shell_that_loaded_up_env_starts_the_same_servers_again(tmp_path: Path, settings: SettingsFactory) -> None:
    """Addresses of servers that were started here are left out; one of somebody else's, or a changed one, stays."""
    given = {
        "kafka_bootstrap": f"127.0.0.1:{free_port()}",
        "redis_url": "redis://redis.example:6379/0",
        "qdrant_url": f"http://127.0.0.1:{free_port()}",
    }
    loaded = settings(data_dir=tmp_path, **given)
    assert state.without_own_servers(loaded) == loaded
    state.write_env(tmp_path, loaded.as_environ(), own=["kafka_bootstrap", "qdrant_url"])
    found = state.without_own_servers(loaded)
    assert (found.kafka_bootstrap, found.redis_url, found.qdrant_url) == (None, "redis://redis.example:6379/0", None)
    assert state.read_env(tmp_path)["MILLRACE_KAFKA_BOOTSTRAP"] == given["kafka_bootstrap"]
    with socket.create_server(("127.0.0.1", int(given["kafka_bootstrap"].partition(":")[2]))):
        assert state.without_own_servers(loaded).kafka_bootstrap == given["kafka_bootstrap"]
    other = settings(data_dir=tmp_path, **{**given, "kafka_bootstrap": "broker:9092"})
    assert state.without_own_servers(other).kafka_bootstrap == "broker:9092"


def test_a_second_holder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    """One data folder has one supervisor; the message says which and how to stop it."""
    lock = DataFolderLock.acquire(tmp_path)
    holder = state.holder_pid(tmp_path)
    with pytest.raises(UsageError, match=f"already runs on .*{holder}") as raised:
        DataFolderLock.acquire(tmp_path)
    assert "millrace down" in raised.value.fix
    lock.release()
    DataFolderLock.acquire(tmp_path).release()


class Meanwhile:
    """Has something done in the middle of a look at the lock, up to where it ends or has to wait for the lock.

    Args:
        monkeypatch: of the test.
        action: what is done.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
        self._action = action
        self._lock = fcntl.flock
        self._thread = ThreadPoolExecutor(1)
        self._got_there = threading.Event()
        self.outcome: Future[Any] | None = None
        monkeypatch.setattr(fcntl, "flock", self._flock)

    def _flock(self, descriptor: int, operation: int) -> None:
        """Lock as the operating system does, and have the action done once the first look holds what it needs."""
        waits = not operation & fcntl.LOCK_NB
        if threading.current_thread() is not threading.main_thread():
            self._lock_beside(descriptor, operation, waits=waits)
            return
        self._lock(descriptor, operation)
        if self.outcome is None and not waits:
            self.outcome = self._thread.submit(self._action)
            assert self._got_there.wait(10)

    def _lock_beside(self, descriptor: int, operation: int, *, waits: bool) -> None:
        """Lock for the action, which got there once it waits or has its answer."""
        if waits:
            self._got_there.set()
        try:
            self._lock(descriptor, operation)
        finally:
            self._got_there.set()


def test_looking_never_stands_in_the_way_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`millrace status` at any moment does not make `millrace up` refuse."""
    DataFolderLock.acquire(tmp_path).release()
    start = Meanwhile(monkeypatch, lambda: DataFolderLock.acquire(tmp_path))
    assert not state.is_running(tmp_path)
    assert start.outcome is not None
    lock = start.outcome.result(10)
    assert state.is_running(tmp_path)
    lock.release()


def test_a_supervisor_is_seen_though_the_mutex_is_gone(tmp_path: Path) -> None:
    """The lock alone says whether one runs; what those who look share is made if it is missing."""
    lock = DataFolderLock.acquire(tmp_path)
    (tmp_path / state.MUTEX_FILE).unlink()
    assert state.is_running(tmp_path)
    lock.release()
    assert not state.is_running(tmp_path)


def test_two_that_look_do_not_take_each_other_for_a_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none runs nobody is told that one does, however many look at once."""
    DataFolderLock.acquire(tmp_path).release()
    look = Meanwhile(monkeypatch, lambda: state.is_running(tmp_path))
    assert not state.is_running(tmp_path)
    assert look.outcome is not None
    assert look.outcome.result(10) is False


def test_a_state_without_a_supervisor_is_not_believed(tmp_path: Path) -> None:
    """A file that a killed supervisor left behind says nothing about now."""
    lock = DataFolderLock.acquire(tmp_path)
    state.write_state(tmp_path, [ProcessState("search", "ready", 7, 8081)])
    found = state.read_state(tmp_path)
    assert found is not None
    assert found.processes == (ProcessState("search", "ready", 7, 8081),)
    lock.release()
    assert state.read_state(tmp_path) is None
    assert state.holder_pid(tmp_path) is None


def test_commands_take_the_servers_of_a_running_up_and_only_of_a_running_one(tmp_path: Path) -> None:
    """While `up` runs its settings are in force for other commands; afterwards they are not."""
    state.write_env(tmp_path, {"MILLRACE_KAFKA_BOOTSTRAP": "127.0.0.1:1", "MILLRACE_PARTITIONS": "2"})
    given = {"MILLRACE_DATA_DIR": str(tmp_path), "MILLRACE_PARTITIONS": "3"}
    lock = DataFolderLock.acquire(tmp_path)
    settings = state.load_running_settings(environ=given)
    assert (settings.kafka_bootstrap, settings.partitions) == ("127.0.0.1:1", 3)
    lock.release()
    assert state.load_running_settings(environ=given).kafka_bootstrap is None

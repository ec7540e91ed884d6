"""What a running `up` leaves in its data folder, and who may believe it."""

import stat
from pathlib import Path

import pytest

from contracts.errors import UsageError
from deploy.local import state
from deploy.local.state import DataFolderLock, ProcessState


def test_the_env_file_is_private_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """Keys are readable by their owner alone, and odd characters survive."""
    environ = {"MILLRACE_WRITE_KEY": "k$ey 'with\" all", "MILLRACE_PARTITIONS": "4", "MILLRACE_TOPIC_PREFIX": ""}
    state.write_env(tmp_path, environ)
    assert stat.S_IMODE((tmp_path / state.ENV_FILE).stat().st_mode) == 0o600
    assert state.read_env(tmp_path) == {name: value for name, value in environ.items() if value}


def test_a_second_holder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    """One data folder has one supervisor; the message says which and how to stop it."""
    lock = DataFolderLock.acquire(tmp_path)
    holder = state.holder_pid(tmp_path)
    with pytest.raises(UsageError, match=f"already runs on .*{holder}") as raised:
        DataFolderLock.acquire(tmp_path)
    assert "millrace down" in raised.value.fix
    lock.release()
    DataFolderLock.acquire(tmp_path).release()


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

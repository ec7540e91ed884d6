"""The supervisor with real Kafka and Redis: order, restarts, one `up` per folder, and no orphan however it ends.

Our own processes are stand-ins that start in no time; what is tested is how they are kept.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from contracts.errors import DependencyDown, UsageError
from contracts.telemetry import DEFAULT_PORTS, Process
from deploy.local import REPOSITORY, state
from deploy.local.processes import ProcessSpec
from deploy.local.supervisor import LocalMillrace
from service.settings import Settings
from tests.support.poll import eventually

STEADY = "tests.support.dummies.steady"
COLLECTOR = ProcessSpec("collector", STEADY, needs=("redis",))
PAGE = ProcessSpec("page", STEADY, needs=("redis",))
RUNNER = "tests.support.dummies.supervisor"

pytestmark = pytest.mark.redis


def table(*specs: ProcessSpec) -> dict[str, ProcessSpec]:
    """Return a table of processes."""
    return {spec.name: spec for spec in specs}


def alive(pid: int) -> bool:
    """Return whether a process still runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_processes_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    """Redis is ready before the collector starts, and outlives it."""
    seen: list[tuple[str, str]] = []

    def note(name: str, change: str, _detail: str) -> None:
        """Note a change of state."""
        seen.append((name, change))

    with LocalMillrace(
        data_dir=tmp_path, table=table(COLLECTOR), on_progress=note, environ={}, processes=["collector"]
    ):
        assert seen.index(("redis", "ready")) < seen.index(("collector", "starting"))
    assert seen.index(("collector", "stopped")) < seen.index(("redis", "stopped"))


def test_what_runs_is_written_down_and_belongs_to_its_owner(tmp_path: Path) -> None:
    """up.json shows each process, up.env the settings in force; after the stop nothing claims to run."""
    with LocalMillrace(data_dir=tmp_path, table=table(COLLECTOR), environ={}, processes=["collector"]) as running:
        found = state.read_state(tmp_path)
        assert found is not None
        assert {row.name: (row.state, row.port) for row in found.processes} == {
            "redis": ("ready", running.ports["redis"]),
            "collector": ("ready", running.ports["collector"]),
        }
        assert state.read_env(tmp_path)["MILLRACE_REDIS_URL"] == running.urls["redis"]
    assert state.read_state(tmp_path) is None


def test_a_second_up_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    """The first goes on undisturbed; the second is told who runs and how to stop it."""
    with LocalMillrace(data_dir=tmp_path, environ={}, processes=["redis"]) as running:
        with (
            pytest.raises(UsageError, match="already runs"),
            LocalMillrace(data_dir=tmp_path, environ={}, processes=["redis"]),
        ):
            pass
        assert running.states() == {"redis": "ready"}


def test_a_busy_port_gives_another(tmp_path: Path) -> None:
    """A default port that somebody else holds is passed over, and everything runs."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", DEFAULT_PORTS[Process.COLLECTOR]))
            held.listen()
        except OSError:
            pass  # somebody else holds it already, which serves as well
        with LocalMillrace(data_dir=tmp_path, table=table(COLLECTOR), environ={}, processes=["collector"]) as running:
            assert running.ports["collector"] != DEFAULT_PORTS[Process.COLLECTOR]
            assert running.states()["collector"] == "ready"


def test_supervisors_that_start_at_the_same_moment_share_no_server(tmp_path: Path) -> None:
    """Each has a Redis of its own that its own process serves, however close the starts."""
    together = threading.Barrier(3)

    def start(number: int) -> int:
        """Run a Redis once all are about to, and return its port when all have started."""
        with LocalMillrace(data_dir=tmp_path / str(number), environ={}, processes=["redis"]) as running:
            together.wait(60)
            return running.ports["redis"]

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(start, range(3)))) == 3


def test_a_killed_process_comes_back_and_a_stopped_one_stays_down(tmp_path: Path) -> None:
    """SIGKILL is answered by a restart; `stop` by nothing until `start`."""
    with LocalMillrace(data_dir=tmp_path, table=table(COLLECTOR), environ={}, processes=["collector"]) as running:
        first = running.kill("collector")
        eventually(lambda: running.pids.get("collector") not in {None, first})
        running.wait_ready("collector")
        assert running.restarts("collector") == 1
        running.stop("redis")
        assert running.states()["redis"] == "stopped"
        running.start("redis")
        assert running.states()["redis"] == "ready"


def test_a_full_disk_does_not_end_what_keeps_a_process_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If up.json cannot be written, a killed process still comes back, and the changes tell of the disk."""
    details: list[str] = []

    def refuse(_folder: Path, _processes: object) -> None:
        """Write as a full disk lets."""
        raise OSError(errno.ENOSPC, "No space left on device")

    with LocalMillrace(
        data_dir=tmp_path,
        table=table(COLLECTOR),
        on_progress=lambda name, change, detail: details.append(detail),
        environ={},
        processes=["collector"],
    ) as running:
        monkeypatch.setattr("deploy.local.supervisor.write_state", refuse)
        first = running.kill("collector")
        eventually(lambda: running.pids.get("collector") not in {None, first})
        running.wait_ready("collector")
        assert "cannot write up.json: No space left on device" in details


def test_a_listener_that_is_gone_does_not_end_what_keeps_a_process_running(tmp_path: Path) -> None:
    """If whoever read the progress closed the pipe, everything still starts and comes back."""

    def tell(_name: str, _change: str, _detail: str) -> None:
        """Write to a pipe that nobody reads."""
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with LocalMillrace(
        data_dir=tmp_path, table=table(COLLECTOR), on_progress=tell, environ={}, processes=["collector"]
    ) as running:
        first = running.kill("collector")
        eventually(lambda: running.pids.get("collector") not in {None, first})
        running.wait_ready("collector")


def test_a_server_of_the_settings_is_used_and_not_started(tmp_path: Path, redis_url: str) -> None:
    """With Redis named in the settings none is started, and children are given that one."""
    with LocalMillrace(
        {"redis_url": redis_url}, data_dir=tmp_path, table=table(COLLECTOR), environ={}, processes=["collector"]
    ) as running:
        assert running.states() == {"redis": "external", "collector": "ready"}
        assert running.env["MILLRACE_REDIS_URL"] == redis_url
        assert set(running.pids) == {"collector"}


def test_a_server_of_the_settings_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    """Nothing is started in place of a server that was named, and the setting is named in the message."""
    with (
        pytest.raises(DependencyDown, match="MILLRACE_REDIS_URL") as raised,
        LocalMillrace({"redis_url": "redis://127.0.0.1:1/0"}, data_dir=tmp_path, environ={}, processes=["redis"]),
    ):
        pass
    assert "\n" not in raised.value.message
    assert not state.is_running(tmp_path)


@pytest.mark.parametrize(
    ("module", "error", "message", "fix"),
    [
        ("tests.support.dummies.misconfigured", UsageError, "MILLRACE_PARTITIONS=x", "set a number"),
        ("tests.support.dummies.never_ready", DependencyDown, "no disk left", "buy one"),
    ],
)
def test_a_process_that_does_not_start_ends_everything_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, error: type[Exception], message: str, fix: str
) -> None:
    """The exit code and the last logged error of the process become the error of the start; nothing is left running."""
    monkeypatch.setattr("deploy.local.supervised_process.FIRST_PAUSE_S", 0.01)
    failing = table(ProcessSpec("collector", module, needs=("redis",)))
    supervisor = LocalMillrace(data_dir=tmp_path, table=failing, environ={}, processes=["collector"])
    with pytest.raises(error, match=message) as raised:
        supervisor.open()
    assert fix in getattr(raised.value, "fix", "")
    assert supervisor.pids == {}
    assert not state.is_running(tmp_path)


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for Kafka's logs nothing is started."""
    monkeypatch.setattr("deploy.local.supervisor.LEAST_FREE_MB", 10**9)
    with pytest.raises(DependencyDown, match="are free on the disk"):
        LocalMillrace(data_dir=tmp_path, environ={}, processes=["redis"]).open()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    """A data folder below a file is refused with its path, not with a traceback."""
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(DependencyDown, match="file") as raised:
        LocalMillrace(data_dir=blocked / "data", environ={}, processes=["redis"]).open()
    assert "MILLRACE_DATA_DIR" in raised.value.fix


Spawn = Callable[[Mapping[str, str]], "subprocess.Popen[bytes]"]


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[Spawn]:
    """Give a function that runs a supervisor, as `up` does, in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def spawn(settings: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a supervisor on the test's data folder."""
        environ = {**os.environ, "MILLRACE_DATA_DIR": str(tmp_path / "data"), **settings}
        with (tmp_path / "supervisor.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", RUNNER], env=environ, cwd=REPOSITORY, stderr=log)
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.wait()


def ready_pids(folder: Path, process: "subprocess.Popen[bytes]") -> list[int]:
    """Wait until all that a supervisor runs is ready, and return the process ids with those of grandchildren."""

    def ready() -> list[int]:
        """Return the ids once everything is ready."""
        assert process.poll() is None, (folder.parent / "supervisor.log").read_text(encoding="utf-8")
        found = state.read_state(folder)
        if found is None or any(row.state != "ready" for row in found.processes):
            return []
        return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]

    return eventually(ready, timeout_s=90, interval_s=0.2, what="all ready")


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_the_supervisor_ends_nothing_it_started_lives_on(
    tmp_path: Path, foreground: Spawn, number: signal.Signals
) -> None:
    """After Ctrl-C, SIGTERM and even SIGKILL no Kafka, no Redis and no process is left, and the folder is free."""
    process = foreground({})
    pids = ready_pids(tmp_path / "data", process)
    assert len(pids) == 3
    process.send_signal(number)
    assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    eventually(lambda: not any(alive(pid) for pid in pids), timeout_s=10)
    assert not state.is_running(tmp_path / "data")


@pytest.mark.kafka
def test_kafka_keeps_its_records_from_one_up_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged before a stop is there after the next start, whatever port, locale and letters in paths."""
    monkeypatch.setenv("LC_ALL", "C")
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    from service.kafka import consumer_config, ensure_topics, producer_config

    def run(work: Callable[[Settings], None]) -> None:
        """Do something with Kafka between a start and a stop."""
        with LocalMillrace({"partitions": 1}, data_dir=tmp_path / "été", environ={}, processes=["kafka"]) as running:
            ensure_topics(running.settings)
            work(running.settings)

    def write(settings: Settings) -> None:
        """Produce one record."""
        with KafkaProducer(**producer_config(settings)) as producer:
            producer.send("catalog", key=b"P-1", value=b"{}").get(timeout=30)

    found: list[bytes] = []

    def read(settings: Settings) -> None:
        """Consume what is there."""
        with KafkaConsumer(**consumer_config(settings)) as consumer:
            partition = TopicPartition("catalog", 0)
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
            records = eventually(lambda: consumer.poll(timeout_ms=500), timeout_s=30)
            found.extend(record.key for record in records[partition])

    run(write)
    run(read)
    assert found == [b"P-1"]

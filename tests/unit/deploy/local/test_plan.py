"""What one machine will run, decided before anything starts; the ports first."""

import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from contracts.errors import DependencyDown, UsageError
from contracts.telemetry import DEFAULT_PORTS, Process
from deploy.local import plan, state
from deploy.local.plan import OTHER_PORTS, Plan, PortChooser, is_free, make_plan, process_commands
from deploy.local.processes import TABLE, resolve
from deploy.local.servers import kafka_properties
from service.settings import Settings, load_settings

SettingsFactory = Callable[..., Settings]


@pytest.fixture
def chooser() -> Iterator[PortChooser]:
    """Give what chooses ports, and give them back."""
    made = PortChooser()
    yield made
    made.release()


def planned(settings: Settings, names: Sequence[str] | None = None, *, brokers: int = 1) -> Plan:
    """Return the plan of these processes, or of everything."""
    chooser = PortChooser()
    try:
        return make_plan(settings, resolve(names), TABLE, chooser, brokers=brokers)
    finally:
        chooser.release()


def test_every_name_has_a_port_and_an_address_of_its_own(settings: SettingsFactory) -> None:
    """No two processes are given the same port, and each is found by its name."""
    made = planned(settings())
    assert set(made.ports) == set(resolve(None))
    assert len(set(made.ports.values())) == len(made.ports)
    assert made.urls["search"] == f"http://127.0.0.1:{made.ports['search']}"


def test_servers_and_targets_are_filled_in(settings: SettingsFactory) -> None:
    """The settings of the plan are complete: a child process needs nothing else."""
    made = planned(settings())
    assert made.settings.kafka_bootstrap == f"127.0.0.1:{made.ports['kafka']}"
    assert made.settings.redis_url == f"redis://127.0.0.1:{made.ports['redis']}/0"
    assert made.settings.qdrant_url == made.urls["qdrant"]
    assert f"search={made.urls['search']}" in made.settings.scrape.split(",")


def test_a_server_that_the_settings_name_is_used(settings: SettingsFactory) -> None:
    """What is named is not started, and its address is passed on as it is."""
    named = settings(kafka_bootstrap="kafka.example:9092", redis_url="redis://r.example:7/1", qdrant_url="http://q:1")
    made = planned(named)
    assert made.external == {"kafka", "redis", "qdrant"}
    assert made.nodes == ()
    assert (made.settings.kafka_bootstrap, made.ports["redis"]) == ("kafka.example:9092", 7)


def test_only_needed_servers_are_filled_in(settings: SettingsFactory) -> None:
    """A deployment without the vector store names none."""
    made = planned(settings(), ["streams"])
    assert made.settings.qdrant_url is None
    assert set(made.names) == {"kafka", "redis", "streams"}


def test_keys_are_made_once_and_kept(tmp_path: Path) -> None:
    """Keys are random, and the next start of the same folder has the same, unless others are given."""
    bare = load_settings({"data_dir": tmp_path}, environ={}, directory=tmp_path)
    first = planned(bare).settings
    state.write_env(tmp_path, first.as_environ())
    again = planned(bare).settings
    keys = [getattr(first, name).get_secret_value() for name in state.KEYS]
    assert keys == [getattr(again, name).get_secret_value() for name in state.KEYS]
    assert len(set(keys)) == 3
    given = load_settings({"data_dir": tmp_path, "write_key": "mine"}, environ={}, directory=tmp_path)
    kept = planned(given).settings.write_key
    assert kept is not None
    assert kept.get_secret_value() == "mine"


def test_three_brokers_keep_three_copies(settings: SettingsFactory) -> None:
    """With three nodes every topic of ours has three copies too, two of which must have a record."""
    made = planned(settings(), brokers=3)
    assert len(made.nodes) == 3
    assert made.settings.replication_factor == -1
    for node in made.nodes:
        ours = kafka_properties(node, made.nodes)
        assert (ours["default.replication.factor"], ours["min.insync.replicas"]) == ("3", "2")
    assert len({port for node in made.nodes for port in (node.port, node.controller_port)}) == 6


def test_two_brokers_are_refused(settings: SettingsFactory) -> None:
    """Two nodes cannot agree once one is gone; only 1 and 3 make sense."""
    with pytest.raises(UsageError, match="2 Kafka brokers"):
        planned(settings(), brokers=2)


def test_one_port_for_many_processes_is_refused(settings: SettingsFactory) -> None:
    """MILLRACE_PORT is a setting of one process."""
    with pytest.raises(UsageError, match="MILLRACE_PORT"):
        planned(settings(port=8080))


def test_a_port_other_than_the_default_outlives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start has the same addresses, which pages and producers of the shop know."""
    taken = set(map(int, DEFAULT_PORTS.values()))
    monkeypatch.setattr(plan, "is_free", lambda port, host: port not in taken and is_free(port, host))
    bare = load_settings({"data_dir": tmp_path}, environ={}, directory=tmp_path)
    first = planned(bare)
    state.write_env(tmp_path, first.settings.as_environ())
    assert planned(bare).ports == first.ports
    taken.add(first.ports["collector"])
    assert planned(bare).ports["collector"] != first.ports["collector"]
    taken.clear()
    assert planned(bare).ports["collector"] in {DEFAULT_PORTS[Process.COLLECTOR], first.ports["collector"]}


def test_the_other_port_of_each_broker_outlives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three brokers the second and the third are found again as the first is."""
    kafka = DEFAULT_PORTS[Process.KAFKA]
    monkeypatch.setattr(plan, "is_free", lambda port, host: port not in {kafka + 2, kafka + 4} and is_free(port, host))
    bare = load_settings({"data_dir": tmp_path}, environ={}, directory=tmp_path)
    first = planned(bare, brokers=3).settings
    state.write_env(tmp_path, first.as_environ())
    assert planned(bare, brokers=3).settings.kafka_bootstrap == first.kafka_bootstrap


def test_children_get_their_settings_and_nothing_of_ours_from_outside(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child sees the settings in force, its own port and worker id, and no stray MILLRACE_* of the shell."""
    monkeypatch.setenv("MILLRACE_FROM_THE_SHELL", "1")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    made = planned(settings(kafka_bootstrap="k:1", redis_url="redis://r:1"), ["streams", "streams-2"])
    first, second = process_commands(made)
    assert first.environ["MILLRACE_PORT"] == str(made.ports["streams"])
    assert second.environ["MILLRACE_PORT"] == str(made.ports["streams-2"])
    assert first.environ["MILLRACE_WORKER_ID"] != second.environ["MILLRACE_WORKER_ID"]
    assert first.environ["MILLRACE_WRITE_KEY"] == "test-write-key"
    assert "MILLRACE_FROM_THE_SHELL" not in first.environ
    assert first.environ["SOMETHING_ELSE"] == "1"
    accepted = load_settings(environ=dict(first.environ), directory=made.data_dir)
    assert accepted.port == made.ports["streams"]


def test_a_free_default_is_taken(chooser: PortChooser) -> None:
    """People find a process where they expect it."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = held.getsockname()[1]
    assert chooser.choose(free) == free


def test_a_busy_default_gives_another_free_port(chooser: PortChooser) -> None:
    """A port that another process holds is passed over, for one outside the range of outgoing connections."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        chosen = chooser.choose(held.getsockname()[1])
    assert chosen in OTHER_PORTS
    assert is_free(chosen)


def test_a_port_promised_to_another_process_is_not_given_twice(chooser: PortChooser) -> None:
    """A port that was chosen but is not listened on yet counts as taken."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = held.getsockname()[1]
    assert chooser.choose(free) == free
    assert chooser.choose(free) != free


def test_two_supervisors_that_start_at_once_choose_different_ports() -> None:
    """A port that nobody listens on yet is kept for the one who chose it first, until he gives it back."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = held.getsockname()[1]
    first, second, third = PortChooser(), PortChooser(), PortChooser()
    try:
        assert first.choose(free) == free
        assert second.choose(free) != free
        first.release()
        assert third.choose(free) == free
    finally:
        for ports in (first, second, third):
            ports.release()


def test_no_free_port_is_one_clear_line(chooser: PortChooser, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing is free, the error says so instead of trying for ever."""
    monkeypatch.setattr(plan, "is_free", lambda port, host: False)
    with pytest.raises(DependencyDown, match="no free port"):
        chooser.choose(9092)

"""Kafka and Redis as they are started here: loopback only, bounded, and safe in odd paths."""

from pathlib import Path

import pytest

from contracts.errors import DependencyDown, UsageError
from deploy.local import servers
from deploy.local.servers import KafkaNode, kafka_properties, prepare_kafka, redis_argv


def nodes(folder: Path, count: int) -> tuple[KafkaNode, ...]:
    """Return the nodes of a cluster in a folder."""
    return tuple(KafkaNode(n, 9090 + 2 * n, 9091 + 2 * n, folder / f"node-{n}") for n in range(1, count + 1))


def format_without_java(node: KafkaNode, cluster_id: str, *, java: str) -> None:
    """Stand in for Kafka's own tool: leave what says that a folder is formatted."""
    node.data_path.mkdir(parents=True)
    (node.data_path / "meta.properties").write_text(f"cluster.id={cluster_id}\n", encoding="ascii")


def test_every_listener_is_on_loopback(tmp_path: Path) -> None:
    """A broker that is started for one machine is reached from that machine alone."""
    cluster = nodes(tmp_path, 1)
    config = kafka_properties(cluster[0], cluster)
    assert config["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert config["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9092"
    assert config["auto.create.topics.enable"] == "false"


@pytest.mark.parametrize(("count", "copies", "in_sync"), [(1, "1", "1"), (3, "3", "2")])
def test_copies_follow_the_number_of_brokers(tmp_path: Path, count: int, copies: str, in_sync: str) -> None:
    """Three brokers keep three copies of which two must be in sync; one keeps one."""
    cluster = nodes(tmp_path, count)
    config = kafka_properties(cluster[0], cluster)
    assert config["default.replication.factor"] == config["offsets.topic.replication.factor"] == copies
    assert config["min.insync.replicas"] == in_sync
    assert config["controller.quorum.voters"].count("@") == count


@pytest.mark.parametrize("count", [1, 3])
def test_the_heap_never_exceeds_half_a_gigabyte(tmp_path: Path, count: int) -> None:
    """No broker may take more than 512 MB of heap."""
    argv = servers.broker_argv(nodes(tmp_path, count)[0], brokers=count, java="java")
    (heap,) = (option for option in argv if option.startswith("-Xmx"))
    assert int(heap.removeprefix("-Xmx").removesuffix("m")) <= 512


def test_a_path_with_backslash_and_letters_beyond_ascii_survives_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A properties file reads backslashes and non-ASCII letters as escapes, so they are written as such."""
    monkeypatch.setattr(servers, "_format", format_without_java)
    cluster = nodes(tmp_path / "dossier été\\x", 1)
    prepare_kafka(cluster, java="java")
    text = cluster[0].config_path.read_bytes().decode("ascii")
    assert "dossier \\u00e9t\\u00e9\\\\x" in text


def test_a_comma_in_the_path_is_refused(tmp_path: Path) -> None:
    """Kafka would take such a path for two folders."""
    with pytest.raises(UsageError, match="comma"):
        prepare_kafka(nodes(tmp_path / "a,b", 1), java="java")


def test_the_cluster_keeps_its_id_and_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start finds the same cluster, and another number of brokers is refused instead of losing data."""
    monkeypatch.setattr(servers, "_format", format_without_java)
    prepare_kafka(nodes(tmp_path, 1), java="java")
    first = (tmp_path / "cluster.id").read_text(encoding="ascii")
    prepare_kafka(nodes(tmp_path, 1), java="java")
    assert (tmp_path / "cluster.id").read_text(encoding="ascii") == first
    with pytest.raises(UsageError, match="cluster of 1 brokers, not 3"):
        prepare_kafka(nodes(tmp_path, 3), java="java")


def test_a_cluster_id_that_begins_with_a_dash_is_no_option(tmp_path: Path) -> None:
    """One random id in sixty-four begins with a dash; the storage tool must take it for the id."""
    assert "--cluster-id=-abc" in servers.format_arguments(nodes(tmp_path, 1)[0], "-abc")


def test_missing_java_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java the message names it and the fix."""
    monkeypatch.setattr(servers, "find_java", lambda: None)
    with pytest.raises(DependencyDown, match="no Java 17") as raised:
        servers.require_java()
    assert "make setup" in raised.value.fix


def test_missing_jars_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Kafka's jars the message names the folder and the fix."""
    monkeypatch.setattr(servers, "find_java", lambda: "java")
    monkeypatch.setattr(servers, "are_complete", lambda: False)
    with pytest.raises(DependencyDown, match="jars") as raised:
        servers.require_java()
    assert "make setup" in raised.value.fix


def test_the_last_error_of_a_broker_is_its_exception_not_its_stack() -> None:
    """Of Kafka's long output the line that says what is wrong is shown."""
    output = "INFO starting\njava.io.IOException: No space left on device\n\tat java.base/x\n\tat y\n"
    assert servers.last_kafka_error(output) == "java.io.IOException: No space left on device"


def test_redis_listens_on_loopback_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is reached from this machine alone, writes no file, and its memory is bounded."""
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    argv = redis_argv(6400)
    options = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert argv[0] == "/bin/redis-server"
    assert (options["--bind"], options["--port"]) == ("127.0.0.1", "6400")
    assert (options["--save"], options["--appendonly"], options["--daemonize"]) == ("", "no", "no")
    assert (options["--maxmemory"], options["--maxmemory-policy"]) == ("256mb", "volatile-ttl")


def test_missing_redis_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-server the message names it and the fix."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DependencyDown, match="redis-server is not installed") as raised:
        redis_argv(6400)
    assert "make setup" in raised.value.fix

"""Apache Kafka on this machine: KRaft, one broker or three, on loopback, with its data in the data folder.

Each node is broker and controller at once. The ports may differ from one start to the next; node ids, the cluster's id
and the data stay.
"""

import base64
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contracts.errors import DependencyDown, MillraceError, UsageError
from deploy.local.jars import JAR_FOLDER, are_complete
from deploy.local.java import LEAST, find_java
from service.kafka import admin, translate_kafka_errors
from service.settings import Settings

HEAP_MB: Final = {1: 512, 3: 384}
PROBE_S: Final = 3.0
SHOWN: Final = ("kafka.server.KafkaRaftServer", "org.apache.kafka.common.utils.AppInfoParser")
FULL: Final = "read its log, and see that the disk is not full and the folder writable"


@dataclass(frozen=True, slots=True)
class Node:
    """One Kafka node.

    Args:
        number: from 1; the node id.
        port: where clients connect.
        controller_port: where the nodes talk about the cluster.
        folder: holds its configuration and its data.
    """

    number: int
    port: int
    controller_port: int
    folder: Path

    @property
    def config_path(self) -> Path:
        """Its configuration file."""
        return self.folder / "server.properties"

    @property
    def data_path(self) -> Path:
        """Its log directory."""
        return self.folder / "data"


def bootstrap(nodes: Sequence[Node]) -> str:
    """Return the brokers as clients name them."""
    return ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def properties(node: Node, nodes: Sequence[Node]) -> dict[str, str]:
    """Return a node's configuration: small, loopback only, topics made by us alone."""
    copies = str(len(nodes))
    in_sync = "2" if len(nodes) >= 3 else "1"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.number),
        "controller.quorum.voters": ",".join(f"{peer.number}@127.0.0.1:{peer.controller_port}" for peer in nodes),
        "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(node.data_path),
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",  # one machine: there are no members worth waiting for
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),  # the default is a quarter of the heap
    }


def prepare(nodes: Sequence[Node], *, java: str, extra: Mapping[str, str] | None = None) -> None:
    """Write each node's configuration, and format the data folders that are new.

    Args:
        nodes: of the cluster.
        java: the command.
        extra: properties besides those of every node, or in their place.

    Raises:
        UsageError: the data are those of a cluster of another size, or the path is one that Kafka cannot hold.
        DependencyDown: Kafka's own tool failed.
    """
    _refuse_other_size(nodes)
    for node in nodes:
        if "," in str(node.folder):
            raise UsageError(f"Kafka allows no comma in a path: {node.folder}", fix="choose another MILLRACE_DATA_DIR")
        node.folder.mkdir(parents=True, exist_ok=True)
        rows = (f"{name}={_escape(value)}\n" for name, value in {**properties(node, nodes), **(extra or {})}.items())
        node.config_path.write_text("".join(rows), encoding="ascii")
        if not (node.data_path / "meta.properties").exists():
            _format(node, _cluster_id(node.folder.parent), java=java)


def _escape(value: str) -> str:
    """Return a value as a properties file holds it."""
    escaped = value.replace("\\", "\\\\")
    return "".join(letter if letter.isascii() else f"\\u{ord(letter):04x}" for letter in escaped)


def _refuse_other_size(nodes: Sequence[Node]) -> None:
    """Refuse to start data with another number of nodes: the voters of a cluster are fixed when it is made."""
    folder = nodes[0].folder.parent
    formatted = len(list(folder.glob("node-*/data/meta.properties")))
    if formatted not in {0, len(nodes)}:
        raise UsageError(
            f"{folder} holds a cluster of {formatted} brokers, not {len(nodes)}",
            fix=f"start {formatted}, or choose another MILLRACE_DATA_DIR",
        )


def _cluster_id(folder: Path) -> str:
    """Return the cluster's id, made at the first start and kept beside the nodes."""
    path = folder / "cluster.id"
    if not path.exists():
        path.write_text(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("="), encoding="ascii")
    return path.read_text(encoding="ascii")


def format_arguments(node: Node, cluster_id: str) -> list[str]:
    """Return what is asked of Kafka's storage tool; an id that begins with a dash must not read as an option."""
    options = [f"--cluster-id={cluster_id}", f"--config={node.config_path}", "--ignore-formatted"]
    return ["kafka.tools.StorageTool", "format", *options]


def _format(node: Node, cluster_id: str, *, java: str) -> None:
    """Make a node's data folder by Kafka's own tool."""
    tool = format_arguments(node, cluster_id)
    command = [java, "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_log_options(), *_classpath(), *tool]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise DependencyDown(f"Kafka cannot make {node.data_path}: {last_error(done.stdout + done.stderr)}", fix=FULL)


def broker_argv(node: Node, *, brokers: int, java: str) -> list[str]:
    """Return the command that runs a node."""
    heap = HEAP_MB.get(brokers, 384)
    memory = [f"-Xmx{heap}m", "-Xms128m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+ExitOnOutOfMemoryError"]
    return [java, *memory, *_log_options(), *_classpath(), "kafka.Kafka", str(node.config_path)]


def require_java() -> str:
    """Return the Java that runs Kafka.

    Raises:
        DependencyDown: Java or Kafka's jars are missing.
    """
    java = find_java()
    if java is None:
        raise DependencyDown(
            f"no Java {LEAST} or newer", fix="`make setup` installs it where it may, and says how else"
        )
    if not are_complete():
        raise DependencyDown(f"Kafka's jars are not in {JAR_FOLDER}", fix="run `make setup`")
    return java


def kafka_problem(settings: Settings, *, brokers: int = 1) -> str | None:
    """Ask Kafka who is in the cluster; return what is wrong, or None."""
    asked = settings.model_copy(update={"dependency_wait_s": PROBE_S})
    try:
        with translate_kafka_errors(asked), admin(asked) as client:
            found = len(client.describe_cluster()["brokers"])
    except MillraceError as error:
        return error.message
    return None if found >= brokers else f"{found} of {brokers} brokers are there"


def last_error(output: str) -> str:
    """Return the line of Kafka's output that says most about its end."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(("\tat ", "    at "))]
    telling = [line for line in lines if any(word in line for word in ("Exception", "ERROR", "FATAL", "Error:"))]
    return next(iter(reversed(telling or lines)), "no output")[:300]


def _classpath() -> list[str]:
    """Return the option that names Kafka's jars."""
    return ["-cp", f"{JAR_FOLDER}/*"]


def _log_options() -> list[str]:
    """Return what makes Kafka log its start, its end and warnings, with their time, and no routine."""
    simple = "-Dorg.slf4j.simpleLogger"
    form = [f"{simple}.showDateTime=true", f"{simple}.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX"]
    return [*form, f"{simple}.defaultLogLevel=warn", *(f"{simple}.log.{name}=info" for name in SHOWN)]

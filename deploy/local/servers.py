"""Apache Kafka and Redis on this machine, on loopback alone, and the questions whether they answer.

Kafka runs without ZooKeeper, as one broker or three, each of which is also a controller. Ports may differ from one
start to the next; node ids, the cluster's id and the data stay. Redis keeps nothing, because it holds nothing that
Kafka does not.
"""

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contracts.errors import DependencyDown, MillraceError, UsageError
from deploy.local.kafka_jars import JAR_FOLDER, LEAST_JAVA, are_complete, find_java
from service.kafka import admin, translate_kafka_errors
from service.machine import write_atomically
from service.redis import redis_check, redis_client
from service.settings import Settings

HEAP_MB: Final = {1: 512, 3: 384}
JAVA_LOCALE: Final = {"LC_ALL": "C.UTF-8"}
"""Without an encoding of the system, as in a container, a JVM opens no path that has letters beyond ASCII."""
PROBE_S: Final = 3.0
LOGGED: Final = ("kafka.server.KafkaRaftServer", "org.apache.kafka.common.utils.AppInfoParser")
REDIS_MEMORY_MB: Final = 256
INSTALL: Final = "`make setup` installs it if it may, and says how else"


@dataclass(frozen=True, slots=True)
class KafkaNode:
    """One Kafka node; its folder holds its configuration and its data."""

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


def bootstrap_servers(nodes: Sequence[KafkaNode]) -> str:
    """Name the brokers as clients do."""
    return ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def kafka_properties(node: KafkaNode, nodes: Sequence[KafkaNode]) -> dict[str, str]:
    """Configure a node: small, loopback only, topics made by us alone."""
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


def prepare_kafka(nodes: Sequence[KafkaNode], *, java: str, extra: Mapping[str, str] | None = None) -> None:
    """Write each node's configuration, and format the data folders that are new."""
    _refuse_other_size(nodes)
    for node in nodes:
        if "," in str(node.folder):
            raise UsageError(f"Kafka allows no comma in a path: {node.folder}", fix="choose another MILLRACE_DATA_DIR")
        node.folder.mkdir(parents=True, exist_ok=True)
        rows = {**kafka_properties(node, nodes), **(extra or {})}.items()
        text = "".join(f"{name}={value}\n" for name, value in rows).replace("\\", "\\\\")
        escaped = (letter if letter.isascii() else f"\\u{ord(letter):04x}" for letter in text)
        write_atomically(node.config_path, "".join(escaped).encode("ascii"))
        if not (node.data_path / "meta.properties").exists():
            _format(node, _cluster_id(node.folder.parent), java=java)


def _refuse_other_size(nodes: Sequence[KafkaNode]) -> None:
    """Refuse to start data with another number of nodes: the voters of a cluster are fixed when it is made."""
    folder = nodes[0].folder.parent
    formatted = len(list(folder.glob("node-*/data/meta.properties")))
    if formatted not in {0, len(nodes)}:
        raise UsageError(
            f"{folder} holds a cluster of {formatted} brokers, not {len(nodes)}",
            fix=f"start {formatted}, or choose another MILLRACE_DATA_DIR",
        )


def _cluster_id(folder: Path) -> str:
    """Read the cluster's id, made at the first start and kept beside the nodes."""
    path = folder / "cluster.id"
    if not path.exists():
        write_atomically(path, base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"="))
    return path.read_text(encoding="ascii")


def format_arguments(node: KafkaNode, cluster_id: str) -> list[str]:
    """Say what is asked of Kafka's storage tool; an id that begins with a dash must not read as an option."""
    options = [f"--cluster-id={cluster_id}", f"--config={node.config_path}", "--ignore-formatted"]
    return ["kafka.tools.StorageTool", "format", *options]


def _format(node: KafkaNode, cluster_id: str, *, java: str) -> None:
    options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_java_options()]
    command = [java, *options, *format_arguments(node, cluster_id)]
    environ = {**os.environ, **JAVA_LOCALE}
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, env=environ)
    if done.returncode != 0:
        cause = last_kafka_error((done.stdout + done.stderr).decode("utf-8", "replace"))
        fix = "read its log, and see that the disk is not full and the folder writable"
        raise DependencyDown(f"Kafka cannot make {node.data_path}: {cause}", fix=fix)


def broker_argv(node: KafkaNode, *, brokers: int, java: str) -> list[str]:
    """Return the command that runs a node."""
    heap = HEAP_MB.get(brokers, 384)
    memory = [f"-Xmx{heap}m", "-Xms128m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+ExitOnOutOfMemoryError"]
    return [java, *memory, *_java_options(), "kafka.Kafka", str(node.config_path)]


def _java_options() -> list[str]:
    """Name the jars, and have Kafka log its start, its end and warnings, with their time, and no routine."""
    simple = "-Dorg.slf4j.simpleLogger"
    form = [f"{simple}.showDateTime=true", f"{simple}.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX"]
    levels = [f"{simple}.defaultLogLevel=warn", *(f"{simple}.log.{name}=info" for name in LOGGED)]
    return [*form, *levels, "-cp", f"{JAR_FOLDER}/*"]


def require_java() -> str:
    """Return the Java that runs Kafka."""
    java = find_java()
    if java is None:
        raise DependencyDown(f"no Java {LEAST_JAVA} or newer", fix=INSTALL)
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


def last_kafka_error(output: str) -> str:
    """Find the line of Kafka's output that says most about its end."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith(("\tat ", "    at "))]
    telling = [line for line in lines if any(word in line for word in ("Exception", "ERROR", "FATAL", "Error:"))]
    return next(iter(reversed(telling or lines)), "no output")[:300]


def redis_argv(port: int) -> list[str]:
    """Return the command that runs Redis; its working folder is its own."""
    server = shutil.which("redis-server")
    if server is None:
        raise DependencyDown("redis-server is not installed", fix=INSTALL)
    listen = ["--port", str(port), "--bind", "127.0.0.1"]
    nothing_kept = ["--save", "", "--appendonly", "no"]
    # Everything written there expires; under pressure what expires soonest goes first.
    bounded = ["--maxmemory", f"{REDIS_MEMORY_MB}mb", "--maxmemory-policy", "volatile-ttl"]
    return [server, *listen, *nothing_kept, *bounded, "--daemonize", "no"]


def redis_problem(settings: Settings) -> str | None:
    """Ask Redis for a PONG; return what is wrong, or None."""
    client = redis_client(settings)
    try:
        return redis_check(client)
    finally:
        client.close()

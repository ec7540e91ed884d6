"""Kafka from outside any group: the admin client, our topics, what partitions hold, and what groups committed.

Topics are created by us, never by a client's first touch. Those that others made may differ: what would lose or misread
records keeps a process from starting, what only may hurt one day is a warning. Names of topics and groups go in and
come out as in `contracts/topics.py`; the deployment's prefix is added and removed here.
"""

import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient, OffsetSpec, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    InvalidConfigurationError,
    InvalidPartitionsError,
    KafkaError,
    NotCoordinatorError,
    PolicyViolationError,
    for_code,
)
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.topics import DAY_MS, SEARCH_EVENTS, TOPICS, TopicSpec
from service.kafka_config import REQUEST_TIMEOUT_MS, base_config, connected
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

POLL_S: Final = 0.5

Partition = tuple[str, int]
"""A topic without the deployment's prefix, and a partition's number."""

Wait = Callable[[float], bool]
"""Pauses for so many seconds; True means: give up. `Shutdown.wait` is one."""


def pause(seconds: float) -> bool:
    """Pause; never give up."""
    time.sleep(seconds)
    return False


class OffsetRange(NamedTuple):
    """First offset that is kept, and the offset of the next record to come."""

    begin: int
    end: int


class Committed(NamedTuple):
    """What a group committed for a partition: the offset of the next record to read, and the text beside it."""

    offset: int
    metadata: str


def admin(settings: Settings, *, wait: Wait = pause) -> KafkaAdminClient:
    """Open an admin client, a context manager; waits for a broker that is still starting up."""
    wait_for_listener(settings, wait)
    with translate_kafka_errors(settings):
        if settings.kafka_security_protocol != "PLAINTEXT":
            _log_in(settings, wait)
        return connected(KafkaAdminClient, base_config(settings))


def _log_in(settings: Settings, wait: Wait) -> None:
    """Connect, and raise what a broker has against us: clients only say that they found no broker.

    A broker that does not answer yet is asked again.
    """
    config = base_config(settings)
    deadline = time.monotonic() + settings.dependency_wait_s
    while True:
        net = NetworkSelector()
        net.start()
        manager = KafkaConnectionManager(net, **config)
        broker = random.choice(manager.cluster.bootstrap_brokers())
        try:
            net.run(manager.wait_for, manager.get_connection(broker.node_id).init_future, REQUEST_TIMEOUT_MS)
            return
        except KafkaError as error:
            translated = expected_kafka_error(error, settings)
            if isinstance(translated, UsageError) or time.monotonic() >= deadline or wait(POLL_S):
                raise
        finally:
            manager.close()
            net.close()


def beginning_and_end_offsets(
    client: KafkaAdminClient, settings: Settings, topics: Iterable[str]
) -> dict[Partition, OffsetRange]:
    """Ask what each partition of the topics holds."""
    with translate_kafka_errors(settings):
        partitions = _partitions(client, settings, topics)
        begins = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
        ends = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {
        (_short(found.topic, settings), found.partition): OffsetRange(begins[found].offset, ends[found].offset)
        for found in partitions
    }


def cluster_id(settings: Settings, *, wait: Wait = pause) -> str:
    """Ask for the id that a cluster keeps as long as its data."""
    with translate_kafka_errors(settings), admin(settings, wait=wait) as client:
        return str(client.describe_cluster()["cluster_id"])


def topic_ids(settings: Settings, topics: Iterable[str]) -> dict[str, str]:
    """Ask for Kafka's id of each topic; one that was deleted and made anew has another. Old brokers tell none."""
    with translate_kafka_errors(settings), admin(settings) as client:
        found = client.describe_topics([settings.topic(topic) for topic in topics])
    return {_short(topic["name"], settings): str(topic["topic_id"]) for topic in found if topic.get("topic_id")}


def committed_offsets(client: KafkaAdminClient, settings: Settings, group: str) -> dict[Partition, Committed]:
    """Ask what a group (`join`, `trainer`, ...) committed; partitions without a commit are absent."""
    name = settings.group(group)
    with translate_kafka_errors(settings):
        offsets = _once_coordinated(lambda: client.list_group_offsets({name: None}))[name]
    return {
        (_short(found.topic, settings), found.partition): Committed(committed.offset, committed.metadata or "")
        for found, committed in offsets.items()
        if committed.offset >= 0
    }


def _once_coordinated(call: Callable[[], Any]) -> Any:
    """Wait until a call is answered: the first group of a new cluster waits for the offsets topic."""
    deadline = time.monotonic() + REQUEST_TIMEOUT_MS / 1000
    while True:
        try:
            return call()
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)


def _partitions(client: KafkaAdminClient, settings: Settings, topics: Iterable[str]) -> list[TopicPartition]:
    """List every partition of the topics, refusing topics that are missing: absent is not empty."""
    found = client.describe_topics([settings.topic(topic) for topic in topics])
    missing = [topic["name"] for topic in found if not topic["partitions"]]
    if missing:
        raise DependencyDown(
            f"Kafka does not know {', '.join(missing)}", fix="`millrace up` or a restart of any service creates it"
        )
    return [
        TopicPartition(topic["name"], partition["partition_index"])
        for topic in found
        for partition in topic["partitions"]
    ]


def _short(name: str, settings: Settings) -> str:
    return name.removeprefix(settings.topic_prefix)


def wait_for_listener(settings: Settings, wait: Wait) -> None:
    """Return once one of the brokers accepts connections: quieter and sooner to stop than a client that retries."""
    servers = settings.brokers()
    deadline = time.monotonic() + settings.dependency_wait_s
    while not any(_accepts(server) for server in servers):
        if time.monotonic() >= deadline or wait(POLL_S):
            raise DependencyDown(
                f"Kafka does not answer at {', '.join(servers)}",
                fix="start it (`millrace up` does), or correct MILLRACE_KAFKA_BOOTSTRAP",
            )


def _accepts(server: str) -> bool:
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


TOPIC_EXISTS: Final = 36  # error code of Kafka's protocol
ENOUGH_COPIES: Final = 3
IN_SYNC: Final = 2
"""Of three copies: an acknowledged record survives one broker, and so does writing."""
CHECKED: Final = (
    "cleanup.policy", "max.message.bytes", "message.timestamp.type", "min.insync.replicas", "retention.bytes",
    "retention.ms",
)  # fmt: skip


class TopicFinding(NamedTuple):
    """Something about a topic that is not as it must or should be; `refused` if no process can work with it."""

    topic: str
    refused: bool
    cause: str
    fix: str


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the cluster has it; `copies` of the partition that has fewest, `config` empty if we may not see it."""

    partitions: int
    copies: int
    config: Mapping[str, str] = field(default_factory=dict)


def ensure_topics(settings: Settings, topics: Iterable[TopicSpec] = TOPICS, *, wait: Wait = pause) -> None:
    """Create every topic that is missing, wait for each partition's leader, and check them; many may do so at once.

    It tries again while the broker starts up, and raises `UsageError` if records would be lost or misread in a topic.
    """
    specs = {settings.topic(spec.name): spec for spec in topics}
    deadline = time.monotonic() + settings.dependency_wait_s
    while True:
        try:
            with translate_kafka_errors(settings), admin(settings, wait=wait) as client:
                _create_missing(client, settings, specs)
                return _report(topic_findings(client, settings, specs.values()))
        except DependencyDown:
            if time.monotonic() >= deadline or wait(POLL_S):
                raise


def _report(found: list[TopicFinding]) -> None:
    for finding in found:
        if not finding.refused:
            get_logger().warning("topic_differs", topic=finding.topic, error=finding.cause, fix=finding.fix)
    refused = [finding for finding in found if finding.refused]
    if refused:
        raise UsageError(
            "; ".join(finding.cause for finding in refused),
            fix="; ".join(dict.fromkeys(finding.fix for finding in refused)),
        )


def topic_findings(
    client: KafkaAdminClient, settings: Settings, topics: Iterable[TopicSpec] = TOPICS
) -> list[TopicFinding]:
    """Find what is wrong with the topics that exist; rights that are missing to see it are a finding, too."""
    specs = {settings.topic(spec.name): spec for spec in topics}
    configs = client.describe_configs(
        [ConfigResource("TOPIC", name, list(CHECKED)) for name in specs], config_filter="all"
    )["topic"]
    states = {
        topic["name"]: TopicState(
            len(topic["partitions"]),
            min(len(partition["replica_nodes"]) for partition in topic["partitions"]),
            {name: entry["value"] for name, entry in configs.get(topic["name"], {}).items()},
        )
        for topic in client.describe_topics(list(specs))
        if topic["partitions"]
    }
    brokers = len(client.describe_cluster()["brokers"])
    found = [
        finding
        for name, state in states.items()
        for finding in differences(specs[name], name, state, settings, brokers=brokers)
    ]
    if hidden := sorted(name for name, state in states.items() if not state.config):
        cause = f"the configuration of {', '.join(hidden)} may not be seen"
        found.append(
            TopicFinding(hidden[0], False, cause, "grant DescribeConfigs on these topics, or check them by hand")
        )
    return found


def differences(
    spec: TopicSpec, name: str, state: TopicState, settings: Settings, *, brokers: int
) -> Iterator[TopicFinding]:
    """Yield what is wrong with one topic, `name` on the cluster."""
    wanted = partition_count(spec, settings)
    if state.partitions != wanted:
        fix = f"set MILLRACE_PARTITIONS={state.partitions}, or choose another MILLRACE_TOPIC_PREFIX"
        if not spec.keyed:
            fix = "choose another MILLRACE_TOPIC_PREFIX, or delete the topic if nothing in it is needed"
        yield TopicFinding(name, True, f"topic {name} has {state.partitions} partitions, not {wanted}", fix)
    for refused, key, better, why in (*_records(spec, state.config, settings), *_copies(state)):
        fix = (
            f"kafka-configs.sh --bootstrap-server {settings.kafka_bootstrap} --alter --entity-type topics "
            f"--entity-name {name} --add-config {key}={better}"
        )
        yield TopicFinding(name, refused, f"topic {name} has {key}={state.config[key]}: {why}", fix)
    enough = max(settings.replication_factor, min(2, brokers))
    if state.copies < enough:
        cause = f"topic {name} has {state.copies} copies, not {enough}: its records are lost with a broker's disk"
        yield TopicFinding(name, False, cause, "add copies with kafka-reassign-partitions.sh")


Difference = tuple[bool, str, object, str]
"""Whether no process can work with it, the configuration's name, what it should be, and why."""


def _records(spec: TopicSpec, config: Mapping[str, str], settings: Settings) -> Iterator[Difference]:
    """Yield what is wrong with how a topic keeps and stamps its records."""
    if config and set(config["cleanup.policy"].split(",")) != {spec.cleanup}:
        lost = "what is still needed is deleted" if spec.cleanup == "compact" else "all but the last of a key are lost"
        yield True, "cleanup.policy", spec.cleanup, lost
    if spec.log_append_time and config.get("message.timestamp.type", "LogAppendTime") != "LogAppendTime":
        refused = spec.name == SEARCH_EVENTS
        why = "one event from the future closes every open search" if refused else "freshness goes by senders' clocks"
        yield refused, "message.timestamp.type", "LogAppendTime", why
    if int(config.get("max.message.bytes", spec.max_message_bytes)) < spec.max_message_bytes:
        yield False, "max.message.bytes", spec.max_message_bytes, "a larger record ends the process that writes it"
    if spec.cleanup == "delete":
        kept_ms = int(config.get("retention.ms", -1))
        least_ms = settings.join_window_ms + settings.lateness_ms
        if spec.name == SEARCH_EVENTS and 0 <= kept_ms < least_ms:
            yield True, "retention.ms", spec.retention_ms, "events are deleted before their search closes"
        elif 0 <= kept_ms < DAY_MS:
            yield False, "retention.ms", spec.retention_ms, "a reader that is down for longer misses records"
        if int(config.get("retention.bytes", -1)) >= 0:
            yield False, "retention.bytes", -1, "records are deleted by size, whether they were read or not"


def _copies(state: TopicState) -> Iterator[Difference]:
    """Yield what is wrong with how many copies must have a record before it counts as written."""
    in_sync = int(state.config.get("min.insync.replicas", state.copies))
    better = IN_SYNC if state.copies >= ENOUGH_COPIES else 1
    if in_sync > state.copies:
        yield True, "min.insync.replicas", better, f"with {state.copies} copies nothing can be written"
    elif in_sync == state.copies > 1 and "min.insync.replicas" in state.config:
        yield False, "min.insync.replicas", better, "nothing can be written while one broker is away"
    elif state.copies >= ENOUGH_COPIES and in_sync < IN_SYNC:
        yield False, "min.insync.replicas", better, "an acknowledged record may be lost with one broker"


def _create_missing(client: KafkaAdminClient, settings: Settings, specs: Mapping[str, TopicSpec]) -> None:
    existing = set(client.list_topics())
    missing = {name: spec for name, spec in specs.items() if name not in existing}
    if missing:
        copies = settings.replication_factor
        known = copies if copies > 0 else _default_copies(client)
        in_sync = {"min.insync.replicas": str(IN_SYNC)} if known >= ENOUGH_COPIES else {}
        wanted = {
            name: {
                "num_partitions": partition_count(spec, settings),
                "replication_factor": copies,
                "configs": {**spec.config(), **in_sync},
            }
            for name, spec in missing.items()
        }
        for topic in client.create_topics(wanted, raise_errors=False)["topics"]:
            if topic["error_code"] not in {0, TOPIC_EXISTS}:
                raise _creation_error(topic, settings)
    client.wait_for_topics(list(specs), timeout_ms=REQUEST_TIMEOUT_MS)


def _default_copies(client: KafkaAdminClient) -> int:
    """Ask a broker how many copies a topic has if nobody says; 0 if we may not see it."""
    broker = str(client.describe_cluster()["brokers"][0]["broker_id"])
    asked = ConfigResource("BROKER", broker, ["default.replication.factor"])
    configs = client.describe_configs([asked], config_filter="all")["broker"].get(broker, {})
    return int(configs["default.replication.factor"]["value"]) if configs else 0


def _creation_error(topic: dict[str, Any], settings: Settings) -> MillraceError:
    said = f"topic {topic['name']}: {topic.get('error_message') or ''}"
    error = for_code(topic["error_code"])(said)
    if isinstance(error, InvalidConfigurationError | InvalidPartitionsError | PolicyViolationError):
        return UsageError(
            f"Kafka refuses to create {said}",
            fix="create it as the cluster allows; docs/operations.md says which differences only are warnings",
        )
    return expected_kafka_error(error, settings) or DependencyDown(str(error))


def partition_count(spec: TopicSpec, settings: Settings) -> int:
    """Return how many partitions a topic has in this deployment."""
    return settings.partitions if spec.keyed else 1

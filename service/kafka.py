"""Kafka from the settings: client arguments, our topics, offsets measured from outside, and reads of compacted topics.

Names of topics and groups go in and come out as in `contracts/topics.py`; the deployment's prefix is added and removed
here. Topics are created by us, never by a client's first touch. Consumers never commit on their own: the offset moves
last, and only by the loop that made its output durable.
"""

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetSpec, TopicPartition

from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.topics import TOPICS, TopicSpec
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.settings import Settings

__all__ = [
    "Committed",
    "OffsetRange",
    "OutgoingRecord",
    "admin",
    "aiokafka_config",
    "aiokafka_consumer_config",
    "aiokafka_producer_config",
    "beginning_and_end_offsets",
    "committed_offsets",
    "consumer_config",
    "ensure_topics",
    "expected_kafka_error",
    "produce_all",
    "producer_config",
    "read_compacted",
    "translate_kafka_errors",
]

MAX_REQUEST_BYTES: Final = 17 * 1024 * 1024  # a release of 16 MiB and its envelope; each topic has a limit of its own
REQUEST_TIMEOUT_MS: Final = 15_000
DELIVERY_TIMEOUT_MS: Final = 60_000  # outlives the restart of a broker
POLL_S: Final = 0.5
TOPIC_EXISTS: Final = 36  # error code of Kafka's protocol

Partition = tuple[str, int]
"""A topic without the deployment's prefix, and a partition's number."""

Wait = Callable[[float], bool]
"""Pauses for so many seconds; True means: give up. `Shutdown.wait` is one."""


class OffsetRange(NamedTuple):
    """First offset that is kept, and the offset of the next record to come."""

    begin: int
    end: int


class Committed(NamedTuple):
    """What a group committed for a partition: the offset of the next record to read, and the text beside it."""

    offset: int
    metadata: str


class OutgoingRecord(NamedTuple):
    """One record to produce; `topic` is the name on the cluster."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


def _login(settings: Settings) -> dict[str, Any]:
    """Return how to talk to Kafka and log in; both libraries name these alike."""
    login: dict[str, Any] = {"security_protocol": settings.kafka_security_protocol}
    if settings.kafka_sasl_password is not None:
        login["sasl_mechanism"] = settings.kafka_sasl_mechanism
        login["sasl_plain_username"] = settings.kafka_sasl_username
        login["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return login


def _base(settings: Settings) -> dict[str, Any]:
    """Return the arguments of every kafka-python client."""
    (bootstrap,) = settings.require("kafka_bootstrap")
    files = {
        "ssl_cafile": settings.kafka_ssl_cafile,
        "ssl_certfile": settings.kafka_ssl_certfile,
        "ssl_keyfile": settings.kafka_ssl_keyfile,
    }
    return {
        "bootstrap_servers": _servers(bootstrap),
        "client_id": "millrace",
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": max(1, round(settings.dependency_wait_s * 1000)),
        **{name: str(path) for name, path in files.items() if path is not None},
        **_login(settings),
    }


def consumer_config(settings: Settings, group: str | None = None) -> dict[str, Any]:
    """Return the arguments of a `kafka.KafkaConsumer`.

    Args:
        settings: the settings in force.
        group: `join`, `trainer`, ...; None for a consumer that assigns its partitions itself.
    """
    config = {
        **_base(settings),
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    if group is None:
        return config
    return {**config, **_membership(settings, group)}


def producer_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a `kafka.KafkaProducer`: idempotent, acknowledged by all in-sync copies."""
    return {
        **_base(settings),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 5,
        "max_request_size": MAX_REQUEST_BYTES,
        "max_block_ms": 2 * REQUEST_TIMEOUT_MS,
        "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


def aiokafka_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments that every aiokafka client takes."""
    (bootstrap,) = settings.require("kafka_bootstrap")
    config = {
        "bootstrap_servers": _servers(bootstrap),
        "client_id": "millrace",
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        **_login(settings),
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        from aiokafka.helpers import create_ssl_context

        config["ssl_context"] = create_ssl_context(
            cafile=settings.kafka_ssl_cafile,
            certfile=settings.kafka_ssl_certfile,
            keyfile=settings.kafka_ssl_keyfile,
        )
    return config


def aiokafka_consumer_config(settings: Settings, group: str | None = None) -> dict[str, Any]:
    """Return the arguments of an `aiokafka.AIOKafkaConsumer`; `group` as in `consumer_config`."""
    config = {**aiokafka_config(settings), "auto_offset_reset": "earliest", "enable_auto_commit": False}
    if group is None:
        return config
    return {**config, **_membership(settings, group)}


def aiokafka_producer_config(settings: Settings) -> dict[str, Any]:
    """Return the arguments of an `aiokafka.AIOKafkaProducer`: idempotent, acknowledged by all in-sync copies."""
    return {
        **aiokafka_config(settings),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 5,
        "max_request_size": MAX_REQUEST_BYTES,
    }


def _membership(settings: Settings, group: str) -> dict[str, Any]:
    """Return the arguments of a group's member; both libraries name these alike."""
    session_timeout_ms = round(settings.session_timeout_s * 1000)
    return {
        "group_id": settings.group(group),
        "session_timeout_ms": session_timeout_ms,
        "heartbeat_interval_ms": min(3000, session_timeout_ms // 3),
        "group_instance_id": settings.worker_id,
    }


def admin(settings: Settings, *, wait: Wait | None = None) -> KafkaAdminClient:
    """Return an admin client, a context manager; waits for a broker that is still starting up.

    Raises:
        DependencyDown: no broker answered within `dependency_wait_s`.
    """
    (bootstrap,) = settings.require("kafka_bootstrap")
    _wait_for_listener(_servers(bootstrap), timeout_s=settings.dependency_wait_s, wait=wait or _pause)
    with translate_kafka_errors(settings):
        return KafkaAdminClient(**_base(settings))


def ensure_topics(settings: Settings, *, wait: Wait | None = None) -> None:
    """Create every topic of `contracts/topics.py` that is missing, and wait until each partition has a leader.

    Any number of processes may do so at once. It tries again while the broker starts up.

    Args:
        settings: the settings in force.
        wait: how to pause between two tries; `Shutdown.wait` lets a stop end the wait.

    Raises:
        UsageError: a topic exists with another partition count.
        DependencyDown: Kafka did not do so within `dependency_wait_s`.
    """
    pause = wait or _pause
    deadline = time.monotonic() + settings.dependency_wait_s
    while True:
        try:
            with translate_kafka_errors(settings), admin(settings, wait=pause) as client:
                return _create_missing(client, settings)
        except DependencyDown:
            if time.monotonic() >= deadline or pause(POLL_S):
                raise


def _create_missing(client: KafkaAdminClient, settings: Settings) -> None:
    """Create what is missing, wait for it, and check what is there."""
    existing = set(client.list_topics())
    missing = {
        settings.topic(spec.name): {
            "num_partitions": _partition_count(spec, settings),
            "replication_factor": settings.replication_factor,
            "configs": spec.config(),
        }
        for spec in TOPICS
        if settings.topic(spec.name) not in existing
    }
    if missing:
        for topic in client.create_topics(missing, raise_errors=False)["topics"]:
            if topic["error_code"] not in {0, TOPIC_EXISTS}:
                raise _creation_error(topic, settings)
    names = [settings.topic(spec.name) for spec in TOPICS]
    client.wait_for_topics(names, timeout_ms=REQUEST_TIMEOUT_MS)
    counts = {topic["name"]: len(topic["partitions"]) for topic in client.describe_topics(names)}
    for spec in TOPICS:
        _check_partition_count(spec, counts[settings.topic(spec.name)], settings)


def _creation_error(topic: dict[str, Any], settings: Settings) -> MillraceError:
    """Return what a refused creation means."""
    from kafka.errors import for_code

    error = for_code(topic["error_code"])(f"topic {topic['name']}: {topic.get('error_message') or ''}")
    return expected_kafka_error(error, settings) or DependencyDown(str(error))


def _partition_count(spec: TopicSpec, settings: Settings) -> int:
    """Return how many partitions a topic has in this deployment."""
    return settings.partitions if spec.keyed else 1


def _check_partition_count(spec: TopicSpec, found: int, settings: Settings) -> None:
    """Refuse a topic whose keys would land elsewhere than those of the topics it is read beside."""
    wanted = _partition_count(spec, settings)
    if found == wanted:
        return
    fix = f"set MILLRACE_PARTITIONS={found}, or choose another MILLRACE_TOPIC_PREFIX"
    if not spec.keyed:
        fix = "choose another MILLRACE_TOPIC_PREFIX, or delete the topic if nothing in it is needed"
    raise UsageError(f"topic {settings.topic(spec.name)} has {found} partitions, not {wanted}", fix=fix)


def beginning_and_end_offsets(
    client: KafkaAdminClient, settings: Settings, topics: Iterable[str]
) -> dict[Partition, OffsetRange]:
    """Return what each partition of the topics holds, asked from outside any group."""
    with translate_kafka_errors(settings):
        partitions = _partitions(client, settings, topics)
        begins = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
        ends = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {
        (_short(found.topic, settings), found.partition): OffsetRange(begins[found].offset, ends[found].offset)
        for found in partitions
    }


def committed_offsets(client: KafkaAdminClient, settings: Settings, group: str) -> dict[Partition, Committed]:
    """Return what a group (`join`, `trainer`, ...) committed; partitions without a commit are absent."""
    name = settings.group(group)
    with translate_kafka_errors(settings):
        offsets = client.list_group_offsets({name: None})[name]
    return {
        (_short(found.topic, settings), found.partition): Committed(committed.offset, committed.metadata or "")
        for found, committed in offsets.items()
        if committed.offset >= 0
    }


def read_compacted(settings: Settings, topic: str) -> dict[tuple[int, bytes], bytes]:
    """Read a compacted topic from its beginning to where it ended when asked.

    Returns:
        The newest value of each (partition, key); tombstoned keys are absent.

    Raises:
        DependencyDown: Kafka fell silent for longer than a delivery may take.
    """
    with translate_kafka_errors(settings), KafkaConsumer(**consumer_config(settings)) as consumer:
        name = settings.topic(topic)
        numbers = consumer.partitions_for_topic(name) or set()
        partitions = [TopicPartition(name, number) for number in sorted(numbers)]
        if not partitions:
            raise DependencyDown(f"Kafka does not know the topic {name}", fix="a restart of any service creates it")
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        return _read_to_end(consumer, consumer.end_offsets(partitions))


def _read_to_end(consumer: KafkaConsumer, ends: dict[TopicPartition, int]) -> dict[tuple[int, bytes], bytes]:
    """Return the newest value of each key below the given ends."""
    newest: dict[tuple[int, bytes], bytes] = {}
    silent_since = time.monotonic()
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        fetched = consumer.poll(timeout_ms=500)
        if fetched:
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > DELIVERY_TIMEOUT_MS / 1000:
            raise DependencyDown("Kafka fell silent while a topic was read", fix="look at the broker's log")
        for record in (record for records in fetched.values() for record in records):
            if record.value is None:
                newest.pop((record.partition, record.key), None)
            elif record.key is not None:
                newest[record.partition, record.key] = record.value
    return newest


def produce_all(producer: KafkaProducer, records: Iterable[OutgoingRecord]) -> list[tuple[int, int]]:
    """Produce records in order and wait until Kafka acknowledged every one.

    Returns:
        (partition, offset) of each record, in the order given.

    Raises:
        kafka.errors.KafkaError: one was not acknowledged; which of the later ones were is then unknown.
    """
    pending = [
        producer.send(
            record.topic,
            value=record.value,
            key=record.key,
            headers=list(record.headers),
            partition=record.partition,
        )
        for record in records
    ]
    producer.flush()
    acknowledged = [future.get(timeout=DELIVERY_TIMEOUT_MS / 1000) for future in pending]
    return [(metadata.partition, metadata.offset) for metadata in acknowledged]


def _partitions(client: KafkaAdminClient, settings: Settings, topics: Iterable[str]) -> list[TopicPartition]:
    """Return every partition of the topics."""
    names = [settings.topic(topic) for topic in topics]
    return [
        TopicPartition(topic["name"], partition["partition_index"])
        for topic in client.describe_topics(names)
        for partition in topic["partitions"]
    ]


def _short(name: str, settings: Settings) -> str:
    """Return a topic's name without the deployment's prefix."""
    return name.removeprefix(settings.topic_prefix)


def _servers(bootstrap: str) -> list[str]:
    """Return the brokers of a comma-separated list."""
    return [server.strip() for server in bootstrap.split(",") if server.strip()]


def _pause(seconds: float) -> bool:
    """Pause where nothing can interrupt."""
    time.sleep(seconds)
    return False


def _wait_for_listener(servers: list[str], *, timeout_s: float, wait: Wait) -> None:
    """Return once one of the brokers accepts connections: quieter and sooner to stop than a client that retries."""
    deadline = time.monotonic() + timeout_s
    while not any(_accepts(server) for server in servers):
        if time.monotonic() >= deadline or wait(POLL_S):
            raise DependencyDown(
                f"Kafka does not answer at {', '.join(servers)}",
                fix="start it (`millrace up` does), or correct MILLRACE_KAFKA_BOOTSTRAP",
            )


def _accepts(server: str) -> bool:
    """Return whether a broker's port accepts a connection."""
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True

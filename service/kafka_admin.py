"""Kafka from outside: our topics, and what partitions hold and groups committed.

Names of topics and groups go in and come out as in `contracts/topics.py`; the deployment's prefix is added and removed
here. Topics are created by us, never by a client's first touch.
"""

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient, OffsetSpec, TopicPartition
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    for_code,
)

from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.topics import TOPICS, TopicSpec
from service.kafka_config import REQUEST_TIMEOUT_MS, base_config, server_list
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.settings import Settings

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


def admin(settings: Settings, *, wait: Wait | None = None) -> KafkaAdminClient:
    """Return an admin client, a context manager; waits for a broker that is still starting up.

    Raises:
        DependencyDown: no broker answered within `dependency_wait_s`.
    """
    (bootstrap,) = settings.require("kafka_bootstrap")
    _wait_for_listener(server_list(bootstrap), timeout_s=settings.dependency_wait_s, wait=wait or _pause)
    with translate_kafka_errors(settings):
        return KafkaAdminClient(**base_config(settings))


def ensure_topics(settings: Settings, topics: Iterable[TopicSpec] = TOPICS, *, wait: Wait | None = None) -> None:
    """Create every topic that is missing, and wait until each partition has a leader.

    Any number of processes may do so at once. It tries again while the broker starts up.

    Args:
        settings: the settings in force.
        topics: what there should be.
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
                return _create_missing(client, settings, tuple(topics))
        except DependencyDown:
            if time.monotonic() >= deadline or pause(POLL_S):
                raise


def _create_missing(client: KafkaAdminClient, settings: Settings, topics: Sequence[TopicSpec]) -> None:
    """Create what is missing, wait for it, and check what is there."""
    existing = set(client.list_topics())
    missing = {
        settings.topic(spec.name): {
            "num_partitions": _partition_count(spec, settings),
            "replication_factor": settings.replication_factor,
            "configs": spec.config(),
        }
        for spec in topics
        if settings.topic(spec.name) not in existing
    }
    if missing:
        for topic in client.create_topics(missing, raise_errors=False)["topics"]:
            if topic["error_code"] not in {0, TOPIC_EXISTS}:
                raise _creation_error(topic, settings)
    names = [settings.topic(spec.name) for spec in topics]
    client.wait_for_topics(names, timeout_ms=REQUEST_TIMEOUT_MS)
    counts = {topic["name"]: len(topic["partitions"]) for topic in client.describe_topics(names)}
    for spec in topics:
        _check_partition_count(spec, counts[settings.topic(spec.name)], settings)


def _creation_error(topic: dict[str, Any], settings: Settings) -> MillraceError:
    """Return what a refused creation means."""
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
    """Return what each partition of the topics holds, asked from outside any group.

    Raises:
        DependencyDown: Kafka does not answer, or lacks one of the topics.
    """
    with translate_kafka_errors(settings):
        partitions = _partitions(client, settings, topics)
        begins = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
        ends = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {
        (_short(found.topic, settings), found.partition): OffsetRange(begins[found].offset, ends[found].offset)
        for found in partitions
    }


def topic_ids(settings: Settings, topics: Iterable[str]) -> dict[str, str]:
    """Return Kafka's id of each topic; a topic that was deleted and made anew has another. Old brokers tell none.

    Raises:
        DependencyDown: Kafka does not answer.
    """
    with translate_kafka_errors(settings), admin(settings) as client:
        found = client.describe_topics([settings.topic(topic) for topic in topics])
    return {_short(topic["name"], settings): str(topic["topic_id"]) for topic in found if topic.get("topic_id")}


def committed_offsets(client: KafkaAdminClient, settings: Settings, group: str) -> dict[Partition, Committed]:
    """Return what a group (`join`, `trainer`, ...) committed; partitions without a commit are absent."""
    name = settings.group(group)
    with translate_kafka_errors(settings):
        offsets = _once_coordinated(lambda: client.list_group_offsets({name: None}))[name]
    return {
        (_short(found.topic, settings), found.partition): Committed(committed.offset, committed.metadata or "")
        for found, committed in offsets.items()
        if committed.offset >= 0
    }


def _once_coordinated(call: Callable[[], Any]) -> Any:
    """Return a call's answer; the first group of a new cluster waits for the offsets topic to be created."""
    deadline = time.monotonic() + REQUEST_TIMEOUT_MS / 1000
    while True:
        try:
            return call()
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)


def _partitions(client: KafkaAdminClient, settings: Settings, topics: Iterable[str]) -> list[TopicPartition]:
    """Return every partition of the topics, refusing topics that are missing: absent is not empty."""
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
    """Return a topic's name without the deployment's prefix."""
    return name.removeprefix(settings.topic_prefix)


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

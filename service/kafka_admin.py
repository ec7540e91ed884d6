"""Kafka from outside any group: the admin client, what partitions hold, and what groups committed.

Names of topics and groups go in and come out as in `contracts/topics.py`; the deployment's prefix is added and removed
here.
"""

import random
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient, OffsetSpec, TopicPartition
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
)
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from contracts.errors import DependencyDown, UsageError
from service.kafka_config import REQUEST_TIMEOUT_MS, base_config, connected, server_list
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.settings import Settings

POLL_S: Final = 0.5

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
    wait_for_listener(settings, wait or pause)
    with translate_kafka_errors(settings):
        if settings.kafka_security_protocol != "PLAINTEXT":
            _log_in(settings, wait or pause)
        return connected(KafkaAdminClient, base_config(settings))


def _log_in(settings: Settings, wait: Wait) -> None:
    """Connect once, and raise what a broker has against us: clients only say that they found no broker.

    A refusal may go down with the connection that it came over, so it is tried again.
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


def pause(seconds: float) -> bool:
    """Pause; never give up."""
    time.sleep(seconds)
    return False


def wait_for_listener(settings: Settings, wait: Wait) -> None:
    """Return once one of the brokers accepts connections: quieter and sooner to stop than a client that retries.

    Raises:
        UsageError: no broker is named.
        DependencyDown: none did within `dependency_wait_s`, or `wait` gave up.
    """
    (bootstrap,) = settings.require("kafka_bootstrap")
    servers = server_list(bootstrap)
    deadline = time.monotonic() + settings.dependency_wait_s
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

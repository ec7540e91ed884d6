"""Kafka for every process: what the sibling modules `kafka_*` offer, acknowledged production and reads without a group.

Everything about Kafka is imported from here.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from contracts.errors import DependencyDown
from service.kafka_admin import (
    Committed,
    OffsetRange,
    Partition,
    TopicFinding,
    Wait,
    admin,
    beginning_and_end_offsets,
    cluster_id,
    committed_offsets,
    ensure_topics,
    pause,
    topic_findings,
    topic_ids,
    wait_for_listener,
)
from service.kafka_config import (
    DELIVERY_TIMEOUT_MS,
    aiokafka_config,
    aiokafka_consumer_config,
    aiokafka_producer_config,
    connected,
    consumer_config,
    producer_config,
)
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.settings import Settings

__all__ = [
    "Committed", "OffsetRange", "OutgoingRecord", "Partition", "TopicFinding", "Wait", "admin", "aiokafka_config",
    "aiokafka_consumer_config", "aiokafka_producer_config", "beginning_and_end_offsets", "cluster_id",
    "committed_offsets", "consumer_config", "ensure_topics", "expected_kafka_error", "keep_joining", "newest_records",
    "open_consumer", "produce_all", "producer_config", "read_to_end", "records_of", "topic_findings", "topic_ids",
    "translate_kafka_errors",
]  # fmt: skip

POLL_MS: Final = 200


class OutgoingRecord(NamedTuple):
    """One record to produce; `topic` is the name on the cluster."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


def open_consumer(settings: Settings, wait: Wait = pause) -> KafkaConsumer:
    """Open a consumer without a group, a context manager; waits for a broker that is still starting up."""
    wait_for_listener(settings, wait)
    return connected(KafkaConsumer, consumer_config(settings))


def newest_records(settings: Settings, topic: str, most: int, *, timeout_s: float) -> tuple[int, list[Any]]:
    """Count a topic's partitions and read the last records of each, as many as came within `timeout_s`."""
    with open_consumer(settings) as consumer:
        name = settings.topic(topic)
        partitions = _assigned(consumer, name)
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, max(begins[partition], ends[partition] - most))
        deadline = time.monotonic() + timeout_s
        records: list[Any] = []
        while any(consumer.position(p) < ends[p] for p in partitions) and time.monotonic() < deadline:
            records += [record for fetched in consumer.poll(timeout_ms=200).values() for record in fetched]
        return len(partitions), records


def records_of(
    settings: Settings,
    topic: str,
    *,
    begins: Mapping[int, int] | None = None,
    since_ms: int = 0,
    wait: Wait = pause,
    tell: Callable[[int, int], None] = lambda _done, _of: None,
) -> Iterator[Any]:
    """Give the records that a topic holds at this moment, in the order of each partition.

    A topic that Kafka does not know is `DependencyDown`: absent is not empty.

    Args:
        settings: of the deployment.
        topic: without the deployment's prefix.
        begins: partition -> first offset; from the first record of it if it is not named.
        since_ms: records that were written before are left out, but for those among later ones.
        wait: waits for a broker that is still starting up.
        tell: told how many offsets of how many are passed.
    """
    with translate_kafka_errors(settings), open_consumer(settings, wait) as consumer:
        yield from read_to_end(consumer, settings.topic(topic), begins=begins, since_ms=since_ms, tell=tell)


def read_to_end(
    consumer: KafkaConsumer,
    name: str,
    *,
    begins: Mapping[int, int] | None = None,
    since_ms: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _of: None,
) -> Iterator[Any]:
    """Give the records of a topic by its whole name, as `records_of` does; for who reads on again and again."""
    given = begins or {}
    partitions = _assigned(consumer, name)
    starts = {**consumer.beginning_offsets(partitions)}
    starts |= {partition: max(starts[partition], given.get(partition.partition, 0)) for partition in partitions}
    ends = consumer.end_offsets(partitions)
    if since_ms:
        later = consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
        first = {partition: found.offset if found else ends[partition] for partition, found in later.items()}
        starts = {partition: max(start, first[partition]) for partition, start in starts.items()}
    for partition, start in starts.items():
        consumer.seek(partition, start)
    of = sum(max(end - starts[partition], 0) for partition, end in ends.items())
    while (left := sum(max(end - consumer.position(partition), 0) for partition, end in ends.items())) > 0:
        tell(of - left, of)
        for partition, records in consumer.poll(timeout_ms=POLL_MS).items():
            yield from (record for record in records if record.offset < ends[partition])
    tell(of, of)


def _assigned(consumer: KafkaConsumer, name: str) -> list[TopicPartition]:
    """Let a consumer read all partitions of a topic, which it must know."""
    partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
    if not partitions:
        raise DependencyDown(f"Kafka does not know the topic {name}", fix="a restart of any service creates it")
    consumer.assign(partitions)
    return partitions


def produce_all(producer: KafkaProducer, records: Iterable[OutgoingRecord]) -> list[tuple[int, int]]:
    """Produce records in order, wait until Kafka acknowledged every one, and return the (partition, offset) of each.

    If one is not acknowledged, its KafkaError is raised, and which of the later ones were is unknown.
    """
    pending = [
        producer.send(
            record.topic, value=record.value, key=record.key, headers=list(record.headers), partition=record.partition
        )
        for record in records
    ]
    producer.flush()
    acknowledged = [future.get(timeout=DELIVERY_TIMEOUT_MS / 1000) for future in pending]
    return [(metadata.partition, metadata.offset) for metadata in acknowledged]


def keep_joining(consumer: KafkaConsumer) -> None:
    """Make the next poll take up a join that an earlier one left in the middle; call it before every poll.

    kafka-python 3.0.12 forgets a rebalance that its own leader started because the topic's metadata changed: if the
    poll ends in the middle of it, nobody takes up the finished join, and the member holds nothing for ever
    (kafka/coordinator/base.py, `join_group_async`). About one start in ten on a topic that was just created.
    """
    coordinator = consumer._coordinator
    if coordinator is not None and coordinator.rejoining:
        coordinator.request_rejoin()

"""Kafka for every process: what the sibling modules `kafka_*` offer, acknowledged production and whole reads.

Everything about Kafka is imported from here.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from contracts.errors import DependencyDown
from service.kafka_admin import (
    Committed,
    OffsetRange,
    Partition,
    Wait,
    admin,
    beginning_and_end_offsets,
    committed_offsets,
    ensure_topics,
    topic_ids,
)
from service.kafka_config import (
    DELIVERY_TIMEOUT_MS,
    aiokafka_config,
    aiokafka_consumer_config,
    aiokafka_producer_config,
    consumer_config,
    producer_config,
)
from service.kafka_errors import expected_kafka_error, translate_kafka_errors
from service.settings import Settings

__all__ = [
    "Committed",
    "OffsetRange",
    "OutgoingRecord",
    "Partition",
    "Wait",
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
    "topic_ids",
    "translate_kafka_errors",
]

SILENCE_S: Final = 10.0


class OutgoingRecord(NamedTuple):
    """One record to produce; `topic` is the name on the cluster."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


def read_compacted(settings: Settings, topic: str) -> dict[tuple[int, bytes], bytes]:
    """Read a compacted topic from its beginning to where it ended when asked.

    Returns:
        The newest value of each (partition, key); tombstoned keys are absent.

    Raises:
        DependencyDown: Kafka does not answer, or does not know the topic.
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
    heard_at = time.monotonic()
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        fetched = consumer.poll(timeout_ms=500)
        if fetched:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > SILENCE_S:
            consumer.end_offsets(list(ends))  # raises where Kafka is gone; else compaction has removed the last records
            return newest
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

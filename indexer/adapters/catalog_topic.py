"""`catalog` as a member of the consumer group reads it; each partition's counts travel in the commit's metadata."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata
from typing_extensions import override

from contracts.errors import DependencyDown, TransientError
from contracts.progress import CatalogCounts
from contracts.topics import CATALOG
from indexer.core.planner import CatalogRecord, PartitionProgress
from service.kafka import consumer_config, keep_joining, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

GROUP: Final = "indexer"
LEADING_PARTITION: Final = 0
"""Who reads it moves the releases; the group gives it to one member at a time."""
MAX_RECORDS: Final = 256
POLL_MS: Final = 200


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc] # the library is untyped
    """Counts the group's rebalances and knows the partitions held."""

    def __init__(self) -> None:
        self.epoch = 0
        self.partitions: frozenset[int] = frozenset()

    @override
    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Give partitions up."""
        self.epoch += 1
        self.partitions -= {partition.partition for partition in revoked}

    @override
    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions over."""
        self.epoch += 1
        self.partitions |= {partition.partition for partition in assigned}


class CatalogTopic:
    """One member of group `millrace-indexer`. Used by one thread, but for `leads`.

    Args:
        settings: of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._assignment = _Assignment()
        self._epoch = 0
        self._progress: dict[int, PartitionProgress] = {}
        with translate_kafka_errors(settings):
            self._consumer = KafkaConsumer(**consumer_config(settings, GROUP), max_poll_records=MAX_RECORDS)
            self._join(settings.topic(CATALOG))

    def _join(self, topic: str) -> None:
        """Subscribe, once the topic's partitions are known: kafka-python hands out what it knows when it joins.

        A member that joins before it knows the topic is given no partition and may not notice for minutes.
        """
        if not self._consumer.partitions_for_topic(topic):
            raise DependencyDown(f"Kafka does not know the topic {topic}", fix="a restart of any service creates it")
        self._consumer.subscribe([topic], listener=self._assignment)

    def leads(self) -> bool:
        """Return whether this member moves the releases."""
        return LEADING_PARTITION in self._assignment.partitions

    def not_assigned(self) -> str | None:
        """Return why it reads nothing yet, as a readiness check."""
        return None if self._assignment.epoch else "the consumer group has not assigned partitions yet"

    def poll(self) -> list[CatalogRecord]:
        """Return the next records, in the order of each partition."""
        with translate_kafka_errors(self._settings):
            keep_joining(self._consumer)
            fetched = self._consumer.poll(timeout_ms=POLL_MS)
        if self._assignment.epoch != self._epoch:
            self._epoch = self._assignment.epoch
            self._progress.clear()
            get_logger().info("partitions_assigned", partitions=sorted(self._assignment.partitions), leads=self.leads())
        return [_record(record) for records in fetched.values() for record in records]

    def progress(self, partition: int) -> PartitionProgress:
        """Return how far a partition was worked off; where nothing was committed, from the first record there is."""
        if partition not in self._progress:
            with translate_kafka_errors(self._settings):
                self._progress[partition] = self._committed(self._partition(partition))
        return self._progress[partition]

    def _committed(self, partition: TopicPartition) -> PartitionProgress:
        committed: Any = self._consumer.committed(partition, metadata=True)
        if committed is None or committed.offset < 0:
            start = self._consumer.beginning_offsets([partition])[partition]
            return PartitionProgress(start, CatalogCounts(start_offset=start))
        if not committed.metadata:
            return PartitionProgress(committed.offset, CatalogCounts(start_offset=committed.offset))
        return PartitionProgress(committed.offset, CatalogCounts.model_validate_json(committed.metadata))

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Keep how far partitions were worked off."""
        offsets = {
            self._partition(number): OffsetAndMetadata(done.next_offset, done.counts.model_dump_json(), -1)
            for number, done in progress.items()
        }
        with translate_kafka_errors(self._settings):
            self._consumer.commit(offsets)
        self._progress.update(progress)

    def keep_membership(self) -> None:
        """Poll without reading, so that the group does not take a busy member for dead."""
        held = self._consumer.assignment()
        with translate_kafka_errors(self._settings):
            self._consumer.pause(*held)
            keep_joining(self._consumer)
            self._consumer.poll(timeout_ms=0)
            self._consumer.resume(*(held & self._consumer.assignment()))
        if self._assignment.epoch != self._epoch:
            raise TransientError("the group has moved partitions meanwhile")

    def start_again(self) -> None:
        """Go back to what was committed, in every partition still held."""
        self._progress.clear()
        for partition in self._consumer.assignment():
            self._consumer.seek(partition, self.progress(partition.partition).next_offset)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic(CATALOG), number)


def _record(record: Any) -> CatalogRecord:
    return CatalogRecord(record.partition, record.offset, record.timestamp, record.key, record.value)

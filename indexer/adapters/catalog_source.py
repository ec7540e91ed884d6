"""The topic `catalog` as batches, and the counts that are committed with the position.

The commit carries the partition's counts as its metadata: position and ledger move together or not at all.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata
from typing_extensions import override

from contracts.progress import CatalogCounts
from contracts.topics import CATALOG
from indexer.core.changes import CatalogRecord, counted
from service.kafka import consumer_config, translate_kafka_errors
from service.settings import Settings

POLL_MS: Final = 200


class CatalogSource:
    """Reads `catalog` as a member of the group `indexer`.

    Args:
        settings: of the deployment.
        batch_size: most records of one batch.
    """

    def __init__(self, settings: Settings, *, batch_size: int) -> None:
        self._settings = settings
        self._topic = settings.topic(CATALOG)
        config = {**consumer_config(settings, "indexer"), "max_poll_records": batch_size}
        self._counts: dict[int, CatalogCounts | None] = {}
        with translate_kafka_errors(settings):
            self._consumer = KafkaConsumer(**config)
            self._consumer.subscribe([self._topic], listener=_Forget(self._counts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._consumer.close(autocommit=False)

    def assigned(self) -> bool:
        """Return whether the group has given this member its partitions."""
        return bool(self._consumer.assignment())

    def poll(self) -> list[CatalogRecord]:
        """Return the next records, in the order of each partition; empty where there are none now."""
        with translate_kafka_errors(self._settings):
            polled = self._consumer.poll(timeout_ms=POLL_MS)
        return [
            CatalogRecord(record.partition, record.offset, record.timestamp, record.key, record.value)
            for records in polled.values()
            for record in records
        ]

    def keep_membership(self) -> None:
        """Show the group that this member lives, without taking records, while a dependency is away."""
        assigned = self._consumer.assignment()
        with translate_kafka_errors(self._settings):
            self._consumer.pause(*assigned)
            try:
                self._consumer.poll(timeout_ms=0)
            finally:
                self._consumer.resume(*(assigned & self._consumer.assignment()))

    def commit(self, records: Sequence[CatalogRecord], refused: Sequence[CatalogRecord]) -> None:
        """Commit the position after a batch, with the counts up to there.

        Raises:
            TransientError: the group gave the partitions to another member, which will read the batch again.
        """
        offsets: dict[TopicPartition, Any] = {}
        for partition in sorted({record.partition for record in records}):
            mine = [record for record in records if record.partition == partition]
            bad = sum(record.partition == partition for record in refused)
            counts, position = self._before(partition)
            after = counted(counts, mine, bad, position=position)
            self._counts[partition] = after
            where = TopicPartition(self._topic, partition)
            offsets[where] = OffsetAndMetadata(mine[-1].offset + 1, after.model_dump_json(), -1)
        with translate_kafka_errors(self._settings):
            self._consumer.commit(offsets)

    def _before(self, partition: int) -> tuple[CatalogCounts | None, int]:
        """Return a partition's counts and position as committed last; None and 0 where the group never read there."""
        known = self._counts.get(partition)
        if known is not None:
            return known, known.start_offset + known.catalogue + known.dead_lettered
        with translate_kafka_errors(self._settings):
            committed = self._consumer.committed(TopicPartition(self._topic, partition), metadata=True)
        if committed is None or committed.offset < 0:
            return None, 0
        counts = CatalogCounts.model_validate_json(committed.metadata) if committed.metadata else CatalogCounts()
        return counts, committed.offset


class _Forget(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python ships no types
    """Forgets the counts of partitions that another member may have moved on meanwhile."""

    def __init__(self, counts: dict[int, CatalogCounts | None]) -> None:
        self._counts = counts

    @override
    def on_partitions_revoked(self, revoked: Any) -> None:
        """Forget what this member knew."""
        for partition in revoked:
            self._counts.pop(partition.partition, None)

    @override
    def on_partitions_assigned(self, assigned: Any) -> None:
        """Know nothing of what was assigned: its counts stand in the last commit."""
        for partition in assigned:
            self._counts.pop(partition.partition, None)

"""`preference-pairs` from Kafka: one member of the trainer's group holds every partition.

Where to read on is the checkpoint's to say; Kafka's committed offsets are for lag alone, and for one more thing: the
broker accepts a commit only from the group's present generation, so a trainer that lost its group learns it there,
before it can publish.
"""

import time
from collections.abc import Mapping
from typing import Any, Final, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import RebalanceInProgressError
from pydantic import TypeAdapter
from typing_extensions import override

from contracts import wire
from contracts.errors import ContractError, TransientError
from contracts.pairs import PreferencePair
from contracts.topics import DEAD_LETTERS, PREFERENCE_PAIRS, set_aside_headers
from service import metrics
from service.kafka import OutgoingRecord, consumer_config, keep_joining, produce_all, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings
from trainer.adapters.sole_assignor import SoleAssignor
from trainer.core.records import PairRecord

GROUP: Final = "trainer"
STAGE: Final = "trainer"
MAX_RECORDS: Final = 512
PAIR: Final[TypeAdapter[PreferencePair]] = TypeAdapter(PreferencePair)


class KafkaPairs:
    """The trainer's membership in its group, and what it reads.

    Args:
        settings: of the deployment.
        producer: for dead letters.
    """

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        self._settings = settings
        self._producer = producer
        self._topic = settings.topic(PREFERENCE_PAIRS)
        config = {**consumer_config(settings, GROUP), "partition_assignment_strategy": [SoleAssignor()]}
        with translate_kafka_errors(settings):
            self._consumer = KafkaConsumer(**config)
            self._consumer.subscribe([self._topic], listener=_Reassigned(self))
        self._next: dict[int, int] | None = None
        """Partition -> offset to read on from; None until `seek`."""
        self._waiting: list[Any] = []

    def held(self) -> bool:
        """Return whether this trainer holds every partition, after answering the group."""
        self._fetch(timeout_s=0.2)
        partitions = self._consumer.partitions_for_topic(self._topic) or set()
        return bool(partitions) and {place.partition for place in self._consumer.assignment()} == partitions

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read on from these offsets; partitions that are not named are read from their beginning."""
        self._waiting.clear()
        self._next = dict(offsets)
        self.reposition()

    def reposition(self) -> None:
        """Go to where reading goes on; the group's committed offsets are not it."""
        for place in self._consumer.assignment():
            offset = None if self._next is None else self._next.get(place.partition)
            if offset is None:
                self._consumer.seek_to_beginning(place)
            else:
                self._consumer.seek(place, offset)

    def poll(self, timeout_s: float) -> list[PairRecord]:
        """Return records in the order of each partition.

        Raises:
            TransientError: another trainer holds the partitions now.
        """
        self._fetch(timeout_s=timeout_s)
        self._check_held()
        records, self._waiting = self._waiting, []
        return [self._decoded(record) for record in records]

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit as the member that holds the partitions; waits while the group settles.

        Raises:
            TransientError: another trainer holds the partitions now.
        """
        places = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        deadline = time.monotonic() + 2 * self._settings.session_timeout_s
        while places:
            self._check_held()
            try:
                with translate_kafka_errors(self._settings):
                    self._consumer.commit(places)
                return
            except TransientError as error:
                if not isinstance(error.__cause__, RebalanceInProgressError) or time.monotonic() > deadline:
                    raise
            self._fetch(timeout_s=0.2)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, *, timeout_s: float) -> None:
        """Poll Kafka; what comes waits for `poll`."""
        keep_joining(self._consumer)
        with translate_kafka_errors(self._settings):
            fetched = self._consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=MAX_RECORDS)
        if self._next is None:
            return  # not begun: `seek` comes back to these
        for place, records in fetched.items():
            self._waiting += records
            self._next[place.partition] = records[-1].offset + 1

    def _check_held(self) -> None:
        """Raise where the partitions went to another trainer."""
        if not self._consumer.assignment():
            raise TransientError(
                "another trainer holds the preference pairs now; this one stops", fix="keep one trainer"
            )

    def _decoded(self, record: Any) -> PairRecord:
        """Return one record's pair; a record without one becomes a dead letter first."""
        try:
            return PairRecord(record.partition, record.offset, wire.decode(record.value or b"", PAIR))
        except ContractError as error:
            self._set_aside(record, error)
            return PairRecord(record.partition, record.offset, None)

    def _set_aside(self, record: Any, error: ContractError) -> None:
        """Write a record to `dead-letters`, unchanged, with where it stood and why."""
        place = (PREFERENCE_PAIRS, record.partition, record.offset)
        headers = set_aside_headers(*place, stage=STAGE, reason=error.reason, error=error.message)
        letter = OutgoingRecord(self._settings.topic(DEAD_LETTERS), record.value, key=record.key, headers=headers)
        with translate_kafka_errors(self._settings):
            produce_all(self._producer, [letter])
        metrics.DEAD_LETTERS.labels(STAGE, error.reason).inc()
        get_logger().warning(
            "dead letter",
            topic=PREFERENCE_PAIRS,
            partition=record.partition,
            offset=record.offset,
            reason=error.reason,
            error=error.message,
        )


class _Reassigned(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python ships without types
    """Puts the reader back in place whenever the group has handed out partitions."""

    def __init__(self, source: KafkaPairs) -> None:
        self._source = source

    @override
    def on_partitions_revoked(self, revoked: object) -> None:
        """Nothing to do: what waits is ours until another holds the partitions."""

    @override
    def on_partitions_assigned(self, assigned: object) -> None:
        """Go to where reading goes on."""
        self._source.reposition()

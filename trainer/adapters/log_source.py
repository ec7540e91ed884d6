"""What the trainer learns from, read from Kafka: one member of its group is assigned every partition.

Where to read on is the checkpoint's to say; Kafka's committed offsets are for lag alone, and for one more thing: the
broker accepts a commit only from the group's present generation, so a trainer that lost its group learns it there,
before it can publish.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.cluster import ClusterMetadata
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from kafka.errors import RebalanceInProgressError
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from typing_extensions import override

from contracts import wire
from contracts.errors import ContractError, DependencyDown, TransientError
from contracts.pairs import CURATED_PAIR
from contracts.structs import PREFERENCE_PAIR, TRAINING_SEARCH
from contracts.telemetry import Process
from contracts.topics import (
    CURATED_PAIRS,
    DEAD_LETTERS,
    GROUP_TOPICS,
    PREFERENCE_PAIRS,
    TRAINING_SEARCHES,
    kept_aside,
    set_aside_headers,
)
from service import metrics
from service.follow import PATIENCE_S
from service.kafka import OutgoingRecord, consumer_config, keep_joining, produce_all, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings
from trainer.records import LogRecord, Record

GROUP: Final = "trainer"
MAX_RECORDS: Final = 512
POLL_S: Final = 0.2
NEVER: Final = -1
VERSION: Final = 0
DECODE: Final[dict[str, Callable[[bytes], Record]]] = {
    TRAINING_SEARCHES: TRAINING_SEARCH.decode,
    PREFERENCE_PAIRS: PREFERENCE_PAIR.decode,
    CURATED_PAIRS: lambda value: wire.decode(wire.within_bounds(value), CURATED_PAIR),
}


class SoleAssignor(AbstractPartitionAssignor):  # type: ignore[misc] # kafka-python ships without types
    """Gives every partition to one member of the group: there is one model, so there is one trainer.

    Whoever has the partitions keeps them while it is in the group; the others stand by and one of them takes over when
    it has gone. A member says with each join in which generation it last had them, so that one which was stalled and
    comes back does not take them from its successor. One instance per consumer.
    """

    name = "millrace-sole"

    def __init__(self) -> None:
        self.held_generation = NEVER
        """Generation of the last assignment that was not empty."""

    @override
    def metadata(self, topics: Iterable[str]) -> Any:
        """Say what this member tells the group at each join."""
        return ConsumerProtocolSubscription(VERSION, list(topics), str(self.held_generation).encode())

    @override
    def assign(self, cluster: ClusterMetadata, members: Iterable[Any]) -> dict[str, Any]:
        """Assign everything to one member, nothing to the others."""
        told = {member.member_id: member.metadata for member in members}
        holder = max(told, key=lambda member_id: (_generation(told[member_id].user_data), member_id))
        topics = sorted(told[holder].topics)
        everything = [(topic, sorted(cluster.partitions_for_topic(topic) or ())) for topic in topics]
        return {
            member_id: ConsumerProtocolAssignment(VERSION, everything if member_id == holder else [], b"")
            for member_id in told
        }

    @override
    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Remember the generation if this member has the partitions in it."""
        if any(partitions for _, partitions in assignment.assigned_partitions):
            self.held_generation = generation


def _generation(user_data: bytes | None) -> int:
    try:
        return int(user_data or NEVER)
    except ValueError:
        return NEVER


class KafkaLog(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python ships without types
    """The trainer's membership in its group, and what it reads.

    Args:
        settings: of the deployment.
        producer: for dead letters.
        monotonic_s: clock that measures silence.

    Raises:
        DependencyDown: Kafka does not answer, or lacks the topic.
    """

    def __init__(
        self,
        settings: Settings,
        producer: KafkaProducer,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._monotonic_s = monotonic_s
        self._coordinated_s = monotonic_s()
        self._is_alone = False
        self._topics = {settings.topic(topic): topic for topic in GROUP_TOPICS[GROUP]}
        self._assigned: frozenset[TopicPartition] | None = None
        """None until the group has answered."""
        self._was_lost = False
        self._next: dict[TopicPartition, int] | None = None
        """Where to read on; None until `seek`."""
        self._waiting: list[Any] = []
        self._assignor = SoleAssignor()
        config = {**consumer_config(settings, GROUP), "partition_assignment_strategy": [self._assignor]}
        with translate_kafka_errors(settings):
            self._consumer = KafkaConsumer(**config)
            # A member that joins before it knows the topic may be assigned nothing, and not notice for minutes.
            for topic in self._topics:
                if not self._consumer.partitions_for_topic(topic):
                    raise DependencyDown(
                        f"Kafka does not know the topic {topic}", fix="a restart of any service creates it"
                    )
            self._consumer.subscribe(list(self._topics), listener=self)

    def join(self) -> bool:
        """Answer the group once; return whether this trainer is assigned the partitions."""
        self._fetch(timeout_s=POLL_S)
        return bool(self._assigned)

    def not_reading(self) -> str | None:
        """Give the reason why no pair can come, as a readiness check."""
        if self._is_alone:
            return f"group {self._settings.group(GROUP)} has had no coordinator for {PATIENCE_S:g} s"
        if self._assigned is None:
            return "the consumer group has not assigned partitions yet"
        return None if self._assigned else "another trainer is assigned the searches and pairs; standing by"

    def seek(self, offsets: Mapping[str, int]) -> dict[str, int]:
        """Read on from these offsets, by place; return where each partition is read from.

        A partition that is not named is read from its beginning; so is one that holds other records than it did.
        """
        self._waiting.clear()
        begins, ends = self._bounds()
        self._next = {}
        for partition, begin in begins.items():
            wanted = offsets.get(self._place(partition), begin)
            self._next[partition] = wanted if begin <= wanted <= ends[partition] else begin
            if self._next[partition] != wanted:
                get_logger().warning(
                    "records_are_gone", place=self._place(partition), wanted=wanted, first=begin, end=ends[partition]
                )
        self._reposition()
        return {self._place(partition): offset for partition, offset in self._next.items()}

    def ends(self) -> dict[str, int]:
        """Where each partition ends now, by place."""
        return {self._place(partition): end for partition, end in self._bounds()[1].items()}

    def generation(self) -> int:
        """In which generation of the group this trainer was assigned the partitions."""
        return self._assignor.held_generation

    def poll(self, timeout_s: float) -> list[LogRecord]:
        """Give the next records in the order of each partition.

        Raises:
            TransientError: another trainer may have the partitions now.
        """
        self._fetch(timeout_s=timeout_s)
        self._require_partitions()
        records, self._waiting = self._waiting, []
        return [self._decoded(record) for record in records]

    def commit(self, offsets: Mapping[str, int]) -> None:
        """Commit as the member that is assigned the partitions; waits while the group settles.

        Raises:
            TransientError: another trainer may have them now.
        """
        self._require_partitions()
        places = {
            partition: OffsetAndMetadata(offsets[self._place(partition)], "", -1)
            for partition in self._assigned or ()
            if self._place(partition) in offsets
        }
        deadline = self._monotonic_s() + 2 * self._settings.session_timeout_s
        while places:
            self._require_partitions()
            try:
                with translate_kafka_errors(self._settings):
                    self._consumer.commit(places)
                return
            except TransientError as error:
                if not isinstance(error.__cause__, RebalanceInProgressError) or self._monotonic_s() > deadline:
                    raise
            self._fetch(timeout_s=POLL_S)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @override
    def on_partitions_revoked(self, revoked: object) -> None:
        """Nothing to do: what waits is ours until another trainer is assigned the partitions."""

    @override
    def on_partitions_lost(self, lost: object) -> None:
        """Note that the group went on without this member: another may have trained and released meanwhile."""
        self._was_lost = True

    @override
    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Go to where reading goes on."""
        self._assigned = frozenset(assigned)
        self._reposition()

    def _place(self, partition: TopicPartition) -> str:
        return f"{self._topics[partition.topic]}/{partition.partition}"

    def _bounds(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """The first and the next offset of each partition."""
        partitions = sorted(self._assigned or ())
        with translate_kafka_errors(self._settings):
            return self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)

    def _reposition(self) -> None:
        """Go to where reading goes on; the group's committed offsets are not it."""
        for partition in self._consumer.assignment():
            offset = None if self._next is None else self._next.get(partition)
            if offset is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(partition, offset)

    def _fetch(self, *, timeout_s: float) -> None:
        """Poll Kafka; what comes waits for `poll`."""
        keep_joining(self._consumer)
        with translate_kafka_errors(self._settings):
            fetched = self._consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=MAX_RECORDS)
        self._note_coordinator()
        if self._next is None:
            return  # not begun: `seek` comes back to these
        for place, records in fetched.items():
            self._waiting += records
            self._next[place] = records[-1].offset + 1

    def _note_coordinator(self) -> None:
        """Note whether a broker answers for the group: a poll without one only falls silent."""
        now_s = self._monotonic_s()
        if not self._consumer._coordinator.coordinator_unknown():
            self._coordinated_s = now_s
        self._is_alone = now_s - self._coordinated_s > PATIENCE_S

    def _require_partitions(self) -> None:
        if self._was_lost or self._assigned == frozenset():
            raise TransientError(
                "another trainer may have the searches and pairs now; this one stops", fix="keep one trainer"
            )

    def _decoded(self, record: Any) -> LogRecord:
        """Decode one record; one that breaks its contract becomes a dead letter first."""
        topic, content = self._topics[record.topic], None
        try:
            content = DECODE[topic](record.value or b"")
        except ContractError as error:
            self._set_aside(topic, record, error)
        return LogRecord(topic, record.partition, record.offset, record.timestamp, content)

    def _set_aside(self, topic: str, record: Any, error: ContractError) -> None:
        """Write a record to `dead-letters`, unchanged, with its place and the reason."""
        place = (topic, record.partition, record.offset)
        headers = set_aside_headers(*place, stage=Process.TRAINER, reason=error.reason, error=error.message)
        key, value = kept_aside(record.key, record.value)
        letter = OutgoingRecord(self._settings.topic(DEAD_LETTERS), value, key, headers)
        with translate_kafka_errors(self._settings):
            produce_all(self._producer, [letter])
        metrics.DEAD_LETTERS.labels(Process.TRAINER, error.reason).inc()
        get_logger().warning(
            "dead_letter",
            topic=topic,
            partition=record.partition,
            offset=record.offset,
            reason=error.reason,
            error=error.message,
        )

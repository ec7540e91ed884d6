"""The topics of the catalogue loop: `catalog` read as a member of the group, `product-vectors` and `dead-letters` kept.

What became of each partition's records travels in the metadata of its commit.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata
from pydantic import TypeAdapter
from typing_extensions import override

from contracts import wire
from contracts.catalog import CATALOG_CHANGE, Product, ProductVector
from contracts.errors import ContractError, DependencyDown, MalformedMessage, TransientError
from contracts.progress import CatalogCounts
from contracts.telemetry import Process
from contracts.topics import AGAIN_HEADER, CATALOG, DEAD_LETTERS, PRODUCT_VECTORS, kept_aside, set_aside_headers
from indexer.catalog.base_change import encode_anew
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.planning import CatalogRecord, PartitionProgress, Refusal
from indexer.ports import PartitionsMoved, Pause, Stopped
from service.follow import TopicFollower
from service.health import Dependency
from service.kafka import (
    OutgoingRecord,
    consumer_config,
    keep_joining,
    produce_all,
    records_of,
    translate_kafka_errors,
)
from service.logging import get_logger
from service.settings import Settings
from towers.release_files import Encoder

GROUP: Final = "indexer"
AHEAD_RECORDS: Final = 2_000
"""Records that one look ahead reads at most, shared by the partitions."""
AHEAD_BYTES: Final = 16 * 2**20
AHEAD_WITHIN_S: Final = 2.0
"""How long a look may take: of a Kafka that is gone nothing comes."""
AHEAD_WAIT_MS: Final = 10
"""How long Kafka may hold back the answer to a look that has read everything."""
LEADING_PARTITION: Final = 0
"""Who reads it moves the releases; the group gives it to one member at a time."""
POLL_MS: Final = 200
_VECTOR: Final = TypeAdapter(ProductVector)


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc] # the library is untyped
    """Counts the group's rebalances and knows the partitions of this member."""

    def __init__(self) -> None:
        self.epoch = 0
        self.is_assigned = False
        self.partitions: frozenset[int] = frozenset()

    @override
    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Give partitions up; the group does so at the first join too."""
        self.epoch += 1
        self.is_assigned = False
        self.partitions -= {partition.partition for partition in revoked}

    @override
    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions over."""
        self.epoch += 1
        self.is_assigned = True
        self.partitions |= {partition.partition for partition in assigned}


class CatalogTopic:
    """One member of group `millrace-indexer`. Used by one thread, but for `leads`.

    Args:
        settings: of the deployment.
        kafka: told whether Kafka answers.
    """

    def __init__(self, settings: Settings, kafka: Dependency) -> None:
        self._settings = settings
        self._kafka = kafka
        self._assignment = _Assignment()
        self._epoch = 0
        self._progress: dict[int, PartitionProgress] = {}
        with translate_kafka_errors(settings):
            self._consumer = KafkaConsumer(**consumer_config(settings, GROUP))
            self._join(settings.topic(CATALOG))
        self._lookout: KafkaConsumer | None = None
        self._looked_until: dict[TopicPartition, int] = {}

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
        return None if self._assignment.is_assigned else "the consumer group has not assigned partitions yet"

    def poll(self, most: int) -> list[CatalogRecord]:
        """Return the next records, in the order of each partition."""
        with self._asking():
            keep_joining(self._consumer)
            fetched = self._consumer.poll(timeout_ms=POLL_MS, max_records=most)
        if self._assignment.epoch != self._epoch:
            self._epoch = self._assignment.epoch
            self._progress.clear()
            self._looked_until.clear()
            get_logger().info("partitions_assigned", partitions=sorted(self._assignment.partitions), leads=self.leads())
        return [catalog_record(record) for records in fetched.values() for record in records]

    def look_ahead(self) -> list[CatalogRecord]:
        """Return the last records of the partitions that `poll` has not given yet, each once; positions stay."""
        partitions = self._consumer.assignment()
        with self._asking():
            ends = self._consumer.end_offsets(partitions)
            starts = {
                partition: max(
                    self._consumer.position(partition),
                    self._looked_until.get(partition, 0),
                    end - AHEAD_RECORDS // len(partitions),
                )
                for partition, end in ends.items()
            }
            unseen = {partition: start for partition, start in starts.items() if start < ends[partition]}
            return self._between(unseen, ends) if unseen else []

    def _between(self, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> list[CatalogRecord]:
        """Read on; of more than may be held return the last ones."""
        if self._lookout is None:
            self._lookout = KafkaConsumer(**consumer_config(self._settings), fetch_max_wait_ms=AHEAD_WAIT_MS)
        lookout, found, size = self._lookout, deque[CatalogRecord](), 0
        lookout.assign(list(starts))
        for partition, start in starts.items():
            lookout.seek(partition, start)
        until = time.monotonic() + AHEAD_WITHIN_S

        def place(partition: TopicPartition) -> int:
            found = lookout.position(partition, timeout_ms=POLL_MS)
            return starts[partition] if found is None else int(found)

        while any(place(one) < ends[one] for one in starts) and time.monotonic() < until:
            for records in lookout.poll(timeout_ms=POLL_MS).values():
                found.extend(map(catalog_record, records))
                size += sum(len(record.value or b"") for record in records)
            while size > AHEAD_BYTES:
                size -= len(found.popleft().value or b"")
        self._looked_until.update((partition, place(partition)) for partition in starts)
        return list(found)

    def progress(self, partition: int) -> PartitionProgress:
        """Return how far a partition was worked off; if nothing was committed, from the first record there is."""
        if partition not in self._progress:
            with self._asking():
                self._progress[partition] = self._committed(self._partition(partition))
        return self._progress[partition]

    def _committed(self, partition: TopicPartition) -> PartitionProgress:
        committed: Any = self._consumer.committed(partition, metadata=True)
        if committed is None or committed.offset < 0:
            return self._from_the_beginning(partition)
        if committed.offset > self._consumer.end_offsets([partition])[partition]:
            get_logger().warning("catalog_made_anew", partition=partition.partition, committed=committed.offset)
            return self._from_the_beginning(partition)
        try:
            counts = CatalogCounts.model_validate_json(committed.metadata)
        except ValueError:  # a tool has moved the offset: what became of the records below is not known
            counts = CatalogCounts(start_offset=committed.offset)
        return PartitionProgress(committed.offset, counts)

    def _from_the_beginning(self, partition: TopicPartition) -> PartitionProgress:
        start = self._consumer.beginning_offsets([partition])[partition]
        return PartitionProgress(start, CatalogCounts(start_offset=start))

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Keep how far partitions were worked off."""
        offsets = {
            self._partition(number): OffsetAndMetadata(done.next_offset, done.counts.model_dump_json(), -1)
            for number, done in progress.items()
        }
        with self._asking():
            self._consumer.commit(offsets)
        self._kafka.answered()
        self._progress.update(progress)

    def confirm(self, partitions: Iterable[int]) -> None:
        """Commit again what is committed: the group refuses it from a member that it took for dead."""
        self.commit({number: self.progress(number) for number in partitions})

    def keep_membership(self) -> None:
        """Poll without reading, so that the group does not take a busy member for dead."""
        assigned = self._consumer.assignment()
        with self._asking():
            self._consumer.pause(*assigned)
            keep_joining(self._consumer)
            self._consumer.poll(timeout_ms=0)
            self._consumer.resume(*(assigned & self._consumer.assignment()))
        if self._assignment.epoch != self._epoch:
            raise PartitionsMoved("the group has moved partitions meanwhile")

    def start_again(self) -> None:
        """Go back to what was committed, in every partition still assigned."""
        self._progress.clear()
        for partition in self._consumer.assignment():
            self._consumer.seek(partition, self.progress(partition.partition).next_offset)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
        if self._lookout is not None:
            self._lookout.close()

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic(CATALOG), number)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Tell an outage of Kafka from a group that has moved partitions."""
        try:
            with translate_kafka_errors(self._settings):
                yield
        except DependencyDown as error:
            self._kafka.failed(error)
            raise
        except TransientError as error:
            raise PartitionsMoved(error.message) from error


def catalog_record(record: Any) -> CatalogRecord:
    """A record as Kafka's client gives it."""
    again = any(name == AGAIN_HEADER for name, _ in record.headers or ())
    return CatalogRecord(record.partition, record.offset, record.timestamp, record.key, record.value, again)


class VectorsTopic:
    """`product-vectors`: followed into the base vectors, and written to with acknowledgement.

    Args:
        settings: of the deployment.
        producer: idempotent, acknowledged by all copies.
        kafka: told whether Kafka answers.
        encoder: the base.
        pause: how to wait; True means stop.
    """

    def __init__(
        self, settings: Settings, producer: KafkaProducer, kafka: Dependency, *, encoder: Encoder, pause: Pause
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._kafka = kafka
        self._encoder = encoder
        self._pause = pause
        self.known = BaseVectors(encoder.base_version, settings.data_dir / "indexer")
        self.follower = TopicFollower(
            settings, PRODUCT_VECTORS, self._take, on_new_topic=self.known.topic_is_new, kafka=kafka
        )

    def _take(self, key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Take one record; one that only somebody else can have written is said and passed over."""
        if value is None:
            self.known.read_null(key.decode(errors="replace"), timestamp_ms)
            return
        try:
            product = BaseProduct.from_message(wire.decode(value, _VECTOR))
            if product.base_version == self._encoder.base_version and not product.fits(self._encoder.dim):
                raise MalformedMessage("inconsistent", f"vector: not {self._encoder.dim} finite numbers")
            self.known.read(product, timestamp_ms)
        except ContractError as error:
            get_logger().error("product_vector_unreadable", key=key.decode(errors="replace"), error=error.message)

    def read_to_end(self) -> None:
        """Return once the base vectors hold every record that was acknowledged before the call."""
        with self._kafka.watched():
            self.follower.read_to_end()

    def complete(self) -> None:
        """Return once the base vectors hold every product: read to the end, those of another base encoded anew.

        Raises:
            Stopped: asked to stop in the middle.
        """
        self.read_to_end()
        if any(True for _ in self.known.foreign_states()):
            with translate_kafka_errors(self._settings):
                sent = products_sent(self._settings, self._pause)
                encode_anew(self.known, sent, encoder=self._encoder, publish=self.publish, go_on=self._go_on)

    def _go_on(self) -> None:
        if self._pause(0.0):
            raise Stopped

    def publish(self, products: Sequence[BaseProduct]) -> None:
        """Write base vectors under their product ids.

        Raises:
            DependencyDown: Kafka does not acknowledge.
        """
        topic = self._settings.topic(PRODUCT_VECTORS)
        self._produce(
            [OutgoingRecord(topic, wire.encode(one.to_message()), key=one.product_id.encode()) for one in products]
        )

    def forget(self, product_ids: Sequence[str]) -> None:
        """Write nulls under product ids, so that Kafka forgets them too.

        Raises:
            DependencyDown: Kafka does not acknowledge.
        """
        topic = self._settings.topic(PRODUCT_VECTORS)
        self._produce([OutgoingRecord(topic, None, key=product_id.encode()) for product_id in product_ids])

    def set_aside(self, refusals: Sequence[Refusal]) -> None:
        """Write refused records to `dead-letters`, bytes as they came, where they stood and why in the headers.

        Raises:
            DependencyDown: Kafka does not acknowledge.
        """
        topic = self._settings.topic(DEAD_LETTERS)
        self._produce([_dead_letter(topic, refusal) for refusal in refusals])

    def _produce(self, records: list[OutgoingRecord]) -> None:
        with self._kafka.watched(), translate_kafka_errors(self._settings):
            produce_all(self._producer, records)


def products_sent(settings: Settings, pause: Pause) -> Iterator[Product]:
    """Give the products that `catalog` holds, partition by partition; deletions and what is unreadable are left out."""
    for record in records_of(settings, CATALOG, wait=pause):
        message = product_of(record.value)
        if message is not None:
            yield message


def product_of(value: bytes | None) -> Product | None:
    """The product of a record on `catalog`; None if it is a deletion or unreadable."""
    try:
        message = None if value is None else wire.decode(wire.within_bounds(value), CATALOG_CHANGE)
    except ContractError:
        return None  # a dead letter already, or soon
    return message if isinstance(message, Product) else None


def _dead_letter(topic: str, refusal: Refusal) -> OutgoingRecord:
    record = refusal.record
    headers = set_aside_headers(
        CATALOG, record.partition, record.offset, stage=Process.INDEXER, reason=refusal.reason, error=refusal.error
    )
    key, value = kept_aside(record.key, record.value)
    return OutgoingRecord(topic, value, key, headers)

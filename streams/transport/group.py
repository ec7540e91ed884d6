"""The client of a consumer group: what ends it for good is told with a clear line, and what anyone may write does not.

aiokafka parks fatal errors for a caller of `getmany` that Faust never makes, and tries on for ever in silence. Faust's
consumer thread is a subclass here that has our settings and can be asked for that error. A header whose name is no
UTF-8, which Kafka forbids and some clients write, would end every reader of its partition: it is read all the same.
"""

import time
from collections.abc import Iterator
from typing import Any, Final

import aiokafka
import aiokafka.consumer.fetcher
from aiokafka.errors import (
    BrokerResponseError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    kafka_errors,
)
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from mode.threads import ServiceThread, WorkerThread
from typing_extensions import override

from contracts.errors import UsageError
from service.kafka_records import LenientBytes

MISSING_TOPIC_S: Final = 10.0
"""A topic just created is unknown to a broker for a moment."""
TAKEOVERS: Final = 3
TAKEOVER_WINDOW_S: Final = 60.0
"""A static member loses its place once when it was silent for too long, again and again only to a namesake."""


class FencedInstanceIdError(BrokerResponseError):
    """Another process joined the group under this static member's name; aiokafka 0.14 does not know the code."""

    errno = 82
    message = "FENCED_INSTANCE_ID"
    description = "The broker rejected this static consumer since another consumer has its group.instance.id."


kafka_errors.setdefault(FencedInstanceIdError.errno, FencedInstanceIdError)


class ReadableBatch:
    """A batch that gives its records whatever the names of their headers are.

    Args:
        raw: its bytes.
        batch: the same, read by aiokafka's quick reader.
    """

    def __init__(self, raw: memoryview, batch: DefaultRecordBatch) -> None:
        self._raw = raw
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            again: Any = iter(_DefaultRecordBatchPy(self._raw))  # uncompressed from here on
            again._buffer = LenientBytes(again._buffer)
            records: Iterator[Any] = again
            return records


class ReadableRecords(_MemoryRecordsPy):
    """The batches of a fetch."""

    @override
    def next_batch(self, *arguments: Any) -> Any:
        raw = self._next_slice
        batch = super().next_batch(*arguments)
        return ReadableBatch(raw, batch) if raw is not None and isinstance(batch, DefaultRecordBatch) else batch


aiokafka.consumer.fetcher.MemoryRecords = ReadableRecords


class GroupWorkerThread(WorkerThread):
    """The operating system's thread below; it does not outlive a process whose stop did not wait for it any longer."""

    def __init__(self, service: ServiceThread, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True


class GroupThread(AIOKafkaConsumerThread):
    """The consumer's thread, on our settings."""

    Worker = GroupWorkerThread
    app: Any  # a BatchApp, which would be a circular import

    @override
    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        """Return the group's consumer: our login and membership, Faust's assignor."""
        self._assignor = self.app.assignor
        self.watch = GroupWatch()
        return aiokafka.AIOKafkaConsumer(
            **self.app.consumer_config,
            partition_assignment_strategy=[self._assignor],
            max_poll_records=self.app.conf.broker_max_poll_records,
            max_poll_interval_ms=int(self.app.conf.broker_max_poll_interval * 1000),
            rebalance_timeout_ms=int(self.app.conf.broker_rebalance_timeout * 1000),
        )

    def fatal_error(self) -> Exception | None:
        """Return what can only be mended by a person or a restart, or None."""
        consumer = self._consumer
        if consumer is None or consumer._coordinator is None:
            return None
        return self.watch.fatal_error(consumer, now_s=time.monotonic())


class GroupWatch:
    """Looks at a consumer from time to time and tells whether it can still get anywhere."""

    def __init__(self) -> None:
        self._missing_since: float | None = None
        self._member = ""
        self._taken_over: list[float] = []

    def fatal_error(self, consumer: aiokafka.AIOKafkaConsumer, *, now_s: float) -> Exception | None:
        """Return the error that ends the process, or None."""
        return (
            _parked_error(consumer)
            or _missing_rights(consumer)
            or self._missing_topic(consumer, now_s)
            or self._namesake(consumer, now_s)
        )

    def _missing_topic(self, consumer: aiokafka.AIOKafkaConsumer, now_s: float) -> Exception | None:
        """Return an error once a subscribed topic has been unknown for a while."""
        cluster = consumer._client.cluster
        missing = [topic for topic in consumer.subscription() if not cluster.partitions_for_topic(topic)]
        if not missing:
            self._missing_since = None
            return None
        self._missing_since = now_s if self._missing_since is None else self._missing_since
        if now_s - self._missing_since < MISSING_TOPIC_S:
            return None
        unknown: Exception = UnknownTopicOrPartitionError(", ".join(sorted(missing)))
        return unknown

    def _namesake(self, consumer: aiokafka.AIOKafkaConsumer, now_s: float) -> Exception | None:
        """Return an error where another process keeps taking this static member's place."""
        coordinator = consumer._coordinator
        if coordinator._group_instance_id is None or not coordinator.member_id:
            return None
        if self._member and coordinator.member_id != self._member:
            self._taken_over.append(now_s)
        self._member = coordinator.member_id
        self._taken_over = [at_s for at_s in self._taken_over if now_s - at_s < TAKEOVER_WINDOW_S]
        if len(self._taken_over) < TAKEOVERS:
            return None
        return UsageError(
            f"another process takes the place of {coordinator._group_instance_id} in group {coordinator.group_id}",
            fix="give each worker a MILLRACE_WORKER_ID of its own",
        )


def _parked_error(consumer: aiokafka.AIOKafkaConsumer) -> Exception | None:
    """Return the error that the group's coordinator parked, or with which its task ended."""
    coordinator = consumer._coordinator
    if coordinator._pending_exception is not None:
        error: Exception = coordinator._pending_exception
        return error
    task = coordinator._coordination_task
    if task is not None and task.done() and not task.cancelled() and isinstance(task.exception(), Exception):
        ended: Exception = task.exception()
        return ended
    return None


def _missing_rights(consumer: aiokafka.AIOKafkaConsumer) -> Exception | None:
    """Return an error where Kafka does not let us read a topic."""
    refused = consumer._client.cluster.unauthorized_topics
    return TopicAuthorizationFailedError(", ".join(sorted(refused))) if refused else None

"""Follows a compacted topic in a thread: from its beginning to its end, then live, without a consumer group.

How search, trainer, indexer and page learn of releases, base vectors and progress: everyone reads everything, nobody
commits, and a restart simply reads again.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, OffsetSpec, TopicPartition

from contracts.errors import DependencyDown, InvariantError, MillraceError, TransientError
from contracts.telemetry import Process
from service.health import Dependency
from service.kafka import admin, open_consumer, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

OnRecord = Callable[[bytes, bytes | None, int], None]
"""Takes (key, value, broker timestamp in epoch ms); a value of None removes the key."""

POLL_MS: Final = 200
POSITION_MS: Final = 1000
RETRY_S: Final = 1.0
PROBE_S: Final = 2.0
"""How often Kafka is asked where the topic ends: a consumer whose broker is gone only falls silent."""
PATIENCE_S: Final = 5.0
READ_WITHIN_S: Final = 5.0


class _TopicMissing(DependencyDown):
    """Kafka answers, and has no such topic."""


class _Topic(NamedTuple):
    """Which topic it is, although its name be used again, and where it ends."""

    topic_id: str
    ends: dict[int, int]


class TopicFollower:
    """Hands every record of a topic to a callback, in the order of each partition.

    After an outage it goes on where it was; some records may come twice. An error that the callback raises ends the
    follower and is kept in `failure`, because going on past a record would show a state that never was. Both callbacks
    run in the follower's thread; `on_new_topic` before it begins again, because the topic was deleted and made anew.
    `kafka` is told whether Kafka answers, and a readiness check of its own; without it `not_caught_up` names an outage.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        on_record: OnRecord,
        *,
        on_new_topic: Callable[[], None] = lambda: None,
        kafka: Dependency | None = None,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._on_record = on_record
        self._on_new_topic = on_new_topic
        self._kafka = kafka or Dependency(Process.KAFKA, patience_s=PATIENCE_S)
        self._names_outages = kafka is None
        self._missing: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{topic}", daemon=True)
        self.caught_up = threading.Event()
        """Set once everything that the topic held at the start was handed over."""
        self.failure: MillraceError | None = None
        """Why it ended by itself; None while it runs."""
        self._moved = threading.Condition()
        self._topic_id: str | None = None
        self._next_offsets: dict[int, int] = {}
        self._asking = threading.Lock()
        self._admin: KafkaAdminClient | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the callback in progress; harmless when repeated or never started."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)
        if self._asking.acquire(timeout=1):
            self._close_admin()
            self._asking.release()

    def not_caught_up(self) -> str | None:
        """Say why its view is not current, as a readiness check."""
        if self.failure:
            return self.failure.message
        if self._missing is not None:
            return self._missing
        if not self.caught_up.is_set():
            return f"{self._topic} has not been read to its end yet"
        return self._kafka.not_ready() if self._names_outages else None

    def read_to_end(self, timeout_s: float | None = None) -> None:
        """Wait until every record that was acknowledged before this call was handed over, or raise what prevents it."""
        within_s = READ_WITHIN_S if timeout_s is None else timeout_s
        topic = self._describe()
        with self._moved:
            read = self._moved.wait_for(lambda: self._has_read(topic), within_s)
        if not read:
            name = self._settings.topic(self._topic)
            raise self.failure or DependencyDown(
                f"{name} could not be read to its end within {within_s:g} s", fix="look at the broker's load and log"
            )

    def _has_read(self, topic: _Topic) -> bool:
        return topic.topic_id == self._topic_id and all(
            self._next_offsets.get(number, 0) >= end for number, end in topic.ends.items()
        )

    def _run(self) -> None:
        while not self._stop.is_set() and self.failure is None:
            try:
                with translate_kafka_errors(self._settings):
                    self._follow()
            except (DependencyDown, TransientError) as error:
                self._note(error)
                self._stop.wait(RETRY_S)
            except MillraceError as error:
                get_logger().error("follower_stopped", topic=self._topic, error=error.message, fix=error.fix)
                self.failure = error
            except Exception as error:
                self.failure = InvariantError(f"a record of {self._topic} could not be applied: {error!r}")
                raise

    def _note(self, error: DependencyDown | TransientError) -> None:
        """Note an outage; who says that there is no such topic is there, and one line for it is enough."""
        if not isinstance(error, _TopicMissing):
            self._kafka.failed(error)
            return
        self._kafka.answered()
        if self._missing is None:
            was_read = self._topic_id is not None
            log = get_logger().warning if was_read else get_logger().info
            log("topic_missing", topic=self._topic, reason=error.message, fix=error.fix)
        self._missing = error.message

    def _follow(self) -> None:
        topic = self._describe()
        if self._topic_id not in {None, topic.topic_id}:
            get_logger().warning("topic_made_anew", topic=self._topic)
            self._forget_offsets()
            self._on_new_topic()
        elif self._is_cut(topic):
            self._forget_offsets()
        self._topic_id, self._missing = topic.topic_id, None
        with open_consumer(self._settings, self._stop.wait) as consumer:
            partitions = [TopicPartition(self._settings.topic(self._topic), number) for number in sorted(topic.ends)]
            consumer.assign(partitions)
            for partition in partitions:
                if (offset := self._next_offsets.get(partition.partition)) is None:
                    consumer.seek_to_beginning(partition)
                else:
                    consumer.seek(partition, offset)
            self._kafka.answered()
            self._read(consumer, partitions, first_ends=topic.ends)

    def _read(
        self, consumer: KafkaConsumer, partitions: list[TopicPartition], *, first_ends: Mapping[int, int]
    ) -> None:
        """Read on until stopped, or until what is read is no longer what Kafka holds under that name."""
        probe_at = time.monotonic() + PROBE_S
        while not self._stop.is_set():
            if not self.caught_up.is_set():
                positions = _positions(consumer, partitions)
                if all(positions.get(number, -1) >= end for number, end in first_ends.items()):
                    self.caught_up.set()
            if self._hand_over(consumer) and not self._note_offsets(_positions(consumer, partitions)):
                return self._forget_offsets()
            if time.monotonic() >= probe_at:
                if self._has_changed():
                    return None
                probe_at = time.monotonic() + PROBE_S
        return None

    def _hand_over(self, consumer: KafkaConsumer) -> bool:
        """Hand over what has come; return False if a stop left some of it out."""
        for records in consumer.poll(timeout_ms=POLL_MS).values():
            for record in records:
                if self._stop.is_set():
                    return False
                if record.key is not None:
                    self._on_record(record.key, record.value, record.timestamp)
        return True

    def _note_offsets(self, next_offsets: Mapping[int, int]) -> bool:
        """Note how far it has come; return False if a position went back, because those records are gone."""
        with self._moved:
            if any(offset < self._next_offsets.get(number, 0) for number, offset in next_offsets.items()):
                return False
            self._next_offsets.update(next_offsets)
            self._moved.notify_all()
            return True

    def _has_changed(self) -> bool:
        """Ask Kafka whether it still holds what was read; its silence is noted."""
        try:
            topic = self._describe()
        except (DependencyDown, TransientError) as error:
            self._note(error)
            return False
        self._kafka.answered()
        if topic.topic_id != self._topic_id or self._is_cut(topic):
            return True
        self._missing = None
        return False

    def _is_cut(self, topic: _Topic) -> bool:
        return any(self._next_offsets.get(number, 0) > end for number, end in topic.ends.items())

    def _forget_offsets(self) -> None:
        self.caught_up.clear()
        with self._moved:
            self._next_offsets.clear()

    def _describe(self) -> _Topic:
        name = self._settings.topic(self._topic)
        with self._asking:
            try:
                with translate_kafka_errors(self._settings):
                    if self._admin is None:
                        self._admin = admin(
                            self._settings, wait=lambda _seconds: True
                        )  # one try: whoever asks tries again
                    return _described(self._admin, name)
            except MillraceError:
                self._close_admin()  # a new one finds a broker that is back sooner than this one would
                raise

    def _close_admin(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None


def _described(client: KafkaAdminClient, name: str) -> _Topic:
    (topic,) = client.describe_topics([name])
    partitions = [TopicPartition(name, partition["partition_index"]) for partition in topic["partitions"]]
    if not partitions:
        raise _TopicMissing(f"topic {name} does not exist", fix="any Millrace process creates it at its start")
    found = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return _Topic(str(topic["topic_id"]), {partition.partition: end.offset for partition, end in found.items()})


def _positions(consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> dict[int, int]:
    """List the next offsets; a partition whose position the broker has not told in time is left out."""
    positions = {p.partition: consumer.position(p, timeout_ms=POSITION_MS) for p in partitions}
    return {number: position for number, position in positions.items() if position is not None}

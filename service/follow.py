"""Follows a compacted topic in a thread: from its beginning to its end, then live, without a consumer group.

How search, trainer, indexer and page learn of releases, base vectors and progress: everyone reads everything, nobody
commits, and a restart simply reads again.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from kafka import KafkaConsumer, TopicPartition

from contracts.errors import DependencyDown, InvariantError, MillraceError, TransientError
from service.kafka import open_consumer, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

OnRecord = Callable[[bytes, bytes | None, int], None]
"""Takes (key, value, broker timestamp in epoch ms); a value of None removes the key."""

POLL_MS: Final = 200
POSITION_MS: Final = 1000
RETRY_S: Final = 1.0


class TopicFollower:
    """Hands every record of a topic to a callback, in the order of each partition.

    After a broker was away it begins again from the beginning: the callback must take a record twice without harm. An
    error that the callback raises ends the follower; it is kept in `failure`, because going on past a record that could
    not be applied would show a state that never was.

    Args:
        settings: of the deployment.
        topic: without the deployment's prefix.
        on_record: called in the follower's thread.
    """

    def __init__(self, settings: Settings, topic: str, on_record: OnRecord) -> None:
        self._settings = settings
        self._topic = topic
        self._on_record = on_record
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{topic}", daemon=True)
        self.caught_up = threading.Event()
        """Set once everything that the topic held at the start was handed over."""
        self.failure: MillraceError | None = None
        """Why it ended by itself; None while it runs."""
        self._waits_for: str | None = None
        self._next_offsets: dict[int, int] = {}
        self._moved = threading.Condition()

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the callback in progress; harmless when repeated or never started."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def not_caught_up(self) -> str | None:
        """Return why its view is not current yet, as a readiness check."""
        if self.failure:
            return self.failure.message
        return None if self.caught_up.is_set() else f"{self._topic} has not been read to its end yet"

    def wait_for_offsets(self, ends: Mapping[int, int], timeout_s: float) -> bool:
        """Wait until every record below these ends (partition -> offset) was handed over; return whether it was."""
        with self._moved:
            return self._moved.wait_for(
                lambda: all(self._next_offsets.get(number, 0) >= end for number, end in ends.items()), timeout_s
            )

    def _run(self) -> None:
        while not self._stop.is_set() and self.failure is None:
            try:
                with translate_kafka_errors(self._settings):
                    self._follow()
            except (DependencyDown, TransientError) as exc:
                self._note_wait(exc)
                self._stop.wait(RETRY_S)
            except MillraceError as exc:
                get_logger().error("follower_stopped", topic=self._topic, error=exc.message, fix=exc.fix)
                self.failure = exc
            except Exception as exc:
                self.failure = InvariantError(f"a record of {self._topic} could not be applied: {exc!r}")
                raise

    def _note_wait(self, exc: MillraceError) -> None:
        """Log what it waits for once, not at every attempt."""
        if exc.message != self._waits_for:
            get_logger().warning("follower_waits", topic=self._topic, error=exc.message, fix=exc.fix)
        self._waits_for = exc.message

    def _follow(self) -> None:
        with open_consumer(self._settings, self._stop.wait) as consumer:
            partitions = self._partitions(consumer)
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            ends = consumer.end_offsets(partitions)
            self._waits_for = None
            while not self._stop.is_set():
                if not self.caught_up.is_set() and _has_read(consumer, ends):
                    self.caught_up.set()
                if self._hand_over(consumer):
                    self._note_offsets(_positions(consumer, partitions))

    def _partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        name = self._settings.topic(self._topic)
        numbers = consumer.partitions_for_topic(name)
        if not numbers:
            raise DependencyDown(f"topic {name} does not exist yet", fix="any Millrace process creates it at its start")
        return [TopicPartition(name, number) for number in sorted(numbers)]

    def _hand_over(self, consumer: KafkaConsumer) -> bool:
        """Hand over what has come; return False where a stop left some of it out."""
        for records in consumer.poll(timeout_ms=POLL_MS).values():
            for record in records:
                if self._stop.is_set():
                    return False
                if record.key is not None:
                    self._on_record(record.key, record.value, record.timestamp)
        return True

    def _note_offsets(self, next_offsets: Mapping[int, int]) -> None:
        """Note how far it has come; what was handed over stays so when it begins again from the beginning."""
        with self._moved:
            for number, offset in next_offsets.items():
                self._next_offsets[number] = max(offset, self._next_offsets.get(number, 0))
            self._moved.notify_all()


def _positions(consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> dict[int, int]:
    """Return the next offset of each partition; one whose position the broker has not told in time is left out."""
    positions = {p.partition: consumer.position(p, timeout_ms=POSITION_MS) for p in partitions}
    return {number: position for number, position in positions.items() if position is not None}


def _has_read(consumer: KafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
    """Return whether a consumer has read every partition to this end."""
    positions = _positions(consumer, ends)
    return all(p.partition in positions and positions[p.partition] >= end for p, end in ends.items())

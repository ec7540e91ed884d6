"""What Kafka holds at one moment, before anything is concluded from it.

What cannot be told is unknown, with the reason, and hides nothing else. Pending events are a term of the ledger, so the
unread tail of `search-events` is counted by reading it: a difference of offsets would balance by construction and hide
what is missing.
"""

import time
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson
from kafka import KafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import DependencyDown, MillraceError
from contracts.progress import CatalogCounts, PartitionProgress
from contracts.telemetry import Process
from contracts.topics import SEARCH_EVENTS
from service.kafka import Committed, OffsetRange, Partition, open_consumer, translate_kafka_errors
from service.settings import Settings

SILENCE_S: Final = 15.0
POLL_MS: Final = 200
TICK_BYTES: Final = 200
"""No tick is longer; longer records are not decoded when ticks are counted."""
UNREAD: Final = "unread events"
COUNTS: Final = "counts of the indexer"
"""Parts of a view that are neither a topic nor a group: `tails`, and what the indexer commits beside its offsets."""
_CATALOG_COUNTS = TypeAdapter(CatalogCounts)


@dataclass(frozen=True, slots=True)
class Tail:
    """Records of `search-events` that the join has not read, counted by reading them."""

    events: int
    ticks: int


@dataclass(frozen=True, slots=True)
class KafkaView:
    """One look at Kafka. Topics and groups are named without the deployment's prefix.

    Args:
        ends: (topic, partition) -> first offset kept and next offset to come.
        committed: group -> (topic, partition) -> what the group committed.
        progress: agent -> partition -> its last progress.
        tails: partition of `search-events` -> what lies between the join's `next_offset` and the end.
        unknown: what could not be told -> why: a topic, a group (`millrace-...`), `UNREAD`, `COUNTS`, or all: `kafka`.
    """

    ends: Mapping[Partition, OffsetRange]
    committed: Mapping[str, Mapping[Partition, Committed]] = field(default_factory=dict)
    progress: Mapping[str, Mapping[int, PartitionProgress]] = field(default_factory=dict)
    tails: Mapping[int, Tail] = field(default_factory=dict)
    unknown: Mapping[str, MillraceError] = field(default_factory=dict)

    def knows(self, *parts: str) -> bool:
        """Tell whether all of these could be told."""
        return not self.unknown.keys() & {*parts, Process.KAFKA.value}

    def partitions(self, topic: str) -> list[tuple[int, OffsetRange]]:
        """List the partitions of a topic in order, with what each holds."""
        return sorted((number, ends) for (name, number), ends in self.ends.items() if name == topic)

    def progress_of(self, agent: str, partition: int) -> PartitionProgress | None:
        """Return an agent's last progress in a partition, or None if it has written none."""
        return self.progress.get(agent, {}).get(partition)


def catalog_counts(metadata: str) -> CatalogCounts:
    """Read the indexer's counts from its commit metadata; zeros if it has not committed.

    Raises:
        MalformedMessage: somebody else committed for the group with a text of their own.
    """
    return wire.decode(metadata.encode(), _CATALOG_COUNTS) if metadata else CatalogCounts()


@dataclass(slots=True)
class _Read:
    """What was read of one partition: from where, the next offset to read, and the offsets of events and ticks."""

    since: int
    next_offset: int
    events: "array[int]" = field(default_factory=lambda: array("q"))
    ticks: "array[int]" = field(default_factory=lambda: array("q"))


class TailCounter:
    """Counts the unread tail again and again, reading each record once. Not thread-safe: one caller at a time."""

    def __init__(self, settings: Settings, consumer: KafkaConsumer | None = None) -> None:
        self._settings = settings
        self._topic = settings.topic(SEARCH_EVENTS)
        with translate_kafka_errors(settings):
            self._consumer = consumer or open_consumer(settings)
        self._read: dict[int, _Read] = {}

    def count(
        self, positions: Mapping[int, int], ends: Mapping[int, OffsetRange], *, silence_s: float = SILENCE_S
    ) -> dict[int, Tail]:
        """Count the tail of each partition: records from its position (included) to its end (excluded).

        Raises:
            DependencyDown: for so many seconds the broker handed over nothing although there is more.
        """
        with translate_kafka_errors(self._settings):
            self._go_to(positions)
            heard_at = time.monotonic()
            while any(self._read[number].next_offset < found.end for number, found in ends.items()):
                if self._poll():
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at >= silence_s:
                    raise DependencyDown("Kafka does not hand over the unread events", fix="look at the broker's log")
        tails = {}
        for number, found in ends.items():
            read = self._read[number]
            tails[number] = Tail(bisect_left(read.events, found.end), bisect_left(read.ticks, found.end))
        return tails

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _go_to(self, positions: Mapping[int, int]) -> None:
        """Read on where reading stopped, or at the join's position if that is further on."""
        partitions = {number: TopicPartition(self._topic, number) for number in positions}
        if self._consumer.assignment() != set(partitions.values()):
            self._consumer.assign(list(partitions.values()))
        for number, position in positions.items():
            read = self._read.get(number)
            if read is not None and read.since <= position <= read.next_offset:
                read.since = position
                for offsets in (read.events, read.ticks):
                    del offsets[: bisect_left(offsets, position)]
            else:
                self._read[number] = _Read(position, position)
                self._consumer.seek(partitions[number], position)

    def _poll(self) -> bool:
        """Read on; return whether that came further, also if only marks of transactions were passed."""
        for partition, records in self._consumer.poll(timeout_ms=POLL_MS).items():
            read = self._read[partition.partition]
            for record in records:
                (read.ticks if is_tick(record.value) else read.events).append(record.offset)
        came_further = False
        for number, read in self._read.items():
            position = self._consumer.position(TopicPartition(self._topic, number))
            came_further = came_further or position > read.next_offset
            read.next_offset = position
        return came_further


def is_tick(value: bytes | None) -> bool:
    """Tell whether a record of `search-events` is a tick.

    >>> is_tick(b'{"schema_version":1,"type":"tick","event_time":1795196006756}')
    True
    """
    if value is None or len(value) > TICK_BYTES:
        return False
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and parsed.get("type") == "tick"

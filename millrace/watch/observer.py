"""Looks at Kafka from outside every consumer group, again and again: the edge of `millrace.watch`.

Followers keep the progress records and releases current, a consumer without a group reads what the join has not read
yet (so that pending events are counted, not inferred), and one admin client asks for offsets.
"""

import threading
import time
from types import TracebackType
from typing import Self

import orjson
from kafka import KafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import DependencyDown
from contracts.progress import JoinProgress, PairsProgress
from contracts.topics import (
    CATALOG,
    JOIN_PROGRESS,
    JOINED_SEARCHES,
    MODELS,
    PAIRS_PROGRESS,
    PREFERENCE_PAIRS,
    SEARCH_EVENTS,
)
from millrace.watch.facts import KafkaFacts, Tail
from millrace.watch.releases import ReleaseBook
from service.follow import TopicFollower
from service.kafka import OffsetRange, admin, beginning_and_end_offsets, committed_offsets, consumer_config
from service.settings import Settings

WATCHED = (SEARCH_EVENTS, JOINED_SEARCHES, PREFERENCE_PAIRS, CATALOG)
_JOIN = TypeAdapter(JoinProgress)
_PAIRS = TypeAdapter(PairsProgress)
_TICK_BYTES = 200
"""No tick is longer; longer records are not decoded when ticks are counted."""


class Observer:
    """A view of one deployment. Not thread-safe: one caller at a time.

    Raises:
        DependencyDown: Kafka does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.releases = ReleaseBook()
        self._join: dict[int, JoinProgress] = {}
        self._pairs: dict[int, PairsProgress] = {}
        self._admin = admin(settings)
        self._followers = [
            TopicFollower(settings, JOIN_PROGRESS, self._on_join),
            TopicFollower(settings, PAIRS_PROGRESS, self._on_pairs),
            TopicFollower(settings, MODELS, lambda key, value, _: self.releases.apply(key, value)),
        ]
        for follower in self._followers:
            follower.start()
        self._tails = TailCounter(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def wait_caught_up(self, timeout_s: float) -> None:
        """Wait until the progress records and releases that existed at the start have been read.

        Raises:
            DependencyDown: they could not be read in time.
        """
        deadline = time.monotonic() + timeout_s
        for follower in self._followers:
            if not follower.caught_up.wait(max(0.0, deadline - time.monotonic())):
                raise follower.failure or DependencyDown(
                    "Kafka's progress topics could not be read", fix="look at the broker with `millrace doctor`"
                )

    def look(self) -> KafkaFacts:
        """Return the facts of this moment.

        Offsets of consumers are taken before the log's ends, so that nothing can seem to be consumed before it exists;
        the unread tail is then counted up to those very ends.
        """
        for follower in self._followers:
            if follower.failure:
                raise follower.failure
        committed = {
            group: committed_offsets(self._admin, self._settings, group)
            for group in ("join", "pairs", "trainer", "indexer")
        }
        join, pairs = dict(self._join), dict(self._pairs)
        ends = beginning_and_end_offsets(self._admin, self._settings, WATCHED)
        search = {number: found for (topic, number), found in ends.items() if topic == SEARCH_EVENTS}
        positions = {n: join[n].next_offset if n in join else found.begin for n, found in search.items()}
        tails = self._tails.count(positions, search)
        return KafkaFacts(ends=ends, committed=committed, join=join, pairs=pairs, tails=tails)

    def close(self) -> None:
        """Stop following and close every client."""
        for follower in self._followers:
            follower.stop()
        self._tails.close()
        self._admin.close()

    def _on_join(self, _key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        if value is not None:
            progress = wire.decode(value, _JOIN)
            self._join[progress.partition] = progress

    def _on_pairs(self, _key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        if value is not None:
            progress = wire.decode(value, _PAIRS)
            self._pairs[progress.partition] = progress


class TailCounter:
    """Counts events and ticks of `search-events` between the join's position and the end, reading each record once."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic(SEARCH_EVENTS)
        self._consumer = KafkaConsumer(**consumer_config(settings))
        self._read_to: dict[int, int] = {}
        self._ticks: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def count(
        self, positions: dict[int, int], ends: dict[int, OffsetRange], timeout_s: float = 30.0
    ) -> dict[int, Tail]:
        """Return the tail of each partition: records from its position (included) to its end (excluded).

        Raises:
            DependencyDown: the broker did not hand them over in time.
        """
        with self._lock:
            self._begin(positions)
            deadline = time.monotonic() + timeout_s
            while any(self._read_to[number] < found.end for number, found in ends.items()):
                if time.monotonic() > deadline:
                    raise DependencyDown("Kafka does not hand over the unread events", fix="look at the broker's log")
                self._poll()
            return {number: self._tail(number, positions[number], found.end) for number, found in ends.items()}

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _begin(self, positions: dict[int, int]) -> None:
        partitions = {number: TopicPartition(self._topic, number) for number in positions}
        if self._consumer.assignment() != set(partitions.values()):
            self._consumer.assign(list(partitions.values()))
        for number, position in positions.items():
            if position > self._read_to.get(number, -1):
                self._consumer.seek(partitions[number], position)
                self._read_to[number], self._ticks[number] = position, []
            self._ticks[number] = [offset for offset in self._ticks[number] if offset >= position]

    def _poll(self) -> None:
        for partition, records in self._consumer.poll(timeout_ms=200).items():
            self._ticks[partition.partition] += [record.offset for record in records if is_tick(record.value)]
            self._read_to[partition.partition] = records[-1].offset + 1

    def _tail(self, number: int, position: int, end: int) -> Tail:
        ticks = sum(position <= offset < end for offset in self._ticks[number])
        return Tail(events=max(end - position, 0) - ticks, ticks=ticks)


def is_tick(value: bytes | None) -> bool:
    """Tell whether a record of `search-events` is a tick.

    >>> is_tick(b'{"schema_version":1,"type":"tick","event_time":1795196006756}')
    True
    >>> is_tick(b"not json")
    False
    """
    if value is None or len(value) > _TICK_BYTES:
        return False
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and parsed.get("type") == "tick"

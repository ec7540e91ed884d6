"""Facts are read as they stand; the unread tail is counted by reading: each record once, ticks apart, up to the end."""

from dataclasses import dataclass, field, replace

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError

from contracts.errors import DependencyDown, MalformedMessage
from contracts.topics import CATALOG, SEARCH_EVENTS
from millrace.watch.kafka_view import TICK_BYTES, KafkaView, Tail, TailCounter, catalog_counts, is_tick
from service.kafka import OffsetRange
from service.settings import Settings
from tests.support.deployment import busy_kafka

SETTINGS = Settings(kafka_bootstrap="broker:9092", topic_prefix="t-")
TICK = b'{"schema_version":1,"type":"tick","event_time":1795196006756}'
CLICK = b'{"schema_version":1,"type":"click","event_time":1795196006756}'


def test_partitions_come_in_order() -> None:
    """Whatever order Kafka answers in."""
    kafka = busy_kafka()
    kafka = replace(kafka, ends={key: kafka.ends[key] for key in sorted(kafka.ends, reverse=True)})
    assert [number for number, _ in kafka.partitions(SEARCH_EVENTS)] == [0, 1, 2, 3]


def test_an_empty_text_is_no_count_yet() -> None:
    """A group whose offsets were set by a tool has no counts."""
    assert catalog_counts("").catalogue == 0


@pytest.mark.parametrize("text", ["moved by hand", '{"catalogue": -1}'])
def test_a_foreign_text_beside_a_commit_is_named(text: str) -> None:
    """It is a clear error, not a traceback."""
    with pytest.raises(MalformedMessage):
        catalog_counts(text)


def test_what_is_unknown_hides_nothing_else() -> None:
    """A part is known unless it, or all of Kafka, is not."""
    kafka = KafkaView(ends={}, unknown={CATALOG: DependencyDown("gone")})
    assert kafka.knows(SEARCH_EVENTS)
    assert not kafka.knows(SEARCH_EVENTS, CATALOG)
    assert not KafkaView(ends={}, unknown={"kafka": DependencyDown("gone")}).knows(SEARCH_EVENTS)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a log."""

    offset: int
    value: bytes | None


@dataclass
class LogInMemory:
    """A consumer without a group over logs in memory; where a log has no record at an offset, it passes over it.

    Args:
        logs: partition -> offset -> value.
        ends: partition -> end, where that lies behind the last record.
    """

    logs: dict[int, dict[int, bytes | None]]
    ends: dict[int, int] = field(default_factory=dict)
    assigned: set[TopicPartition] = field(default_factory=set)
    positions: dict[int, int] = field(default_factory=dict)
    handed_over: list[tuple[int, int]] = field(default_factory=list)
    seeks: int = 0
    closed: bool = False

    def assignment(self) -> set[TopicPartition]:
        """Return what is assigned."""
        return self.assigned

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Take partitions."""
        self.assigned = set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Stand at an offset."""
        assert partition.topic == f"t-{SEARCH_EVENTS}"
        self.positions[partition.partition] = offset
        self.seeks += 1

    def position(self, partition: TopicPartition) -> int:
        """Return where it stands."""
        return self.positions[partition.partition]

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        """Hand over at most two records of each partition."""
        assert timeout_ms > 0
        return {partition: records for partition in self.assigned if (records := self._next(partition.partition))}

    def _next(self, number: int) -> list[Record]:
        """Return the next two records of a log."""
        log, at = self.logs[number], self.positions[number]
        offsets = sorted(offset for offset in log if offset >= at)[:2]
        self.handed_over += [(number, offset) for offset in offsets]
        self.positions[number] = offsets[-1] + 1 if offsets else max(at, self.ends.get(number, at))
        return [Record(offset, log[offset]) for offset in offsets]

    def close(self) -> None:
        """Close it."""
        self.closed = True


def log(*values: bytes | None, begin: int = 0) -> dict[int, bytes | None]:
    """Return a log without holes."""
    return dict(enumerate(values, start=begin))


def test_events_and_ticks_are_told_apart() -> None:
    """A tail is what was read; ticks and records that are no JSON are counted as what they are."""
    consumer = LogInMemory({0: log(CLICK, TICK, b"not json", None, TICK)})
    tails = TailCounter(SETTINGS, consumer).count({0: 0}, {0: OffsetRange(0, 5)})
    assert tails == {0: Tail(events=3, ticks=2)}


def test_each_partition_is_counted_from_its_own_position() -> None:
    """What the join has read is not pending."""
    consumer = LogInMemory({0: log(CLICK, CLICK, TICK), 1: log(CLICK, TICK, CLICK)})
    tails = TailCounter(SETTINGS, consumer).count({0: 1, 1: 3}, {0: OffsetRange(0, 3), 1: OffsetRange(0, 3)})
    assert tails == {0: Tail(events=1, ticks=1), 1: Tail(events=0, ticks=0)}


def test_records_behind_the_end_asked_for_are_not_counted_yet() -> None:
    """Two counts agree with the two ends, although the first poll had already handed over more."""
    consumer = LogInMemory({0: log(CLICK, CLICK, CLICK, TICK)})
    counter = TailCounter(SETTINGS, consumer)
    assert counter.count({0: 0}, {0: OffsetRange(0, 3)}) == {0: Tail(events=3, ticks=0)}
    assert counter.count({0: 0}, {0: OffsetRange(0, 4)}) == {0: Tail(events=3, ticks=1)}


def test_no_record_is_read_twice() -> None:
    """A look every second costs what is new, not the whole tail."""
    consumer = LogInMemory({0: log(*[CLICK] * 6)})
    counter = TailCounter(SETTINGS, consumer)
    for position, end in ((0, 4), (2, 4), (3, 6), (3, 6)):
        assert counter.count({0: position}, {0: OffsetRange(0, end)}) == {0: Tail(events=end - position, ticks=0)}
    assert consumer.handed_over == [(0, offset) for offset in range(6)]


def test_a_join_that_overtakes_is_followed() -> None:
    """Where the join moved past what was read, reading goes on at its position."""
    consumer = LogInMemory({0: log(*[CLICK] * 10)})
    counter = TailCounter(SETTINGS, consumer)
    counter.count({0: 0}, {0: OffsetRange(0, 2)})
    assert counter.count({0: 8}, {0: OffsetRange(0, 10)}) == {0: Tail(events=2, ticks=0)}
    assert (0, 5) not in consumer.handed_over


def test_a_position_that_moves_back_is_read_again() -> None:
    """A progress record that was set back by hand does not leave forgotten events out."""
    consumer = LogInMemory({0: log(*[CLICK] * 6)})
    counter = TailCounter(SETTINGS, consumer)
    counter.count({0: 4}, {0: OffsetRange(0, 6)})
    assert counter.count({0: 1}, {0: OffsetRange(0, 6)}) == {0: Tail(events=5, ticks=0)}


def test_what_retention_took_is_missing_from_the_count() -> None:
    """Unread events that are gone are not counted as pending: the ledger then shows them as lost."""
    consumer = LogInMemory({0: log(CLICK, CLICK, begin=7)})
    tails = TailCounter(SETTINGS, consumer).count({0: 4}, {0: OffsetRange(7, 9)})
    assert tails == {0: Tail(events=2, ticks=0)}


def test_marks_of_foreign_transactions_do_not_stop_the_count() -> None:
    """The last offset may hold no record; the end is reached all the same."""
    consumer = LogInMemory({0: log(CLICK)}, ends={0: 2})
    assert TailCounter(SETTINGS, consumer).count({0: 0}, {0: OffsetRange(0, 2)}) == {0: Tail(events=1, ticks=0)}


def test_a_broker_that_hands_over_nothing_is_named() -> None:
    """Silence is a failure, not a small tail."""
    counter = TailCounter(SETTINGS, LogInMemory({0: log(CLICK)}))
    with pytest.raises(DependencyDown, match="does not hand over"):
        counter.count({0: 0}, {0: OffsetRange(0, 5)}, silence_s=0.0)


def test_kafka_errors_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks in the middle is a dependency that is down."""
    consumer = LogInMemory({0: log(CLICK)})

    def broken(**_options: int) -> None:
        """Stand for a broker that goes away."""
        raise KafkaConnectionError("gone")

    monkeypatch.setattr(consumer, "poll", broken)
    with pytest.raises(DependencyDown, match="gone"):
        TailCounter(SETTINGS, consumer).count({0: 0}, {0: OffsetRange(0, 1)})


def test_close_closes_the_consumer() -> None:
    """Nothing stays open."""
    consumer = LogInMemory({})
    TailCounter(SETTINGS, consumer).close()
    assert consumer.closed


@pytest.mark.parametrize(
    "value",
    [None, b"", b"[]", b'"tick"', b'{"type":"click"}', b'{"type":"tick","padding":"' + b"x" * TICK_BYTES + b'"}'],
)
def test_what_is_no_tick(value: bytes | None) -> None:
    """Only a small object of type tick is a tick; nothing that stands on the topic breaks the question."""
    assert not is_tick(value)


def test_the_join_writes_ticks_short_enough() -> None:
    """The contract's tick stays below the length up to which records are looked into."""
    from contracts.events import Tick
    from contracts.wire import encode

    tick = encode(Tick(schema_version=1, type="tick", event_time=4_102_444_800_000))
    assert is_tick(tick)
    assert len(tick) < TICK_BYTES

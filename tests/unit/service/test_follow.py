"""Following a compacted topic: from the beginning, live, and what an error in the callback does."""

import threading
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaConnectionError

from contracts.errors import MalformedMessage
from contracts.topics import MODELS, PRODUCT_VECTORS
from service import follow
from service.follow import TopicFollower
from service.kafka import (
    OutgoingRecord,
    admin,
    beginning_and_end_offsets,
    ensure_topics,
    produce_all,
    producer_config,
)
from service.settings import Settings
from tests.support.poll import eventually

SettingsFactory = Callable[..., Settings]

Write = Callable[..., None]


@pytest.fixture
def write(two_partitions: Settings) -> Iterator[Write]:
    """A function that writes (key, value) records to a topic."""
    producer = KafkaProducer(**producer_config(two_partitions))

    def send(topic: str, *records: tuple[bytes, bytes | None]) -> None:
        produce_all(producer, [OutgoingRecord(two_partitions.topic(topic), value, key=key) for key, value in records])

    yield send
    producer.close()


def ends_of(two_partitions: Settings) -> dict[int, int]:
    """Return where the partitions of `product-vectors` end."""
    with admin(two_partitions) as client:
        held = beginning_and_end_offsets(client, two_partitions, [PRODUCT_VECTORS])
    return {number: offsets.end for (_, number), offsets in held.items()}


class Seen:
    """What a follower handed over."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.count = 0
        self.timestamps: list[int] = []

    def take(self, key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Keep a record."""
        self.values[key] = value
        self.timestamps.append(timestamp_ms)
        self.count += 1


@pytest.mark.kafka
def test_it_reads_from_the_beginning_and_then_live(two_partitions: Settings, write: Write) -> None:
    """What was there is handed over before `caught_up`; what comes later follows, tombstones included."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"old") for number in range(20)))
    seen = Seen()
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take)
    assert follower.not_caught_up() is not None
    follower.start()
    assert follower.caught_up.wait(30)
    assert seen.count == 20
    assert follower.not_caught_up() is None
    write(PRODUCT_VECTORS, (b"P-1", b"new"), (b"P-2", None))
    eventually(lambda: seen.count == 22)
    assert seen.values[b"P-1"] == b"new"
    assert seen.values[b"P-2"] is None
    assert min(seen.timestamps) > 1_600_000_000_000
    follower.stop()


@pytest.mark.kafka
def test_whoever_waits_for_offsets_learns_that_everything_below_was_handed_over(
    two_partitions: Settings, write: Write
) -> None:
    """Not before the callback has returned, and not at all within a time that is too short."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(20)))
    ends = ends_of(two_partitions)
    seen, go_on = Seen(), threading.Event()

    def take(key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Take a record when told."""
        go_on.wait(30)
        seen.take(key, value, timestamp_ms)

    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, take)
    assert not follower.wait_for_offsets(ends, 0.0)
    follower.start()
    assert not follower.wait_for_offsets(ends, 0.1)
    go_on.set()
    assert follower.wait_for_offsets(ends, 30.0)
    assert seen.count == 20
    follower.stop()


@pytest.mark.kafka
def test_a_partition_whose_position_is_not_known_yet_counts_as_not_read(
    two_partitions: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not say in time where a partition begins delays that partition, and breaks nothing."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(20)))
    ends = ends_of(two_partitions)
    known, ask = threading.Event(), KafkaConsumer.position

    def position(consumer: KafkaConsumer, partition: TopicPartition, timeout_ms: int | None = None) -> int | None:
        """Return the position, that of the second partition when told."""
        return ask(consumer, partition, timeout_ms) if known.is_set() or partition.partition == 0 else None

    monkeypatch.setattr(KafkaConsumer, "position", position)
    seen = Seen()
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take)
    follower.start()
    assert follower.wait_for_offsets({0: ends[0]}, 30.0)
    assert not follower.wait_for_offsets(ends, 0.0)
    assert not follower.caught_up.is_set()
    known.set()
    assert follower.wait_for_offsets(ends, 30.0)
    assert follower.caught_up.wait(30)
    assert follower.failure is None
    follower.stop()


@pytest.mark.kafka
def test_what_was_handed_over_stays_so_while_it_begins_again(
    two_partitions: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage nobody waits for records that were taken before it."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(20)))
    ends = ends_of(two_partitions)
    fails, many_again, go_on = threading.Event(), threading.Event(), threading.Event()
    poll, seen = KafkaConsumer.poll, Seen()

    def failing_poll(consumer: KafkaConsumer, timeout_ms: int) -> object:
        """Read one record, or fail once when told."""
        if fails.is_set():
            fails.clear()
            raise KafkaConnectionError
        return poll(consumer, timeout_ms=timeout_ms, max_records=1)

    def take(key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Take a record; wait in the middle of the second time."""
        seen.take(key, value, timestamp_ms)
        if seen.count == 30:
            many_again.set()
            go_on.wait(30)

    monkeypatch.setattr(KafkaConsumer, "poll", failing_poll)
    monkeypatch.setattr(follow, "RETRY_S", 0.01)
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, take)
    follower.start()
    assert follower.wait_for_offsets(ends, 30.0)
    fails.set()
    assert many_again.wait(30)
    assert follower.wait_for_offsets(ends, 0.0)
    go_on.set()
    follower.stop()


@pytest.mark.kafka
def test_an_empty_topic_is_caught_up_at_once(two_partitions: Settings) -> None:
    """Nobody waits for records that never come."""
    follower = TopicFollower(two_partitions, MODELS, Seen().take)
    follower.start()
    assert follower.caught_up.wait(30)
    follower.stop()


@pytest.mark.kafka
def test_it_waits_for_a_topic_that_is_not_there_yet(kafka_settings: SettingsFactory) -> None:
    """A process may start before the one that creates the topics."""
    settings = kafka_settings()
    follower = TopicFollower(settings, MODELS, Seen().take)
    follower.start()
    assert not follower.caught_up.wait(0.5)
    ensure_topics(settings)
    assert follower.caught_up.wait(30)
    assert follower.failure is None
    follower.stop()


@pytest.mark.kafka
def test_a_record_that_cannot_be_applied_ends_it_and_is_kept(two_partitions: Settings, write: Write) -> None:
    """Going on would show a state that never was; readiness says why."""
    taken: list[bytes] = []

    def refuse(key: bytes, _value: bytes | None, _timestamp_ms: int) -> None:
        taken.append(key)
        raise MalformedMessage("malformed_json", "not a release")

    write(MODELS, (b"query-1", b"{"), (b"query-2", b"{"))
    follower = TopicFollower(two_partitions, MODELS, refuse)
    follower.start()
    eventually(lambda: follower.failure is not None, timeout_s=30)
    assert taken == [b"query-1"]
    assert follower.not_caught_up() == "not a release"
    follower.stop()


@pytest.mark.kafka
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_nobody_foresaw_is_a_failure_too(two_partitions: Settings, write: Write) -> None:
    """The thread dies loudly, and whoever waits for it learns of it instead of waiting for ever."""

    def crash(_key: bytes, _value: bytes | None, _timestamp_ms: int) -> None:
        raise ZeroDivisionError

    write(MODELS, (b"query-1", b"x"))
    follower = TopicFollower(two_partitions, MODELS, crash)
    follower.start()
    eventually(lambda: follower.failure is not None, timeout_s=30)
    assert "could not be applied" in (follower.not_caught_up() or "")
    follower.stop()


@pytest.mark.kafka
def test_stop_ends_it_in_the_middle_of_a_topic(two_partitions: Settings, write: Write) -> None:
    """A stop does not wait for the rest; it is harmless when repeated or never started."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(50)))
    first, go_on = threading.Event(), threading.Event()
    count = 0

    def slow(_key: bytes, _value: bytes | None, _timestamp_ms: int) -> None:
        nonlocal count
        count += 1
        first.set()
        go_on.wait(10)

    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, slow)
    follower.start()
    assert first.wait(30)
    stopping = threading.Thread(target=follower.stop)
    stopping.start()
    eventually(follower._stop.is_set)
    go_on.set()
    stopping.join(20)
    assert not stopping.is_alive()
    assert count < 50
    follower.stop()
    TopicFollower(two_partitions, MODELS, slow).stop()

"""Following a compacted topic: from the beginning, live, and what an error in the callback does."""

import threading
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaConnectionError
from structlog.testing import capture_logs

from contracts.errors import DependencyDown, InvariantError, MalformedMessage
from contracts.telemetry import Process
from contracts.topics import MODELS, PRODUCT_VECTORS
from service import follow
from service.follow import TopicFollower
from service.health import Dependency
from service.kafka import OutgoingRecord, admin, ensure_topics, produce_all, producer_config
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


class Seen:
    """What a follower handed over."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.count = 0
        self.timestamps: list[int] = []
        self.times_forgotten = 0

    def forget(self) -> None:
        """Forget the records of a topic that is gone."""
        self.values.clear()
        self.times_forgotten += 1

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
def test_what_was_acknowledged_before_has_been_read(two_partitions: Settings, write: Write) -> None:
    """Whoever asks for the end of the topic gets it, again and again, one record after the other."""
    seen = Seen()
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take)
    follower.start()
    follower.read_to_end(60)
    for number in range(20):
        write(PRODUCT_VECTORS, (b"P-%d" % number, b"x"))
        follower.read_to_end(60)
        assert seen.count == number + 1
    follower.stop()


@pytest.mark.kafka
def test_a_follower_that_does_not_get_to_the_end_in_time_is_said(two_partitions: Settings, write: Write) -> None:
    """Nothing is taken for read before the callback has returned; whoever asks tries again."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(20)))
    seen, go_on = Seen(), threading.Event()

    def take(key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Take a record when told."""
        go_on.wait(30)
        seen.take(key, value, timestamp_ms)

    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, take)
    follower.start()
    with pytest.raises(DependencyDown, match=r"could not be read to its end within 0\.05 s"):
        follower.read_to_end(0.05)
    go_on.set()
    follower.read_to_end(30)
    assert seen.count == 20
    follower.stop()


@pytest.mark.kafka
def test_what_ended_a_follower_ends_the_wait_for_it(two_partitions: Settings, write: Write) -> None:
    """It will never get to the end: whoever waits must not try again for ever."""

    def refuse(_key: bytes, _value: bytes | None, _timestamp_ms: int) -> None:
        """Take no record."""
        raise InvariantError("cannot be applied", fix="none")

    write(PRODUCT_VECTORS, (b"P-1", b"x"))
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, refuse)
    follower.start()
    eventually(lambda: follower.failure is not None, timeout_s=60, what="the follower ended")
    with pytest.raises(InvariantError, match="cannot be applied"):
        follower.read_to_end(0.05)
    follower.stop()


@pytest.mark.kafka
def test_the_end_of_a_topic_that_is_not_there_is_unknown(kafka_settings: SettingsFactory) -> None:
    """It is not 0: nobody takes a missing topic for one that was read."""
    follower = TopicFollower(kafka_settings(), PRODUCT_VECTORS, Seen().take)
    with pytest.raises(DependencyDown, match="does not exist"):
        follower.read_to_end(0.05)
    follower.stop()


@pytest.mark.kafka
def test_a_partition_whose_position_is_not_known_yet_counts_as_not_read(
    two_partitions: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not say in time where a partition begins delays that partition, and breaks nothing."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(20)))
    known, ask = threading.Event(), KafkaConsumer.position

    def position(consumer: KafkaConsumer, partition: TopicPartition, timeout_ms: int | None = None) -> int | None:
        """Return the position, that of the second partition when told."""
        return ask(consumer, partition, timeout_ms) if known.is_set() or partition.partition == 0 else None

    monkeypatch.setattr(KafkaConsumer, "position", position)
    seen = Seen()
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take)
    follower.start()
    eventually(lambda: seen.count == 20, timeout_s=30)
    with pytest.raises(DependencyDown):
        follower.read_to_end(0.1)
    assert not follower.caught_up.is_set()
    known.set()
    follower.read_to_end(30)
    assert follower.caught_up.wait(30)
    assert follower.failure is None
    follower.stop()


@pytest.mark.kafka
def test_after_an_outage_it_goes_on_where_it_was(
    two_partitions: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in force long ago is not handed over again, and what came meanwhile is."""
    write(PRODUCT_VECTORS, *((b"P-%d" % number, b"x") for number in range(20)))
    fails, poll, seen = threading.Event(), KafkaConsumer.poll, Seen()
    failed = threading.Event()

    def failing_poll(consumer: KafkaConsumer, timeout_ms: int) -> object:
        """Poll, or fail as long as told."""
        if fails.is_set():
            failed.set()
            raise KafkaConnectionError
        return poll(consumer, timeout_ms=timeout_ms)

    monkeypatch.setattr(KafkaConsumer, "poll", failing_poll)
    monkeypatch.setattr(follow, "RETRY_S", 0.01)
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take)
    follower.start()
    follower.read_to_end(30)
    fails.set()
    assert failed.wait(30)
    write(PRODUCT_VECTORS, (b"P-1", b"new"))
    fails.clear()
    follower.read_to_end(30)
    assert seen.count == 21
    assert seen.values[b"P-1"] == b"new"
    follower.stop()


@pytest.mark.kafka
def test_a_broker_that_is_gone_is_said_although_a_consumer_only_falls_silent(
    two_partitions: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness names the outage after a while, and forgets it when the broker answers again."""
    gone, describe = threading.Event(), follow._described

    def described(client: object, name: str) -> object:
        """Describe the topic, unless the broker is gone."""
        if gone.is_set():
            raise KafkaConnectionError("no broker")
        return describe(client, name)

    monkeypatch.setattr(follow, "_described", described)
    monkeypatch.setattr(follow, "PROBE_S", 0.01)
    monkeypatch.setattr(follow, "PATIENCE_S", 0.0)
    follower = TopicFollower(two_partitions, MODELS, Seen().take)
    follower.start()
    assert follower.caught_up.wait(30)
    assert follower.not_caught_up() is None
    gone.set()
    reason = eventually(follower.not_caught_up, timeout_s=30)
    assert "Kafka" in str(reason)
    gone.clear()
    eventually(lambda: follower.not_caught_up() is None, timeout_s=30)
    follower.stop()


def make_anew(settings: Settings) -> None:
    """Delete `product-vectors` and make it again."""
    name = settings.topic(PRODUCT_VECTORS)
    with admin(settings) as client:
        client.delete_topics([name])
        eventually(lambda: name not in client.list_topics(), timeout_s=30)
    ensure_topics(settings)


@pytest.mark.kafka
@pytest.mark.parametrize("records", [0, 3, 30], ids=["empty", "shorter", "longer"])
def test_a_topic_that_was_made_anew_does_not_count_as_read(
    two_partitions: Settings, write: Write, records: int
) -> None:
    """However long the new one is, it is read from its beginning, and the view is told to forget the old one."""
    write(PRODUCT_VECTORS, *((b"old-%d" % number, b"x") for number in range(20)))
    seen = Seen()
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take, on_new_topic=seen.forget)
    follower.start()
    follower.read_to_end(30)
    make_anew(two_partitions)
    write(PRODUCT_VECTORS, *((b"new-%d" % number, b"x") for number in range(records)))
    follower.read_to_end(60)
    assert sorted(seen.values) == sorted(b"new-%d" % number for number in range(records))
    assert seen.times_forgotten == 1
    eventually(lambda: follower.not_caught_up() is None, timeout_s=30)
    follower.stop()


@pytest.mark.kafka
def test_records_that_are_gone_from_the_end_are_no_reason_to_pass_over_what_follows(
    two_partitions: Settings, write: Write
) -> None:
    """A broker that lost its last records gives their offsets out again: the topic is read again from its beginning."""
    write(PRODUCT_VECTORS, (b"P-1", b"x"))
    seen = Seen()
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, seen.take)
    follower.start()
    follower.read_to_end(30)
    with follower._moved:
        follower._next_offsets = dict.fromkeys(follower._next_offsets, 100)
    write(PRODUCT_VECTORS, (b"P-2", b"x"))
    eventually(lambda: b"P-2" in seen.values, timeout_s=60)
    follower.read_to_end(30)
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
def test_a_topic_that_is_not_there_is_no_outage(kafka_settings: SettingsFactory) -> None:
    """Beside others that are there, as after an upgrade, the alert on Kafka and the log would flap for hours."""
    own = kafka_settings(partitions=2)
    kafka = Dependency(Process.KAFKA)
    follower = TopicFollower(own, MODELS, Seen().take, kafka=kafka)
    with capture_logs() as lines:
        follower.start()
        eventually(lambda: "does not exist" in str(follower.not_caught_up()))
        asked = kafka.answers
        eventually(lambda: kafka.answers > asked)
    assert kafka.is_up
    assert [line["event"] for line in lines] == ["topic_missing"]
    ensure_topics(own)
    assert follower.caught_up.wait(30)
    assert follower.not_caught_up() is None
    follower.stop()


@pytest.mark.kafka
@pytest.mark.parametrize("has_own_kafka", [False, True])
def test_a_topic_that_is_deleted_once_it_was_read_is_said(
    kafka_settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch, has_own_kafka: bool
) -> None:
    """What was read goes on, and may be out of date: readiness names the topic until there is one again."""
    monkeypatch.setattr(follow, "PROBE_S", 0.01)
    own = kafka_settings()
    ensure_topics(own)
    kafka = Dependency(Process.KAFKA) if has_own_kafka else None
    follower = TopicFollower(own, MODELS, Seen().take, kafka=kafka)
    follower.start()
    assert follower.caught_up.wait(30)
    with capture_logs() as lines:
        with admin(own) as client:
            client.delete_topics([own.topic(MODELS)])
        reason = eventually(follower.not_caught_up, timeout_s=30)
        assert reason == f"topic {own.topic(MODELS)} does not exist"
        ensure_topics(own)
        eventually(lambda: follower.not_caught_up() is None, timeout_s=30)
        assert lines[-1]["event"] == "topic_made_anew"
    said = [(line["event"], line["log_level"]) for line in lines if line["event"].startswith("topic_")]
    assert said == [("topic_missing", "warning"), ("topic_made_anew", "warning")]
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

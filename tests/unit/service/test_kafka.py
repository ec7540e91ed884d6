"""Production that is acknowledged as a whole, reads of compacted topics, and a repair, against clients in memory."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from service import kafka as service_kafka
from service.kafka import OutgoingRecord, keep_joining, produce_all, read_compacted
from service.settings import Settings

SETTINGS = Settings(kafka_bootstrap="broker:9092", topic_prefix="t-")


class Fetched(NamedTuple):
    """One record as a consumer gives it."""

    partition: int
    key: bytes | None
    value: bytes | None


class Acknowledged(NamedTuple):
    """Where a record was written."""

    partition: int
    offset: int


class FutureInMemory:
    """An acknowledgement that is there, or an error."""

    def __init__(self, outcome: Acknowledged | Exception) -> None:
        self.outcome = outcome

    def get(self, timeout: float) -> Acknowledged:
        """Return the acknowledgement or raise the error."""
        assert timeout > 0
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class ProducerInMemory:
    """A producer that keeps what it was given and refuses the keys it is told to."""

    def __init__(self, refused: set[bytes]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.refused = refused
        self.flushed = False

    def send(self, topic: str, **fields: Any) -> FutureInMemory:
        """Keep a record."""
        self.sent.append({"topic": topic, **fields})
        refused = fields["key"] in self.refused
        return FutureInMemory(KafkaTimeoutError("no ack") if refused else Acknowledged(0, len(self.sent) - 1))

    def flush(self) -> None:
        """Remember the flush."""
        self.flushed = True


class ConsumerInMemory:
    """A consumer of one topic of two partitions whose log is given; a None in the log was removed by compaction."""

    logs: tuple[list[Fetched | None], ...] = ()
    asked_again = 0

    def __init__(self, **config: Any) -> None:
        assert "group_id" not in config
        self.positions: dict[TopicPartition, int] = {}

    def __enter__(self) -> "ConsumerInMemory":
        return self

    def __exit__(self, *_: object) -> None:
        """Keep nothing."""

    def partitions_for_topic(self, name: str) -> set[int] | None:
        """Return the partitions of the one topic."""
        return set(range(len(self.logs))) if name == "t-catalog" else None

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Take the partitions."""
        self.positions = dict.fromkeys(partitions, -1)

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Go to the start."""
        self.positions = dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the ends."""
        type(self).asked_again += 1
        return {partition: len(self.logs[partition.partition]) for partition in partitions}

    def position(self, partition: TopicPartition) -> int:
        """Return how far the partition was read."""
        return self.positions[partition]

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Fetched]]:
        """Return the next record of each partition that has one, stepping over what compaction removed."""
        assert timeout_ms > 0
        fetched = {}
        for partition, position in self.positions.items():
            rest = list(enumerate(self.logs[partition.partition]))[position:]
            found = next(((offset, record) for offset, record in rest if record is not None), None)
            if found is not None:
                self.positions[partition] = found[0] + 1
                fetched[partition] = [found[1]]
        return fetched


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> type[ConsumerInMemory]:
    """Let reads use the consumer in memory."""
    monkeypatch.setattr(service_kafka, "KafkaConsumer", ConsumerInMemory)
    monkeypatch.setattr(service_kafka, "wait_for_listener", lambda _settings, _wait: None)
    monkeypatch.setattr(ConsumerInMemory, "asked_again", 0)
    return ConsumerInMemory


def test_every_record_is_acknowledged_in_order() -> None:
    """The answer says where each record landed."""
    producer = ProducerInMemory(set())
    records = [
        OutgoingRecord("catalog", b"1", key=b"a", headers=(("stage", b"x"),)),
        OutgoingRecord("catalog", None, key=b"b", partition=3),
    ]
    assert produce_all(producer, records) == [(0, 0), (0, 1)]
    assert producer.flushed
    assert producer.sent[0] == {
        "topic": "catalog", "value": b"1", "key": b"a", "headers": [("stage", b"x")], "partition": None,
    }  # fmt: skip
    assert (producer.sent[1]["value"], producer.sent[1]["partition"]) == (None, 3)


def test_one_refused_record_fails_the_whole() -> None:
    """No caller can take a part for the whole."""
    producer = ProducerInMemory({b"b"})
    with pytest.raises(KafkaTimeoutError):
        produce_all(producer, [OutgoingRecord("catalog", b"1", key=key) for key in (b"a", b"b", b"c")])


def test_the_newest_value_of_each_key_is_kept(
    consumer: type[ConsumerInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later records replace earlier ones, tombstones remove, records without a key say nothing."""
    logs = (
        [Fetched(0, b"a", b"1"), Fetched(0, b"b", b"1"), Fetched(0, b"a", b"2"), Fetched(0, b"b", None)],
        [Fetched(1, b"c", b"1"), Fetched(1, None, b"?")],
    )
    monkeypatch.setattr(consumer, "logs", logs)
    assert read_compacted(SETTINGS, "catalog") == {(0, b"a"): b"2", (1, b"c"): b"1"}


def test_an_empty_topic_is_read_at_once(consumer: type[ConsumerInMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there is an answer."""
    monkeypatch.setattr(consumer, "logs", ([], []))
    assert read_compacted(SETTINGS, "catalog") == {}


def test_holes_in_a_compacted_log_do_not_stop_the_read(
    consumer: type[ConsumerInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even the last records were compacted away, the read ends once Kafka answers that nothing follows."""
    monkeypatch.setattr(service_kafka, "SILENCE_S", 0.0)
    monkeypatch.setattr(consumer, "logs", ([None, Fetched(0, b"a", b"1"), None, None],))
    assert read_compacted(SETTINGS, "catalog") == {(0, b"a"): b"1"}
    assert consumer.asked_again == 2


def test_an_unknown_topic_is_refused(consumer: type[ConsumerInMemory]) -> None:
    """A topic that is not there is not an empty one."""
    assert consumer.logs == ()
    with pytest.raises(Exception, match="does not know the topic t-models"):
        read_compacted(SETTINGS, "models")


@pytest.mark.parametrize(("rejoining", "asked"), [(True, 1), (False, 0)])
def test_a_join_in_progress_is_taken_up_and_a_settled_group_left_alone(rejoining: bool, asked: int) -> None:
    """Only a member that is in the middle of joining asks again."""
    calls: list[None] = []
    coordinator = SimpleNamespace(rejoining=rejoining, request_rejoin=lambda: calls.append(None))
    keep_joining(SimpleNamespace(_coordinator=coordinator))
    assert len(calls) == asked


def test_a_consumer_without_a_group_is_left_alone() -> None:
    """A reader that assigns its own partitions has no coordinator to ask."""
    keep_joining(SimpleNamespace(_coordinator=None))

"""Production that is acknowledged as a whole, a read of what is not there, and a repair, against clients in memory."""

from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import pytest
from kafka.errors import KafkaTimeoutError

from contracts.errors import DependencyDown
from service import kafka as service_kafka
from service.kafka import OutgoingRecord, keep_joining, newest_records, produce_all
from service.settings import Settings

SETTINGS = Settings(kafka_bootstrap="broker:9092", topic_prefix="t-")


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


class EmptyCluster:
    """A consumer of a cluster that has no topic."""

    def __init__(self, **config: Any) -> None:
        assert "group_id" not in config

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep nothing."""

    def partitions_for_topic(self, _name: str) -> None:
        """Know no topic."""


def test_an_unknown_topic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic that is not there is not an empty one."""
    monkeypatch.setattr(service_kafka, "KafkaConsumer", EmptyCluster)
    monkeypatch.setattr(service_kafka, "wait_for_listener", lambda _settings, _wait: None)
    with pytest.raises(DependencyDown, match="does not know the topic t-models"):
        newest_records(SETTINGS, "models", 1, timeout_s=1.0)


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

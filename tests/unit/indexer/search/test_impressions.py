"""Impressions on their way to Kafka: never in the shopper's way, bounded, and what is lost is counted."""

import threading
from typing import Any

import pytest
import structlog.testing
from kafka.errors import KafkaTimeoutError
from prometheus_client import REGISTRY

from contracts import wire
from contracts.events import SHOP_EVENT, Impression
from indexer.search import impressions
from indexer.search.impressions import ImpressionWriter
from service.health import Health
from service.settings import Settings
from tests.support.poll import eventually


def impression(number: int) -> Impression:
    """Return an impression."""
    return Impression(
        type="impression",
        event_id=f"i{number}",
        event_time=1_795_196_600_000,
        session_id="k3",
        search_id=f"s{number}",
        query="fridge",
        slots=(),
    )


class Future:
    """What a producer returns: settles at once."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def add_callback(self, callback: Any) -> None:
        """Tell of the acknowledgement."""
        if self._error is None:
            callback(object())

    def add_errback(self, errback: Any) -> None:
        """Tell of the failure."""
        if self._error is not None:
            errback(self._error)


class Producer:
    """A producer that may block, refuse or fail."""

    def __init__(self, **_config: Any) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.may_send = threading.Event()
        self.may_send.set()
        self.sending = threading.Event()
        self.refusal: Exception | None = None
        self.failure: Exception | None = None
        self.unfinished: Exception | None = None
        self.closed = False

    def send(self, topic: str, *, value: bytes, key: bytes) -> Future:
        """Take a record, once allowed."""
        self.sending.set()
        self.may_send.wait(10)
        if self.refusal is not None:
            raise self.refusal
        self.sent.append((topic, value, key))
        return Future(self.failure)

    def close(self, timeout: float) -> None:
        """Close, or fail as the real one does while records are not acknowledged."""
        if self.unfinished is not None:
            raise self.unfinished
        self.closed = timeout > 0


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    """The producer that the writer makes."""
    Health("search")
    made = Producer()
    monkeypatch.setattr(impressions, "KafkaProducer", lambda **_config: made)
    return made


SETTINGS = Settings(kafka_bootstrap="nowhere:1", topic_prefix="shop-")


def counted(outcome: str) -> float:
    """Return how many impressions had an outcome so far."""
    return REGISTRY.get_sample_value("millrace_impressions_total", {"outcome": outcome}) or 0.0


def test_impressions_are_sent_in_order_under_their_search(producer: Producer) -> None:
    """What was taken before the stop is sent, acknowledged and counted."""
    before = counted("written")
    writer = ImpressionWriter(SETTINGS)
    writer.start()
    for number in range(3):
        writer.send(impression(number))
    writer.close()
    assert [(topic, key) for topic, _, key in producer.sent] == [
        ("shop-search-events", b"s0"),
        ("shop-search-events", b"s1"),
        ("shop-search-events", b"s2"),
    ]
    assert wire.decode(producer.sent[0][1], SHOP_EVENT) == impression(0)
    assert producer.closed
    assert counted("written") == before + 3


def test_a_kafka_that_blocks_blocks_no_search_and_fills_no_memory(producer: Producer) -> None:
    """`send` returns at once; beyond the bound impressions are lost and counted."""
    before = counted("lost")
    writer = ImpressionWriter(SETTINGS, most_waiting=2)
    producer.may_send.clear()
    writer.start()
    writer.send(impression(0))
    assert producer.sending.wait(5)
    for number in range(1, 6):
        writer.send(impression(number))
    assert counted("lost") == before + 3
    producer.may_send.set()
    writer.close()
    assert [key for _, _, key in producer.sent] == [b"s0", b"s1", b"s2"]


@pytest.mark.parametrize("attribute", ["refusal", "failure"])
def test_what_kafka_does_not_take_is_counted_and_the_next_one_is_sent(producer: Producer, attribute: str) -> None:
    """A record refused or not acknowledged ends neither the thread nor the service."""
    before = counted("lost"), counted("written")
    writer = ImpressionWriter(SETTINGS)
    setattr(producer, attribute, KafkaTimeoutError("no broker"))
    writer.start()
    writer.send(impression(0))
    assert producer.sending.wait(5)
    writer.close()
    assert (counted("lost"), counted("written")) == (before[0] + 1, before[1])


def test_a_stop_ends_though_kafka_takes_nothing_and_says_how_many_are_lost(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a full queue nor a producer that hangs holds the stop up: what waits is given up after the grace."""
    monkeypatch.setattr(impressions, "FLUSH_S", 0.01)
    before, written = counted("lost"), counted("written")
    producer.may_send.clear()
    producer.unfinished = KafkaTimeoutError("Timeout waiting for future")
    writer = ImpressionWriter(SETTINGS, most_waiting=2)
    writer.start()
    writer.send(impression(0))
    assert producer.sending.wait(5)
    writer.send(impression(1))
    writer.send(impression(2))
    with structlog.testing.capture_logs() as lines:
        writer.close()
    assert [(line["event"], line["impressions"]) for line in lines] == [("impressions_lost_at_stop", 3)]
    assert counted("lost") == before + 3
    producer.may_send.set()
    eventually(lambda: counted("written") == written + 3, what="the thread has counted its last impression")

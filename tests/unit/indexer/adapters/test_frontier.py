"""The frontier of a topic: what was acknowledged before the question has been read when the answer comes."""

import threading
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaProducer

from contracts.errors import DependencyDown, InvariantError, TransientError
from contracts.topics import PRODUCT_VECTORS
from indexer.adapters import frontier
from indexer.adapters.frontier import Frontier
from service.follow import TopicFollower
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings
from tests.support.poll import eventually

SettingsFactory = Callable[..., Settings]

pytestmark = pytest.mark.kafka


@pytest.fixture
def producer(two_partitions: Settings) -> Iterator[KafkaProducer]:
    """A producer."""
    client = KafkaProducer(**producer_config(two_partitions))
    yield client
    client.close()


def test_what_was_acknowledged_before_has_been_read(
    two_partitions: Settings, producer: KafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, one record after the other."""
    monkeypatch.setattr(frontier, "READ_WITHIN_S", 60.0)
    seen: list[bytes] = []
    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, lambda key, _value, _timestamp_ms: seen.append(key))
    reached = Frontier(two_partitions, PRODUCT_VECTORS, follower)
    follower.start()
    assert follower.caught_up.wait(60)
    reached.reach()
    for number in range(20):
        key = b"P-%d" % number
        produce_all(producer, [OutgoingRecord(two_partitions.topic(PRODUCT_VECTORS), b"x", key=key)])
        reached.reach()
        assert seen[-1] == key
    reached.close()
    follower.stop()


def test_a_follower_that_does_not_get_there_is_said(
    two_partitions: Settings, producer: KafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks tries again; nothing is taken for read."""
    monkeypatch.setattr(frontier, "READ_WITHIN_S", 0.05)
    go_on = threading.Event()

    def hang(_key: bytes, _value: bytes | None, _timestamp_ms: int) -> None:
        """Take a record when told."""
        go_on.wait(30)

    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, hang)
    produce_all(producer, [OutgoingRecord(two_partitions.topic(PRODUCT_VECTORS), b"x", key=b"P-1")])
    follower.start()
    reached = Frontier(two_partitions, PRODUCT_VECTORS, follower)
    with pytest.raises(TransientError, match="could not be read to its end"):
        reached.reach()
    go_on.set()
    reached.close()
    follower.stop()


def test_what_ended_a_follower_is_said(
    two_partitions: Settings, producer: KafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will never get there: whoever waits must not try again for ever."""
    monkeypatch.setattr(frontier, "READ_WITHIN_S", 0.05)

    def refuse(_key: bytes, _value: bytes | None, _timestamp_ms: int) -> None:
        """Take no record."""
        raise InvariantError("cannot be applied", fix="none")

    follower = TopicFollower(two_partitions, PRODUCT_VECTORS, refuse)
    produce_all(producer, [OutgoingRecord(two_partitions.topic(PRODUCT_VECTORS), b"x", key=b"P-1")])
    follower.start()
    eventually(lambda: follower.failure is not None, timeout_s=60, what="the follower ended")
    reached = Frontier(two_partitions, PRODUCT_VECTORS, follower)
    with pytest.raises(InvariantError, match="cannot be applied"):
        reached.reach()
    reached.close()
    follower.stop()


def test_a_topic_that_is_not_there_is_said(kafka_settings: SettingsFactory) -> None:
    """Its end is unknown, not 0."""
    settings = kafka_settings()
    follower = TopicFollower(settings, PRODUCT_VECTORS, lambda _key, _value, _timestamp_ms: None)
    reached = Frontier(settings, PRODUCT_VECTORS, follower)
    with pytest.raises(DependencyDown, match="does not know the topic"):
        reached.reach()
    reached.close()

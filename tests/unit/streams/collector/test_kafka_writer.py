"""What the writer does with each way in which Kafka fails to acknowledge."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from aiokafka import errors

from contracts.errors import DependencyDown, MillraceError, UsageError
from service.settings import Settings
from streams.collector import kafka_writer
from streams.collector.decisions import OutgoingRecord
from streams.collector.kafka_writer import STALE_AFTER_S, KafkaWriter
from streams.collector.ports import NotAcknowledged
from tests.support.poll import eventually_async

RECORDS = [OutgoingRecord("search-events", b"s1", b"1"), OutgoingRecord("search-events", b"s2", b"2")]
SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1", topic_prefix="t.")


class ScriptedProducer:
    """Stands for aiokafka's producer; each acknowledgement goes as `outcome` says."""

    outcome: BaseException | str = "acknowledged"
    sent: list[tuple[str, bytes, bytes]]

    def __init__(self, **_config: Any) -> None:
        self.sent = []
        self.client = self
        self.metadata_is_there = True

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Flush for ever where Kafka is silent."""
        if self.outcome == "silence":
            await asyncio.Event().wait()

    async def force_metadata_update(self) -> bool:
        """Answer the probe."""
        return self.metadata_is_there

    async def send(self, topic: str, *, value: bytes, key: bytes) -> "asyncio.Future[None]":
        """Take a record."""
        self.sent.append((topic, key, value))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if isinstance(self.outcome, BaseException):
            future.set_exception(self.outcome)
        elif self.outcome == "acknowledged":
            future.set_result(None)
        return future


class HandClock:
    """A clock that a test moves."""

    now_s = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    """Give the writer's clock."""
    return HandClock()


@pytest.fixture
async def writer(monkeypatch: pytest.MonkeyPatch, clock: HandClock) -> AsyncIterator[KafkaWriter]:
    """Give a started writer on a scripted producer."""
    monkeypatch.setattr(kafka_writer, "AIOKafkaProducer", ScriptedProducer)
    monkeypatch.setattr(kafka_writer, "STOP_TIMEOUT_S", 0.05)
    monkeypatch.setattr(kafka_writer, "PROBE_INTERVAL_S", 0.01)
    writer = KafkaWriter(SETTINGS, ack_timeout_s=0.05, monotonic_s=clock)
    await writer.start()
    yield writer
    await writer.stop()


def producer_of(writer: KafkaWriter) -> ScriptedProducer:
    """Return the scripted producer."""
    producer: ScriptedProducer = writer._producer
    return producer


async def test_every_record_goes_to_the_prefixed_topic_under_its_key(writer: KafkaWriter) -> None:
    """Keys and values are passed on as bytes, in order."""
    await writer.write(RECORDS)
    assert producer_of(writer).sent == [("t.search-events", b"s1", b"1"), ("t.search-events", b"s2", b"2")]
    assert writer.not_ready() is None


@pytest.mark.parametrize(
    "outcome",
    ["silence", errors.NotEnoughReplicasError(), errors.KafkaTimeoutError(), errors.MessageSizeTooLargeError()],
    ids=["silence", "too few copies", "timeout", "too large"],
)
async def test_a_failure_that_may_pass_fails_the_request_only(
    writer: KafkaWriter, outcome: BaseException | str
) -> None:
    """The caller is told after the time it is kept waiting; the writer goes on and recovers."""
    producer_of(writer).outcome = outcome
    with pytest.raises(NotAcknowledged):
        await writer.write(RECORDS)
    ended = asyncio.create_task(writer.failed())
    producer_of(writer).outcome = "acknowledged"
    await writer.write(RECORDS)
    assert not ended.done()
    ended.cancel()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.ProducerFenced(), DependencyDown),
        (errors.OutOfOrderSequenceNumber(), DependencyDown),
        (errors.KafkaError("Unexpected error during batch delivery"), DependencyDown),
        (errors.TopicAuthorizationFailedError("search-events"), UsageError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_a_failure_for_good_asks_for_the_end_of_the_process(
    writer: KafkaWriter, error: BaseException, kind: type[MillraceError]
) -> None:
    """A producer that can never write again must not answer 503 for ever."""
    producer_of(writer).outcome = error
    with pytest.raises(NotAcknowledged):
        await writer.write(RECORDS)
    assert isinstance(await asyncio.wait_for(writer.failed(), 5), kind)


async def test_an_outage_is_said_once_and_its_end_too(writer: KafkaWriter) -> None:
    """However many requests fail, the log has two lines."""
    with structlog.testing.capture_logs() as lines:
        producer_of(writer).metadata_is_there = False
        producer_of(writer).outcome = errors.NotEnoughReplicasError()
        for _ in range(3):
            with pytest.raises(NotAcknowledged):
                await writer.write(RECORDS)
        producer_of(writer).outcome = "acknowledged"
        producer_of(writer).metadata_is_there = True
        await writer.write(RECORDS)
    assert [line["event"] for line in lines] == ["Kafka lost", "Kafka answers again"]


async def test_readiness_follows_the_probe(writer: KafkaWriter, clock: HandClock) -> None:
    """Without traffic, Kafka's silence shows in readiness, and so does its return."""
    producer_of(writer).metadata_is_there = False
    clock.now_s += STALE_AFTER_S + 1
    assert writer.not_ready() == "Kafka has not answered for 9 s"
    producer_of(writer).metadata_is_there = True

    async def ready_again() -> bool:
        """Return whether nothing speaks against."""
        return writer.not_ready() is None

    await eventually_async(ready_again)


async def test_a_writer_that_has_not_started_is_not_ready() -> None:
    """Before the first connection there is nothing to write to."""
    assert KafkaWriter(SETTINGS).not_ready() == "not connected yet"


async def test_a_stop_does_not_wait_for_a_silent_kafka(writer: KafkaWriter) -> None:
    """The flush ends with the time that a clean end has, and says that it did not finish."""
    producer_of(writer).outcome = "silence"
    with structlog.testing.capture_logs() as lines:
        await asyncio.wait_for(writer.stop(), 5)
    assert [line["event"] for line in lines] == ["Kafka did not take the last records in time"]

"""What the writer does with each way in which Kafka fails to acknowledge."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from aiokafka import errors

from contracts.errors import DependencyDown, MillraceError, TransientError, UsageError
from service.settings import Settings
from streams.collector import kafka_writer
from streams.collector.intake import OutgoingRecord
from streams.collector.kafka_writer import PATIENCE_S, KafkaWriter
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
        self.metadata: bool | None = True
        self.probes = 0

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Flush for ever where Kafka is silent."""
        if self.outcome == "silence":
            await asyncio.Event().wait()

    async def force_metadata_update(self) -> bool:
        """Answer the probe, or, if there is nothing to say, never."""
        self.probes += 1
        if self.metadata is None:
            await asyncio.Event().wait()
        return bool(self.metadata)

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
    monkeypatch.setattr(kafka_writer, "PROBE_TIMEOUT_S", 0.01)
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
    with pytest.raises(TransientError):
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
    with pytest.raises(TransientError):
        await writer.write(RECORDS)
    assert isinstance(await asyncio.wait_for(writer.failed(), 5), kind)


async def probed(writer: KafkaWriter) -> None:
    """Wait until a probe that began from now on has had its answer."""
    producer = producer_of(writer)
    begun = producer.probes

    async def later() -> bool:
        """Return whether the probe after the next one began."""
        return producer.probes >= begun + 2

    await eventually_async(later, interval_s=0.005)


@pytest.mark.parametrize("metadata", [False, None], ids=["refused", "hanging"])
async def test_a_silent_kafka_is_one_line_and_after_a_while_not_ready(
    writer: KafkaWriter, clock: HandClock, metadata: bool | None
) -> None:
    """Without traffic, an outage shows in the log at once and in readiness once patience is over; so does its end."""
    with structlog.testing.capture_logs() as lines:
        producer_of(writer).metadata = metadata
        await probed(writer)
        clock.now_s += PATIENCE_S - 1
        assert writer.not_ready() is None
        clock.now_s += 1
        assert writer.not_ready() == "kafka does not answer: no broker answers"
        producer_of(writer).metadata = True
        await probed(writer)
        assert writer.not_ready() is None
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_back"]


async def test_writes_that_keep_failing_are_one_outage_although_a_broker_answers(
    writer: KafkaWriter, clock: HandClock
) -> None:
    """Neither a broker's metadata nor a write to another partition in between ends the outage or fills the log."""
    with structlog.testing.capture_logs() as lines:
        for outcome in (errors.NotEnoughReplicasError(), "acknowledged") * 3:
            producer_of(writer).outcome = outcome
            if outcome == "acknowledged":
                await writer.write(RECORDS)
            else:
                with pytest.raises(TransientError):
                    await writer.write(RECORDS)
        clock.now_s += PATIENCE_S
        assert writer.not_ready() is not None
        await probed(writer)
        assert writer.not_ready() is None
    assert [line["event"] for line in lines] == ["dependency_down", "dependency_back"]


async def test_a_writer_that_has_not_started_is_not_ready() -> None:
    """Before the first connection there is nothing to write to."""
    assert KafkaWriter(SETTINGS).not_ready() == "not connected yet"


async def test_a_stop_does_not_wait_for_a_silent_kafka(writer: KafkaWriter) -> None:
    """The flush ends with the time that a clean end has, and says that it did not finish."""
    producer_of(writer).outcome = "silence"
    with structlog.testing.capture_logs() as lines:
        await asyncio.wait_for(writer.stop(), 5)
    assert [line["event"] for line in lines] == ["flush_unfinished"]

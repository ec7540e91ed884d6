"""Writes to Kafka and waits for every acknowledgement.

The producer is idempotent, so it repeats a batch until Kafka takes it. A caller is not kept waiting for that: after
`ACK_TIMEOUT_S` the request fails and its sender tries again with the same ids. What Kafka then has twice, the join
counts once. A producer that can never write again (its identity fenced off, its rights gone) ends the process.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer, errors
from aiokafka.errors import KafkaError

from contracts.errors import DependencyDown, MillraceError, TransientError
from contracts.telemetry import Process
from service.health import Dependency
from service.kafka import aiokafka_producer_config, expected_kafka_error, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings
from streams.collector.intake import OutgoingRecord

ACK_TIMEOUT_S: Final = 8.0
PROBE_INTERVAL_S: Final = 2.0
PROBE_TIMEOUT_S: Final = 4.0
PATIENCE_S: Final = 8.0
"""How long Kafka may be away before no traffic is asked for: a broker's restart must not take every collector out."""
STOP_TIMEOUT_S: Final = 5.0
MAX_BATCH_BYTES: Final = 256 * 1024  # a catalogue load must not wait for a round trip per 16 KiB
_FINAL: Final = (
    errors.ProducerFenced,
    errors.ProducerClosed,
    errors.OutOfOrderSequenceNumber,
    errors.InvalidProducerEpoch,
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)


class KafkaWriter:
    """The collector's producer.

    Args:
        settings: the settings in force.
        ack_timeout_s: how long a caller is kept waiting.
        monotonic_s: clock that decides how long Kafka has been away.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ack_timeout_s = ack_timeout_s
        self._kafka = Dependency(
            Process.KAFKA, meaning="every request is answered 503", patience_s=PATIENCE_S, monotonic_s=monotonic_s
        )
        self._producer: Any = None
        self._probing: asyncio.Task[None] | None = None
        self._writes_failed = False
        self._failure: asyncio.Future[MillraceError] | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            MillraceError: Kafka cannot be reached or refuses us.
        """
        self._failure = asyncio.get_running_loop().create_future()
        config = {**aiokafka_producer_config(self._settings), "max_batch_size": MAX_BATCH_BYTES}
        self._producer = AIOKafkaProducer(**config)
        with translate_kafka_errors(self._settings):
            await self._producer.start()
        self._kafka.answered()
        self._probing = asyncio.create_task(self._probe())

    async def failed(self) -> MillraceError:
        """Wait until this producer can never write again; return why."""
        if self._failure is None:
            raise RuntimeError("start first")
        return await asyncio.shield(self._failure)

    async def write(self, records: Sequence[OutgoingRecord]) -> None:
        """Return once Kafka acknowledged every record.

        Raises:
            TransientError: not within the time a caller is kept waiting.
        """
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self._acknowledged([await self._send(record) for record in records])
        except (KafkaError, TimeoutError) as error:
            self._note_failure(error)
            raise TransientError(f"Kafka did not acknowledge ({type(error).__name__})") from error

    async def stop(self) -> None:
        """Flush what is under way, as long as the time for a clean end allows, and disconnect."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._producer is not None:
            try:
                await asyncio.wait_for(self._producer.stop(), STOP_TIMEOUT_S)
            except (KafkaError, TimeoutError) as error:
                get_logger().warning("flush_unfinished", error=type(error).__name__)

    def not_ready(self) -> str | None:
        """Return the reason why Kafka cannot be written to now, or None; the form of a health check."""
        return "not connected yet" if self._probing is None else self._kafka.not_ready()

    async def _send(self, record: OutgoingRecord) -> "asyncio.Future[Any]":
        """Hand one record to the producer; the key decides on the partition (murmur2, as everywhere)."""
        topic = self._settings.topic(record.topic)
        acknowledgement: asyncio.Future[Any] = await self._producer.send(topic, value=record.value, key=record.key)
        return acknowledgement

    async def _acknowledged(self, pending: Iterable["asyncio.Future[Any]"]) -> None:
        """Wait for all acknowledgements; raise the first refusal once none is left open."""
        outcomes = await asyncio.gather(*pending, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _probe(self) -> None:
        """Ask Kafka for its metadata now and then, so that readiness does not depend on traffic."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            writes_failed, self._writes_failed = self._writes_failed, False
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    answers = await self._producer.client.force_metadata_update()
            except TimeoutError:
                answers = False
            if not answers:
                self._kafka.failed("no broker answers")
            elif not writes_failed:  # brokers may answer although some partition cannot be written to
                self._kafka.answered()

    def _note_failure(self, error: BaseException) -> None:
        """Note a failed write; if no later one can succeed, ask for the end of the process."""
        self._writes_failed = True
        meaning = expected_kafka_error(error, self._settings)
        self._kafka.failed(meaning or f"a write was not acknowledged ({error!r})")
        if _is_final(error) and self._failure is not None and not self._failure.done():
            self._failure.set_result(meaning or DependencyDown(f"Kafka refuses to be written to ({error!r})"))


def _is_final(error: BaseException) -> bool:
    """Return whether no later write of this producer can succeed; a bare KafkaError means that its sender died."""
    return isinstance(error, _FINAL) or type(error) is KafkaError

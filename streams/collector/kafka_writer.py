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

from contracts.errors import DependencyDown, MillraceError
from contracts.telemetry import Process
from service import metrics
from service.kafka import aiokafka_producer_config, expected_kafka_error, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings
from streams.collector.decisions import OutgoingRecord
from streams.collector.ports import NotAcknowledged

ACK_TIMEOUT_S: Final = 8.0
PROBE_INTERVAL_S: Final = 2.0
STALE_AFTER_S: Final = 8.0
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
        monotonic_s: clock that decides how long Kafka has been silent.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._ack_timeout_s = ack_timeout_s
        self._producer: Any = None
        self._probing: asyncio.Task[None] | None = None
        self._answered_s: float | None = None
        self._is_up = True
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
        self._answered_s = self._monotonic_s()
        self._probing = asyncio.create_task(self._probe())

    async def failed(self) -> MillraceError:
        """Wait until this producer can never write again; return why."""
        if self._failure is None:
            raise RuntimeError("start first")
        return await asyncio.shield(self._failure)

    async def write(self, records: Sequence[OutgoingRecord]) -> None:
        """Return once Kafka acknowledged every record.

        Raises:
            NotAcknowledged: not within the time a caller is kept waiting.
        """
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self._acknowledged([await self._send(record) for record in records])
        except (KafkaError, TimeoutError) as error:
            self._note_failure(error)
            raise NotAcknowledged(type(error).__name__) from error
        self._note_answer()

    async def stop(self) -> None:
        """Flush what is under way, as long as the time for a clean end allows, and disconnect."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._producer is not None:
            try:
                await asyncio.wait_for(self._producer.stop(), STOP_TIMEOUT_S)
            except (KafkaError, TimeoutError) as error:
                get_logger().warning("Kafka did not take the last records in time", error=type(error).__name__)

    def not_ready(self) -> str | None:
        """Return the reason why Kafka cannot be written to now, or None; the form of a health check."""
        if self._answered_s is None:
            return "not connected yet"
        silent_s = self._monotonic_s() - self._answered_s
        return None if silent_s <= STALE_AFTER_S else f"Kafka has not answered for {silent_s:.0f} s"

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
            if await self._producer.client.force_metadata_update():
                self._note_answer()
            else:
                self._note_silence("no broker answers")

    def _note_answer(self) -> None:
        """Note that Kafka answers; say so where it had not."""
        self._answered_s = self._monotonic_s()
        if not self._is_up:
            get_logger().info("Kafka answers again")
        self._is_up = True
        metrics.DEPENDENCY_UP.labels(Process.KAFKA).set(1)

    def _note_silence(self, cause: str) -> None:
        """Note that Kafka does not do its work; say so once per outage."""
        if self._is_up:
            get_logger().warning("Kafka lost", error=cause, meaning="every request is answered 503")
        self._is_up = False
        metrics.DEPENDENCY_UP.labels(Process.KAFKA).set(0)

    def _note_failure(self, error: BaseException) -> None:
        """Note a failed write; where no later one can succeed, ask for the end of the process."""
        self._note_silence(type(error).__name__)
        if _is_final(error) and self._failure is not None and not self._failure.done():
            meaning = expected_kafka_error(error, self._settings)
            self._failure.set_result(meaning or DependencyDown(f"Kafka refuses to be written to ({error!r})"))


def _is_final(error: BaseException) -> bool:
    """Return whether no later write of this producer can succeed; a bare KafkaError means that its sender died."""
    return isinstance(error, _FINAL) or type(error) is KafkaError

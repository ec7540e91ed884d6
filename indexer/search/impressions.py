"""Writes what was shown to `search-events`; the shopper does not wait for it.

Impressions wait in memory, bounded, until Kafka acknowledged them, and are flushed at a stop. What cannot be kept or
written is counted and logged: the shopper's later events then become orphans, which the ledger shows.
"""

import asyncio
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from contracts import wire
from contracts.events import Impression
from contracts.topics import SEARCH_EVENTS
from service import metrics
from service.kafka import aiokafka_producer_config, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

log = get_logger()
MOST_WAITING: Final = 20_000
FLUSH_S: Final = 10.0


class ImpressionWriter:
    """Sends impressions in the background.

    Args:
        settings: of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic(SEARCH_EVENTS)
        self._waiting: set[asyncio.Task[None]] = set()
        self._producer: AIOKafkaProducer | None = None
        self.failing = False
        """Whether the last impression could not be written."""

    async def start(self) -> None:
        """Connect.

        Raises:
            DependencyDown: Kafka does not answer.
        """
        with translate_kafka_errors(self._settings):
            self._producer = AIOKafkaProducer(**aiokafka_producer_config(self._settings))
            await self._producer.start()

    def write(self, impression: Impression) -> None:
        """Take one impression over; returns at once."""
        if len(self._waiting) >= MOST_WAITING:
            self._lost("too many wait for Kafka")
            return
        task = asyncio.create_task(self._send(impression))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def stop(self) -> None:
        """Give what waits a last chance, then disconnect."""
        if self._waiting:
            _, late = await asyncio.wait(self._waiting, timeout=FLUSH_S)
            for task in late:
                task.cancel()
                self._lost("stopped before Kafka acknowledged")
        if self._producer is not None:
            await self._producer.stop()

    async def _send(self, impression: Impression) -> None:
        assert self._producer is not None  # noqa: S101 - `start` is awaited before requests come in
        value, key = wire.encode(impression), impression.search_id.encode()
        try:
            await self._producer.send_and_wait(self._topic, value, key=key)
        except KafkaError as exc:
            self._lost(str(exc) or type(exc).__name__)
        else:
            metrics.IMPRESSIONS.labels(outcome="written").inc()
            self.failing = False

    def _lost(self, why: str) -> None:
        metrics.IMPRESSIONS.labels(outcome="lost").inc()
        if not self.failing:
            log.error("impressions_lost", error=why, fix="bring Kafka back; later events of these searches are orphans")
        self.failing = True

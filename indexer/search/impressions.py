"""Impressions: what was served, complete and at once, written by this service so that the events close the loop.

The shopper does not wait for Kafka, and this is what it costs. An impression stays in memory until Kafka has
acknowledged it, at most `MOST_WAITING` wait to be sent; those beyond, and those that Kafka has not taken within
a minute, are lost, counted and said once per outage. A stop waits `FLUSH_S` for Kafka; a SIGKILL loses what was not
acknowledged yet, a few milliseconds' worth. Clicks on a lost impression end as orphans, never as pairs.
"""

import os
import queue
import threading
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID

from kafka import KafkaProducer
from kafka.errors import KafkaError

from contracts import wire
from contracts.arms import anonymous_session
from contracts.events import BY_RELEVANCE, Impression, Ranking, Slot, person_id
from contracts.http import SearchAnswer, SearchRequest
from contracts.telemetry import Process
from contracts.topics import SEARCH_EVENTS
from service import metrics
from service.follow import PATIENCE_S
from service.health import Dependency
from service.kafka import producer_config, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

MOST_WAITING: Final = 10_000
FLUSH_S: Final = 8.0
SURFACE: Final = "search"


def time_ordered_id(time_ms: int, random: bytes | None = None) -> str:
    """Return a UUID of version 7 (RFC 9562): such ids sort by time.

    Args:
        time_ms: epoch ms that its first 48 bits hold.
        random: 10 bytes; drawn from the system if None.

    >>> time_ordered_id(1_795_196_006_756, bytes(10))
    '01a1fa05-3164-7000-8000-000000000000'
    """
    tail = int.from_bytes(os.urandom(10) if random is None else random, "big")
    high, low = tail >> 68, tail & (2**62 - 1)
    return str(UUID(int=time_ms << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))


class ImpressionLog(Protocol):
    """Where impressions go."""

    def send(self, impression: Impression) -> None:
        """Take an impression and return at once."""
        ...


def impression_of(request: SearchRequest, answer: SearchAnswer, *, query: str, person_key: bytes) -> Impression:
    """Return the impression of an answer.

    Args:
        request: what was asked.
        answer: what was served.
        query: as it was searched for.
        person_key: replaces the client's id, as the collector does.
    """
    client_id = None if request.client_id is None else person_id(request.client_id, person_key)
    nobody = request.session_id is None and client_id is None
    return Impression(
        type="impression",
        event_id=time_ordered_id(answer.search_time),
        event_time=answer.search_time,
        session_id=anonymous_session(answer.search_id) if nobody else request.session_id,
        client_id=client_id,
        locale=request.filters.locale,
        surface=SURFACE,
        search_id=answer.search_id,
        query=query,
        page=answer.page,
        total_results=answer.total if answer.total_relation == "eq" else None,
        slots=tuple(
            Slot(
                product_id=result.product_id,
                position=result.position,
                in_stock=result.in_stock,
                price=result.price,
                score=result.score,
                parent_id=result.parent_id,
                team=result.team,
            )
            for result in answer.results
        ),
        ranking=Ranking(
            query_release=answer.query_release,
            product_release=answer.product_release,
            arm=answer.arm,
            exploration=answer.exploration,
            sort=None if answer.sort == BY_RELEVANCE else answer.sort,
            no_good_match=answer.no_good_match,
        ),
    )


class ImpressionWriter:
    """Sends impressions to `search-events` from a thread of its own.

    Args:
        settings: of the deployment.
        most_waiting: how many may wait to be sent.
    """

    def __init__(self, settings: Settings, *, most_waiting: int = MOST_WAITING) -> None:
        self._topic = settings.topic(SEARCH_EVENTS)
        self._waiting: queue.Queue[Impression | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._kafka = Dependency(Process.KAFKA, meaning="impressions are lost", patience_s=PATIENCE_S)
        self._unsettled = 0
        self._settling = threading.Condition()
        self.not_ready = self._kafka.not_ready
        with translate_kafka_errors(settings):
            self._producer = KafkaProducer(**producer_config(settings))

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def send(self, impression: Impression) -> None:
        """Take an impression and return at once; if too many wait it is lost, and counted."""
        with self._settling:
            self._unsettled += 1
        try:
            self._waiting.put_nowait(impression)
        except queue.Full:
            self._lost("too many impressions wait for Kafka")

    def close(self) -> None:
        """Wait some seconds until Kafka has acknowledged everything, and say how many impressions are lost."""
        with self._settling:
            self._settling.wait_for(lambda: not self._unsettled, FLUSH_S)
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        with suppress(KafkaError):  # it flushes once more and raises if it cannot
            self._producer.close(timeout=1)
        with self._settling:
            lost = self._unsettled
        if lost:
            metrics.IMPRESSIONS.labels("lost").inc(lost)
            get_logger().error("impressions_lost_at_stop", impressions=lost, fix="see whether Kafka answers")

    def _run(self) -> None:
        while (impression := self._waiting.get()) is not None:
            key = impression.search_id.encode()
            try:
                future = self._producer.send(self._topic, value=wire.encode(impression), key=key)
            except KafkaError as error:
                self._lost(str(error))
            else:
                future.add_callback(self._acknowledged)
                future.add_errback(lambda error: self._lost(str(error)))

    def _acknowledged(self, _metadata: object) -> None:
        self._kafka.answered()
        self._settle("written")

    def _lost(self, reason: str) -> None:
        self._kafka.failed(reason)
        self._settle("lost")

    def _settle(self, outcome: str) -> None:
        metrics.IMPRESSIONS.labels(outcome).inc()
        with self._settling:
            self._unsettled -= 1
            self._settling.notify_all()

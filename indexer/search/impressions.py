"""Impressions: what was served, complete and at once, written by this service so that the events close the loop.

The shopper does not wait for Kafka. What that costs is said here: an impression is held in memory until Kafka has
acknowledged it, at most `HELD` of them wait to be sent; those beyond, and those that Kafka has not taken within
a minute, are lost, counted and said once per outage. A stop waits `FLUSH_S` for Kafka and says how many it lost; a
SIGKILL loses what was not acknowledged yet, a few milliseconds' worth. Clicks on a lost impression end as orphans,
never as pairs.
"""

import queue
import threading
from contextlib import suppress
from typing import Final, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError

from contracts import wire
from contracts.events import Impression, Ranking, Slot, person_id
from contracts.http import SearchAnswer, SearchRequest
from contracts.topics import SEARCH_EVENTS
from indexer.search.ids import time_ordered_id
from service import metrics
from service.kafka import producer_config, translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings

HELD: Final = 10_000
FLUSH_S: Final = 8.0
SURFACE: Final = "search"
KAFKA_FIX: Final = "see whether Kafka answers: millrace doctor"


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
        session_id=f"anonymous-{answer.search_id}" if nobody else request.session_id,
        client_id=client_id,
        locale=request.filters.locale,
        surface=SURFACE,
        search_id=answer.search_id,
        query=query,
        total_results=answer.total,
        slots=tuple(
            Slot(
                product_id=result.product_id,
                position=result.position,
                in_stock=result.in_stock,
                price=result.price,
                score=result.score,
                parent_id=result.parent_id,
            )
            for result in answer.results
        ),
        ranking=Ranking(
            query_release=answer.query_release,
            product_release=answer.product_release,
            arm=answer.arm,
            exploration=answer.exploration,
        ),
    )


class ImpressionWriter:
    """Sends impressions to `search-events` from a thread of its own.

    Args:
        settings: of the deployment.
        held: how many may wait to be sent.
    """

    def __init__(self, settings: Settings, *, held: int = HELD) -> None:
        self._settings = settings
        self._topic = settings.topic(SEARCH_EVENTS)
        self._waiting: queue.Queue[Impression | None] = queue.Queue(held)
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._losing = False
        self._unsettled = 0
        self._settling = threading.Condition()
        with translate_kafka_errors(settings):
            self._producer = KafkaProducer(**producer_config(settings))

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def send(self, impression: Impression) -> None:
        """Take an impression and return at once; where too many wait it is lost, and counted."""
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
        with suppress(KafkaError):  # it flushes once more and raises where it cannot
            self._producer.close(timeout=1)
        with self._settling:
            lost = self._unsettled
        if lost:
            metrics.IMPRESSIONS.labels("lost").inc(lost)
            get_logger().error("impressions_lost_at_stop", impressions=lost, fix=KAFKA_FIX)

    def _run(self) -> None:
        while (impression := self._waiting.get()) is not None:
            key = impression.search_id.encode()
            try:
                future = self._producer.send(self._topic, value=wire.encode(impression), key=key)
            except KafkaError as error:
                self._lost(str(error))
            else:
                future.add_callback(self._acknowledged)
                future.add_errback(self._failed)

    def _acknowledged(self, _metadata: object) -> None:
        metrics.IMPRESSIONS.labels("written").inc()
        if self._losing:
            self._losing = False
            get_logger().info("impressions_written_again")
        self._settle()

    def _failed(self, error: BaseException) -> None:
        self._lost(str(error))

    def _lost(self, reason: str) -> None:
        metrics.IMPRESSIONS.labels("lost").inc()
        if not self._losing:
            self._losing = True
            get_logger().error("impressions_lost", error=reason, fix=KAFKA_FIX)
        self._settle()

    def _settle(self) -> None:
        """Note that the fate of one impression is known."""
        with self._settling:
            self._unsettled -= 1
            self._settling.notify_all()

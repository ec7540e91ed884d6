"""A site under test: produces seeded traffic to `search-events` from a thread, acknowledged record by record."""

import threading
import time
from collections.abc import Callable
from typing import Self

from kafka import KafkaProducer

from contracts.topics import SEARCH_EVENTS
from service.kafka import producer_config
from service.machine import epoch_ms
from service.settings import Settings
from tests.faults.traffic import Traffic
from tests.support.poll import eventually

STEP_S = 0.05


class ShopSite:
    """Sends traffic until it is told to finish.

    Args:
        settings: where to.
        traffic: what.
        clock: the shoppers' time, epoch milliseconds; it may be another day and run faster.
    """

    def __init__(self, settings: Settings, traffic: Traffic, *, clock: Callable[[], int] = epoch_ms) -> None:
        self._clock = clock
        self._topic = settings.topic(SEARCH_EVENTS)
        self._config = producer_config(settings)
        self._traffic = traffic
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shop-site", daemon=True)
        self.failure: BaseException | None = None
        self.acknowledged = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def wait_for_more(self, events: int) -> None:
        """Wait until so many more events have arrived."""
        goal = self.acknowledged + events
        eventually(lambda: self.acknowledged >= goal, timeout_s=60, what="events arrive")

    def finish(self) -> None:
        """Show no more lists, let the shoppers end their visits, and return when all is acknowledged."""
        self._closing.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.failure is None, repr(self.failure)

    def _run(self) -> None:
        """Send what is due, again and again."""
        try:
            with KafkaProducer(**self._config) as producer:
                while not self._closing.is_set() or self._traffic.waiting:
                    self._send_due(producer)
                    self._closing.wait(STEP_S) if not self._closing.is_set() else time.sleep(STEP_S)
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            self.failure = error

    def _send_due(self, producer: KafkaProducer) -> None:
        """Send what is due and wait for the acknowledgements."""
        now_ms = self._clock()
        due = self._traffic.until(now_ms, searching=not self._closing.is_set())
        futures = [producer.send(self._topic, value=one.value, key=one.key) for one in due]
        producer.flush()
        for future in futures:
            future.get(timeout=30)
        self.acknowledged += len(futures)

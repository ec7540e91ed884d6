"""Takes one snapshot per second in a thread of its own, and keeps the last one and its metrics."""

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import Gauge

from contracts.errors import InvariantError, MillraceError
from contracts.telemetry import Process
from millrace.watch.facts import KafkaFacts
from millrace.watch.observer import Observer, snapshot
from millrace.watch.releases import releases_report
from millrace.watch.scrape import Scraper, scrape_targets
from service import metrics
from service.health import Dependency
from service.machine import epoch_ms
from service.models import ModelsView
from service.settings import Settings

PERIOD_S: Final = 1.0
RETRY_S: Final = 2.0
STALE_AFTER_S: Final = 15.0
CATCH_UP_S: Final = 30.0
KAFKA_WAIT_S: Final = 3.0
"""How long one attempt waits for Kafka: the reason is to be seen soon, and attempts never end."""


class Sampler:
    """Looks at the deployment until it is stopped; a Kafka that goes away is waited for, and the rest is shown.

    Args:
        settings: the deployment to look at.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"dependency_wait_s": KAFKA_WAIT_S})
        self._targets = scrape_targets(settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._kafka = Dependency(Process.KAFKA, meaning="the page shows the processes alone")
        self._unknown: str | None = "no look taken yet"
        self._taken_at = time.monotonic()
        self._ended: MillraceError | None = None
        self.latest: dict[str, Any] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns once the clients are closed. Harmless when it was never started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def not_ready(self) -> str | None:
        """Return why the page shows nothing yet, not everything, or nothing current."""
        age_s = time.monotonic() - self._taken_at
        if self._unknown is None and age_s > STALE_AFTER_S:
            return f"the last look is {age_s:.0f} s old"
        return self._unknown

    def not_live(self) -> str | None:
        """Return a reason where looks will never come again; a Kafka that is away is no such reason."""
        return None if self._ended is None else self._ended.message

    def _run(self) -> None:
        try:
            with Scraper(self._targets) as scraper:
                while not self._stop.is_set():
                    self._look_until_failure(scraper)
        except Exception as error:
            self._ended = InvariantError(f"the sampler ended: {error!r}")
            raise

    def _look_until_failure(self, scraper: Scraper) -> None:
        try:
            with Observer(self._settings) as observer:
                observer.wait_caught_up(CATCH_UP_S)
                while not self._stop.is_set():
                    began = time.monotonic()
                    facts = observer.look()
                    self._kafka.answered()
                    self._show(facts, observer.models.look(), scraper)
                    self._stop.wait(max(0.0, PERIOD_S - (time.monotonic() - began)))
        except MillraceError as error:
            self._kafka.failed(error)
            self._show(KafkaFacts(ends={}, unknown={Process.KAFKA.value: error}), ModelsView(), scraper)
            self._stop.wait(RETRY_S)

    def _show(self, facts: KafkaFacts, models: ModelsView, scraper: Scraper) -> None:
        promise_s = self._settings.freshness_window_s
        view = snapshot(facts, releases_report(models), scraper.look(), at_ms=epoch_ms(), promise_s=promise_s)
        export(view)
        self.latest, self._taken_at = view, time.monotonic()
        self._unknown = next((f"{part} not known: {reason}" for part, reason in view["unknown"].items()), None)


def export(view: Mapping[str, Any]) -> None:
    """Set the gauges that a Prometheus server scrapes from the page; what is not known has no series."""
    for group, totals in view["lag"]["groups"].items():
        if totals["records"] is None:
            metrics.LAG_RECORDS.remove_by_labels({"group": group})
    for row in view["lag"]["partitions"]:
        metrics.LAG_RECORDS.labels(row["group"], row["topic"], str(row["partition"])).set(row["lag"])
    for ledger, terms in view["ledger"].items():
        _set(metrics.LEDGER_BALANCE, terms["balance"], ledger)
        for term, value in terms.items():
            if term != "balance":
                _set(metrics.LEDGER, sum(value.values()) if isinstance(value, Mapping) else value, ledger, term)


def _set(gauge: Gauge, value: int | None, *labels: str) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)

"""Takes one snapshot per second in a thread of its own, and keeps the last one and its metrics."""

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from contracts.errors import DependencyDown, InvariantError, MillraceError
from millrace.watch.observer import Observer
from millrace.watch.releases import releases_report
from millrace.watch.scrape import Scraper, scrape_targets
from millrace.watch.snapshot import snapshot
from service import metrics
from service.logging import get_logger
from service.settings import Settings

PERIOD_S: Final = 1.0
RETRY_S: Final = 2.0
STALE_AFTER_S: Final = 15.0
CATCH_UP_S: Final = 30.0
KAFKA_WAIT_S: Final = 3.0
"""How long one attempt waits for Kafka: the reason is to be seen soon, and attempts never end."""


class Sampler:
    """Looks at the deployment until it is stopped; a Kafka that goes away is waited for.

    Args:
        settings: the deployment to look at.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"dependency_wait_s": KAFKA_WAIT_S})
        self._targets = scrape_targets(settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.latest: dict[str, Any] | None = None
        self._failure: str | None = "no look taken yet"
        self._taken_at = time.monotonic()
        self._ended: MillraceError | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns once the clients are closed. Harmless when it was never started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def not_ready(self) -> str | None:
        """Return why the page shows nothing yet, or nothing current."""
        age_s = time.monotonic() - self._taken_at
        if self._failure is None and age_s > STALE_AFTER_S:
            return f"the last look is {age_s:.0f} s old"
        return self._failure

    def not_live(self) -> str | None:
        """Return a reason where looks will never come again; a Kafka that is away is no such reason."""
        return None if self._ended is None else self._ended.message

    def _run(self) -> None:
        try:
            with Scraper(self._targets) as scraper:
                while not self._stop.is_set():
                    self._look_until_failure(scraper)
        except Exception as exc:
            self._ended = InvariantError(f"the sampler ended: {exc!r}")
            raise

    def _look_until_failure(self, scraper: Scraper) -> None:
        try:
            with Observer(self._settings) as observer:
                observer.wait_caught_up(CATCH_UP_S)
                while not self._stop.is_set():
                    began = time.monotonic()
                    self._look(observer, scraper)
                    self._stop.wait(max(0.0, PERIOD_S - (time.monotonic() - began)))
        except MillraceError as exc:
            self._note_failure(exc)
            self._stop.wait(RETRY_S)

    def _look(self, observer: Observer, scraper: Scraper) -> None:
        facts = observer.look()
        view = snapshot(
            facts,
            releases_report(observer.models.look()),
            scraper.look(),
            at_ms=int(time.time() * 1000),
            promise_s=self._settings.freshness_window_s,
        )
        if self._failure is not None:
            get_logger().info("view is current", partitions=len(facts.ends))
        self.latest, self._failure, self._taken_at = view, None, time.monotonic()
        export(view)

    def _note_failure(self, exc: MillraceError) -> None:
        if self._failure != exc.message:
            get_logger().warning("view is not current", error=exc.message, fix=exc.fix)
        self._failure = exc.message
        if isinstance(exc, DependencyDown):
            metrics.DEPENDENCY_UP.labels(dependency="kafka").set(0)


def export(view: Mapping[str, Any]) -> None:
    """Set the gauges that a Prometheus server scrapes from the page."""
    metrics.DEPENDENCY_UP.labels(dependency="kafka").set(1)
    for row in view["lag"]["partitions"]:
        labels = {"group": row["group"], "topic": row["topic"], "partition": str(row["partition"])}
        metrics.LAG_RECORDS.labels(**labels).set(row["lag"])
    for ledger, terms in view["ledger"].items():
        metrics.LEDGER_BALANCE.labels(ledger=ledger).set(terms["balance"])
        for term, value in terms.items():
            if term != "balance":
                count = sum(value.values()) if isinstance(value, Mapping) else value
                metrics.LEDGER.labels(ledger=ledger, term=term).set(count)

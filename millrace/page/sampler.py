"""Takes one snapshot per second in a thread of its own, and keeps the last one and its metrics."""

import threading
import time
from typing import Any, Final

from contracts.errors import DependencyDown, MillraceError
from millrace.watch.observer import Observer
from millrace.watch.scrape import look_at_processes, scrape_targets
from millrace.watch.snapshot import snapshot
from service import metrics
from service.logging import get_logger
from service.settings import Settings

PERIOD_S: Final = 1.0
STALE_AFTER_S: Final = 15.0
log = get_logger()


class Sampler:
    """Looks at the deployment until it is stopped; a Kafka that goes away is waited for.

    Args:
        settings: the deployment to look at.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._targets = scrape_targets(settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.latest: dict[str, Any] | None = None
        self._failure: str | None = "no look taken yet"
        self._taken_at = time.monotonic()

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns once the clients are closed."""
        self._stop.set()
        self._thread.join(timeout=10)

    def not_ready(self) -> str | None:
        """Return why the page shows nothing yet, or nothing current."""
        return self._failure

    def not_live(self) -> str | None:
        """Return a reason where looks have stopped coming although nothing failed."""
        age = time.monotonic() - self._taken_at
        return None if age < STALE_AFTER_S else f"no look at Kafka finished for {age:.0f} s"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Observer(self._settings) as observer:
                    observer.wait_caught_up(timeout_s=30)
                    self._look_until_stopped(observer)
            except MillraceError as exc:
                self._note_failure(exc)
                self._stop.wait(2.0)

    def _look_until_stopped(self, observer: Observer) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            facts = observer.look()
            processes = look_at_processes(self._targets)
            view = snapshot(facts, observer.releases.report(), processes, at_ms=int(time.time() * 1000))
            self.latest, self._failure, self._taken_at = view, None, time.monotonic()
            export(view)
            self._stop.wait(max(0.0, PERIOD_S - (time.monotonic() - began)))

    def _note_failure(self, exc: MillraceError) -> None:
        if self._failure != exc.message:
            log.warning("kafka_unreadable", error=exc.message, fix=exc.fix)
        self._failure, self._taken_at = exc.message, time.monotonic()
        if isinstance(exc, DependencyDown):
            metrics.DEPENDENCY_UP.labels(dependency="kafka").set(0)


def export(view: dict[str, Any]) -> None:
    """Set the gauges that a Prometheus server scrapes from the page."""
    metrics.DEPENDENCY_UP.labels(dependency="kafka").set(1)
    for row in view["lag"]["partitions"]:
        labels = {"group": row["group"], "topic": row["topic"], "partition": str(row["partition"])}
        metrics.LAG_RECORDS.labels(**labels).set(row["lag"])
    for ledger, terms in view["ledger"].items():
        metrics.LEDGER_BALANCE.labels(ledger=ledger).set(terms["balance"])
        for term, value in terms.items():
            count = sum(value.values()) if isinstance(value, dict) else value
            if term != "balance":
                metrics.LEDGER.labels(ledger=ledger, term=term).set(count)

"""The built-in page and lag exporter, `python -m millrace.page`: one look at the deployment per second.

A thread of its own looks, keeps the last snapshot and sets its metrics; the HTTP side serves one HTML file, one JSON
document and the usual health paths.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

import orjson
from aiohttp import web
from prometheus_client import Gauge

from contracts.arms import ArmCounts
from contracts.errors import InvariantError, MillraceError
from contracts.telemetry import Process
from millrace.watch.kafka_view import KafkaView
from millrace.watch.observer import Observer, snapshot
from millrace.watch.scrape import Scraper, scrape_targets
from service import metrics
from service.health import Dependency, Health
from service.http import JSON, Route, bind_socket, build_app, come_again, serving
from service.machine import epoch_ms
from service.models import ModelsView
from service.process import Shutdown, run
from service.settings import Settings
from streams import registry

PERIOD_S: Final = 1.0
RETRY_S: Final = 2.0
STALE_AFTER_S: Final = 15.0
CATCH_UP_S: Final = 30.0
KAFKA_WAIT_S: Final = 3.0
"""How long one attempt waits for Kafka: the reason is to be seen soon, and attempts never end."""
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ASSETS: Final = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
CONTENT_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
FINISH_S: Final = 2.0
"""How long a stop waits for answers in progress; none takes longer."""


class Sampler:
    """Looks at a deployment until it is stopped; a Kafka that goes away is waited for, and the rest is shown."""

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
        for agent in registry.AGENTS:
            metrics.LEDGER_BALANCE.labels(agent.ledger[0])

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns once the clients are closed. Harmless when it was never started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def not_ready(self) -> str | None:
        """Say why the page shows nothing yet, not everything, or nothing current."""
        age_s = time.monotonic() - self._taken_at
        if self._unknown is None and age_s > STALE_AFTER_S:
            return f"the last look is {age_s:.0f} s old"
        return self._unknown

    def not_live(self) -> str | None:
        """Say why looks will never come again; a Kafka that is away is no such reason."""
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
                    seen = observer.look()
                    self._kafka.answered()
                    self._show(seen, observer.models.look(), scraper)
                    self._stop.wait(max(0.0, PERIOD_S - (time.monotonic() - began)))
        except MillraceError as error:
            self._kafka.failed(error)
            self._show(KafkaView(ends={}, unknown={Process.KAFKA.value: error}), ModelsView(), scraper)
            self._stop.wait(RETRY_S)

    def _show(self, seen: KafkaView, models: ModelsView, scraper: Scraper) -> None:
        promise_s = self._settings.freshness_window_s
        latest = snapshot(seen, models, scraper.look(), at_ms=epoch_ms(), promise_s=promise_s)
        export(latest)
        self.latest, self._taken_at = latest, time.monotonic()
        self._unknown = next((f"{part} not known: {reason}" for part, reason in latest["unknown"].items()), None)


def export(latest: Mapping[str, Any]) -> None:
    """Set the gauges that a Prometheus server scrapes from the page; what is not known has no series."""
    for group, totals in latest["lag"]["groups"].items():
        if totals["records"] is None:
            metrics.LAG_RECORDS.remove_by_labels({"group": group})
    for row in latest["lag"]["partitions"]:
        metrics.LAG_RECORDS.labels(row["group"], row["topic"], str(row["partition"])).set(row["lag"])
    for ledger, terms in latest["ledger"].items():
        _set(metrics.LEDGER_BALANCE, terms["balance"], ledger)
        for term, value in terms.items():
            if term != "balance":
                _set(metrics.LEDGER, sum(value.values()) if isinstance(value, Mapping) else value, ledger, term)

    arms = latest["arms"]
    for row in [] if arms is None else arms["arms"]:
        for what in ArmCounts.model_fields:
            metrics.ARM_SUMS.labels(row["arm"], row["surface"], what).set(row[what])


def _set(gauge: Gauge, value: int | None, *labels: str) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)


def build(health: Health, sampler: Sampler) -> web.Application:
    """Make the application: `/`, its two assets, `/api/snapshot` and the health paths."""

    async def answer_snapshot(_request: web.Request) -> web.StreamResponse:
        trouble, latest = sampler.not_ready(), sampler.latest
        if latest is None:
            raise come_again(503, "no_view", trouble or "no look taken yet")
        return web.Response(body=orjson.dumps({**latest, "trouble": trouble}), content_type=JSON)

    async def answer_asset(request: web.Request) -> web.StreamResponse:
        name = ASSETS[request.path]
        text = files("millrace").joinpath("static", name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=CONTENT_TYPES[name.rsplit(".", 1)[1]])

    async def add_security(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(SECURITY_HEADERS)

    routes = [*(Route("GET", path, answer_asset) for path in ASSETS), Route("GET", "/api/snapshot", answer_snapshot)]
    app = build_app(health, routes)
    app.on_response_prepare.append(add_security)
    return app


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Serve the page until asked to stop."""
    settings.require("kafka_bootstrap")
    health = Health(Process.PAGE)
    sampler = Sampler(settings)
    health.add_check("view", sampler.not_ready)
    health.add_liveness_check("sampler", sampler.not_live)
    listener = bind_socket(settings.host, settings.listen_port(Process.PAGE))
    try:
        async with serving(build(health, sampler), listener, finish_s=FINISH_S):
            sampler.start()
            await shutdown.wait_async()
    finally:
        await asyncio.to_thread(sampler.stop)


if __name__ == "__main__":
    run(Process.PAGE, serve)

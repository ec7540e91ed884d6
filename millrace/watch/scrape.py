"""Asks the other processes over HTTP: whether they are ready, and how long changes took to be visible in search."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from contracts.errors import UsageError
from contracts.telemetry import FRESHNESS_PATHS, M_FRESHNESS
from deploy.local.processes import ready_reasons
from service.kafka_settings import comma_list
from service.settings import Settings

TIMEOUT_S: Final = 0.8
MOST_BYTES: Final = 4 * 1024 * 1024
QUANTILES: Final = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts: upper bound in seconds -> observations at or below it."""

    buckets: tuple[tuple[float, float], ...]

    @property
    def count(self) -> float:
        """How many observations there are."""
        return self.buckets[-1][1] if self.buckets else 0.0


@dataclass(frozen=True, slots=True)
class ProcessView:
    """What one process answered; `problem` says why nothing that it measured is known."""

    ready: bool | None
    """None if it did not answer."""
    reasons: tuple[str, ...] = ()
    freshness: Mapping[str, Histogram] = field(default_factory=dict)
    problem: str = ""


def scrape_targets(settings: Settings) -> dict[str, str]:
    """Read process name -> base URL from `MILLRACE_SCRAPE`.

    Raises:
        UsageError: an entry is not name=url.
    """
    targets = {}
    for entry in comma_list(settings.scrape):
        name, _, url = (part.strip() for part in entry.partition("="))
        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL:
            host = ""
        if not name or not host or not url.startswith(("http://", "https://")):
            raise UsageError(f"MILLRACE_SCRAPE: {entry!r} is not name=url", fix="write it as search=http://host:8081")
        targets[name] = url.rstrip("/")
    return targets


class Scraper:
    """Asks all processes side by side over kept connections: one that hangs costs its own time only."""

    def __init__(
        self, targets: Mapping[str, str], *, timeout_s: float = TIMEOUT_S, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._targets = dict(targets)
        self._timeout_s = timeout_s
        self._client = httpx.Client(timeout=timeout_s, transport=transport, trust_env=False)
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(targets)), thread_name_prefix="scrape")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()
        self._client.close()

    def look(self) -> dict[str, ProcessView]:
        """Ask each process how it is now."""
        return dict(zip(self._targets, self._pool.map(self._ask, self._targets.values()), strict=True))

    def _ask(self, url: str) -> ProcessView:
        try:
            ready, said = self._get(f"{url}/ready")
            has_metrics, metrics = self._get(f"{url}/metrics")
        except httpx.HTTPError as error:
            problem = f"does not answer: {type(error).__name__}"
            return ProcessView(ready=None, reasons=(problem,), problem=problem)
        try:
            return ProcessView(ready, ready_reasons(said), _freshness(metrics.decode()) if has_metrics else {})
        except ValueError as error:
            return ProcessView(ready, ready_reasons(said), problem=f"has metrics that cannot be read: {error}")

    def _get(self, url: str) -> tuple[bool, bytes]:
        """Tell whether an answer is a success, and its body; one without an end is none."""
        deadline = time.monotonic() + self._timeout_s
        body = bytearray()
        with self._client.stream("GET", url) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES or time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer has no end")
        return answer.is_success, bytes(body)


def look_at_processes(targets: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> dict[str, ProcessView]:
    """Ask each process once how it is now."""
    if not targets:
        return {}
    with Scraper(targets, timeout_s=timeout_s) as scraper:
        return scraper.look()


def _freshness(metrics: str) -> dict[str, Histogram]:
    """Read the freshness histograms in a process's metrics, by way; ValueError if the text is not Prometheus'."""
    found: dict[str, list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(metrics):
        if family.name == M_FRESHNESS:
            for sample in family.samples:
                if sample.name == f"{M_FRESHNESS}_bucket" and {"path", "le"} <= sample.labels.keys():
                    found.setdefault(sample.labels["path"], []).append((float(sample.labels["le"]), sample.value))
    return {path: Histogram(tuple(sorted(buckets))) for path, buckets in found.items()}


def quantile(histogram: Histogram, q: float) -> float | None:
    """Compute a quantile by linear interpolation inside its bucket, as Prometheus does; None without observations.

    >>> quantile(Histogram(((1.0, 0.0), (2.0, 10.0), (float("inf"), 10.0))), 0.5)
    1.5
    """
    if histogram.count == 0:
        return None
    rank, below, low = q * histogram.count, 0.0, 0.0
    for bound, cumulative in histogram.buckets:
        if cumulative >= rank and cumulative > below:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (cumulative - below)
        below, low = cumulative, bound if bound != float("inf") else low
    return low


def together(parts: Iterable[Histogram]) -> Histogram:
    """Add up what several processes measured; their buckets are the same."""
    sums: Counter[float] = Counter()
    for part in parts:
        sums.update(dict(part.buckets))
    return Histogram(tuple(sorted(sums.items())))


def freshness_report(views: Iterable[ProcessView]) -> dict[str, dict[str, float | None]]:
    """Compute p50, p99 and the number of observations of both ways, from what the processes measured."""
    measured = list(views)
    report = {}
    for path in FRESHNESS_PATHS:
        whole = together(view.freshness[path] for view in measured if path in view.freshness)
        report[path] = {**{name: quantile(whole, q) for name, q in QUANTILES.items()}, "count": whole.count}
    return report

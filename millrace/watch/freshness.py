"""Freshness from the histograms that the processes expose: how long until a change was visible in search."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from contracts.telemetry import FRESHNESS_PATHS, M_FRESHNESS

QUANTILES: Final = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts: upper bound in seconds -> observations at or below it."""

    buckets: tuple[tuple[float, float], ...]

    @property
    def count(self) -> float:
        """How many observations there are."""
        return self.buckets[-1][1] if self.buckets else 0.0


def histograms(metrics_text: str, name: str, label: str) -> dict[str, Histogram]:
    """Return the histograms of one metric by one label, from Prometheus text."""
    found: dict[str, list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(metrics_text):
        if family.name == name:
            for sample in family.samples:
                if sample.name == f"{name}_bucket":
                    found.setdefault(sample.labels[label], []).append((float(sample.labels["le"]), sample.value))
    return {key: Histogram(tuple(sorted(buckets))) for key, buckets in found.items()}


def quantile(histogram: Histogram, q: float) -> float | None:
    """Return a quantile by linear interpolation inside its bucket, as Prometheus does; None without observations.

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
    """Return what several processes measured as one histogram; their buckets are the same.

    >>> together([Histogram(((1.0, 2.0), (2.0, 3.0))), Histogram(((1.0, 1.0), (2.0, 5.0)))]).buckets
    ((1.0, 3.0), (2.0, 8.0))
    """
    sums: Counter[float] = Counter()
    for part in parts:
        sums.update(dict(part.buckets))
    return Histogram(tuple(sorted(sums.items())))


def freshness_report(texts: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Return p50, p99 and the number of observations of both ways, from the processes' metrics."""
    report: dict[str, dict[str, float | None]] = {
        path: {"p50": None, "p99": None, "count": 0.0} for path in FRESHNESS_PATHS
    }
    parts: dict[str, list[Histogram]] = {}
    for text in texts:
        for path, histogram in histograms(text, M_FRESHNESS, "path").items():
            parts.setdefault(path, []).append(histogram)
    for path, measured in parts.items():
        whole = together(measured)
        if whole.count:
            report[path] = {**{name: quantile(whole, q) for name, q in QUANTILES.items()}, "count": whole.count}
    return report

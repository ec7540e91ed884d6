"""Every Prometheus metric, named in `contracts/telemetry.py`, and which process feeds which.

A process exposes only what it feeds, and every bounded label value exists at zero from the start: a board that shows
"no data" and an alert on a zero that another process exports are both wrong. Labels are bounded; none names a person,
a query or a product.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import prometheus_client
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from contracts import telemetry as names
from contracts.telemetry import Correction, PairDropReason, Process

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # ships without an annotation

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
M = TypeVar("M", bound=MetricWrapperBase)
_unregistered: Final[dict[str, Any]] = {"registry": None}

REQUESTS = Counter(names.M_REQUESTS, "HTTP requests answered.", ("route", "code"), **_unregistered)
REQUEST_SECONDS = Histogram(
    names.M_REQUEST_SECONDS, "Time to answer an HTTP request.", ("route",), buckets=_SECONDS, **_unregistered
)
EVENTS_ACCEPTED = Counter(names.M_ACCEPTED, "Messages acknowledged by Kafka.", ("type",), **_unregistered)
EVENTS_REJECTED = Counter(names.M_REJECTED, "Messages refused at intake.", ("reason",), **_unregistered)
EVENTS_DUPLICATE = Counter(names.M_DUPLICATE, "Messages seen before at intake.", ("type",), **_unregistered)
CORRECTIONS = Counter(names.M_CORRECTIONS, "What intake changed in accepted events.", ("correction",), **_unregistered)
EVENT_OUTCOMES = Counter(names.M_OUTCOMES, "What became of accepted events.", ("outcome",), **_unregistered)
DEAD_LETTERS = Counter(names.M_DEAD_LETTERS, "Messages set aside.", ("stage", "reason"), **_unregistered)
STAGE_WATERMARK = Gauge(
    names.M_STAGE_WATERMARK, "Oldest event time not yet done.", ("stage", "partition"), **_unregistered
)
STAGE_PROGRESS = Gauge(names.M_STAGE_PROGRESS, "When the stage last moved on.", ("stage",), **_unregistered)
LAG_RECORDS = Gauge(
    names.M_LAG_RECORDS, "Records not yet consumed, from outside.", ("group", "topic", "partition"), **_unregistered
)
JOIN_OPEN = Gauge(names.M_JOIN_OPEN, "Searches whose window is open.", **_unregistered)
SEARCH_OUTCOMES = Counter(
    names.M_SEARCH_OUTCOMES, "What became of closed searches.", ("outcome", "reason"), **_unregistered
)
PAIRS_BUILT = Counter(names.M_PAIRS_BUILT, "Preference pairs emitted.", ("source",), **_unregistered)
PAIRS_TRAINED = Counter(names.M_PAIRS_TRAINED, "Preference pairs trained.", ("source",), **_unregistered)
PAIRS_DROPPED = Counter(names.M_PAIRS_DROPPED, "Preference pairs read, not trained.", ("reason",), **_unregistered)
TRAIN_STEPS = Counter(names.M_TRAIN_STEPS, "Optimisation steps.", ("lane",), **_unregistered)
TRAIN_STEP_SECONDS = Histogram(
    names.M_TRAIN_STEP_SECONDS, "Time of an optimisation step.", ("lane",), buckets=_SECONDS, **_unregistered
)
TRAIN_LOSS = Gauge(names.M_TRAIN_LOSS, "Loss of the last step, by term.", ("lane", "term"), **_unregistered)
GRADIENT_NORM = Gauge(names.M_GRADIENT_NORM, "Gradient norm of the last step.", ("lane",), **_unregistered)
CHECKPOINT_TIME = Gauge(names.M_CHECKPOINT_TIME, "When the last checkpoint became durable.", **_unregistered)
RELEASES = Counter(names.M_RELEASES, "Releases by what was decided.", ("tower", "decision"), **_unregistered)
RELEASE_INFO = Gauge(names.M_RELEASE_INFO, "Number of the release in force.", ("tower",), **_unregistered)
INDEX_WRITES = Counter(names.M_INDEX_WRITES, "Points written to the vector store.", ("kind",), **_unregistered)
INDEX_WRITE_SECONDS = Histogram(
    names.M_INDEX_WRITE_SECONDS, "Time of a write to the vector store.", buckets=_SECONDS, **_unregistered
)
INDEX_POINTS = Gauge(names.M_INDEX_POINTS, "Points in a collection.", ("collection",), **_unregistered)
ROLLOVER = Gauge(names.M_ROLLOVER, "Share of the index moved to the new product release.", **_unregistered)
FRESHNESS = Histogram(
    names.M_FRESHNESS, "Change to visible in search.", ("path",), buckets=names.FRESHNESS_BUCKETS_S, **_unregistered
)
SEARCH_SECONDS = Histogram(
    names.M_SEARCH_SECONDS, "Time of a search, by stage.", ("stage",), buckets=_SECONDS, **_unregistered
)
IMPRESSIONS = Counter(names.M_IMPRESSIONS, "Impressions taken over from search.", ("outcome",), **_unregistered)
DEGRADED = Counter(names.M_DEGRADED, "Answers given without a dependency.", ("mode",), **_unregistered)
DEPENDENCY_UP = Gauge(names.M_DEPENDENCY_UP, "1 while the dependency answers.", ("dependency",), **_unregistered)
LEDGER_BALANCE = Gauge(names.M_LEDGER_BALANCE, "Accepted minus all accounted; 0.", ("ledger",), **_unregistered)
LEDGER = Gauge(names.M_LEDGER, "Terms of the ledgers.", ("ledger", "term"), **_unregistered)

METRICS_OF: Final[dict[Process, tuple[MetricWrapperBase, ...]]] = {
    Process.COLLECTOR: (
        REQUESTS, REQUEST_SECONDS, EVENTS_ACCEPTED, EVENTS_REJECTED, EVENTS_DUPLICATE, CORRECTIONS,
        DEGRADED, DEPENDENCY_UP,
    ),
    Process.STREAMS: (
        EVENT_OUTCOMES, DEAD_LETTERS, STAGE_WATERMARK, STAGE_PROGRESS, JOIN_OPEN, SEARCH_OUTCOMES, PAIRS_BUILT,
        DEPENDENCY_UP,
    ),
    Process.TRAINER: (
        DEAD_LETTERS, STAGE_WATERMARK, STAGE_PROGRESS, PAIRS_TRAINED, PAIRS_DROPPED, TRAIN_STEPS, TRAIN_STEP_SECONDS,
        TRAIN_LOSS, GRADIENT_NORM, CHECKPOINT_TIME, RELEASES, RELEASE_INFO, DEPENDENCY_UP,
    ),
    Process.INDEXER: (
        DEAD_LETTERS, STAGE_WATERMARK, STAGE_PROGRESS, RELEASES, RELEASE_INFO, INDEX_WRITES, INDEX_WRITE_SECONDS,
        INDEX_POINTS, ROLLOVER, FRESHNESS, DEPENDENCY_UP,
    ),
    Process.SEARCH: (
        REQUESTS, REQUEST_SECONDS, SEARCH_SECONDS, FRESHNESS, IMPRESSIONS, RELEASES, RELEASE_INFO, DEGRADED,
        DEPENDENCY_UP,
    ),
    Process.QDRANT: (REQUESTS, REQUEST_SECONDS, INDEX_POINTS),
    Process.PAGE: (REQUESTS, REQUEST_SECONDS, LAG_RECORDS, LEDGER_BALANCE, LEDGER, DEPENDENCY_UP),
}  # fmt: skip
"""What each process feeds, and therefore exposes."""

LANES: Final = ("query", "product")
STARTS_AT_ZERO: Final[dict[MetricWrapperBase, Iterable[tuple[str, ...]]]] = {
    EVENTS_ACCEPTED: [
        (kind,) for kind in ("impression", "view", "click", "dwell", "cart", "purchase", "product", "product_deleted")
    ],
    CORRECTIONS: [(correction,) for correction in Correction],
    PAIRS_BUILT: [("click",), ("rule",), ("curated",), ("value",)],
    PAIRS_TRAINED: [("click",), ("rule",), ("curated",), ("value",)],
    PAIRS_DROPPED: [(reason,) for reason in PairDropReason],
    TRAIN_STEPS: [(lane,) for lane in LANES],
    TRAIN_STEP_SECONDS: [(lane,) for lane in LANES],
    RELEASE_INFO: [(lane,) for lane in LANES],
    INDEX_WRITES: [("upsert",), ("tombstone",), ("stale",)],
    IMPRESSIONS: [("written",), ("lost",)],
    FRESHNESS: [(path,) for path in names.FRESHNESS_PATHS],
    LEDGER_BALANCE: [("events",), ("searches",)],
}
"""Label values that exist before anything happened; outcomes of agents are declared with the agents."""


def initialise(process: Process) -> None:
    """Expose the metrics of a process, each bounded series at zero; harmless when repeated."""
    for metric in METRICS_OF.get(process, ()):
        expose(metric)
        for labels in STARTS_AT_ZERO.get(metric, ()):
            metric.labels(*labels)


def expose(metric: M) -> M:
    """Show a metric at `/metrics` from now on, and return it; harmless when repeated."""
    if metric not in _exposed:
        REGISTRY.register(metric)
        _exposed.add(metric)
    return metric


_exposed: Final[set[MetricWrapperBase]] = set()

"""Every Prometheus metric, and which process feeds which.

A process exposes only what it feeds, and every bounded label value exists at zero from the start: a board that shows
"no data" and an alert on a zero that another process exports are both wrong. Labels are bounded; none names a person,
a query or a product.
"""

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import prometheus_client
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from contracts.telemetry import (
    FRESHNESS_BUCKETS_S,
    FRESHNESS_PATHS,
    M_FRESHNESS,
    AuditDifference,
    Correction,
    ListOutcome,
    OutOfTime,
    PairDropReason,
    Process,
)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # ships without an annotation

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
M = TypeVar("M", bound=MetricWrapperBase)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(name, meaning, labels, registry=None)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(name, meaning, labels, registry=None)


def _histogram(name: str, meaning: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
    return Histogram(name, meaning, labels, registry=None, buckets=buckets)


REQUESTS = _counter("millrace_requests_total", "HTTP requests answered.", "route", "code")
REQUEST_SECONDS = _histogram("millrace_request_duration_seconds", "Time to answer an HTTP request.", "route")
EVENTS_ACCEPTED = _counter("millrace_events_accepted_total", "Messages acknowledged by Kafka.", "type")
EVENTS_REJECTED = _counter("millrace_events_rejected_total", "Messages refused at intake.", "reason")
EVENTS_DUPLICATE = _counter("millrace_events_duplicate_total", "Messages seen before at intake.", "type")
CORRECTIONS = _counter("millrace_intake_corrections_total", "What intake changed in accepted events.", "correction")
EVENT_OUTCOMES = _counter("millrace_event_outcomes_total", "What became of accepted events.", "outcome")
DEAD_LETTERS = _counter("millrace_dead_letters_total", "Messages set aside.", "stage", "reason")
STAGE_WATERMARK = _gauge(
    "millrace_stage_watermark_timestamp_seconds", "Oldest event time not yet done.", "stage", "partition"
)
STAGE_PROGRESS = _gauge("millrace_stage_last_progress_timestamp_seconds", "When the stage last moved on.", "stage")
LAG_RECORDS = _gauge(
    "millrace_consumer_lag_records", "Records not yet consumed, from outside.", "group", "topic", "partition"
)
JOIN_OPEN = _gauge("millrace_join_open_searches", "Searches whose window is open.")
SEARCH_OUTCOMES = _counter("millrace_search_outcomes_total", "What became of closed searches.", "outcome", "reason")
ATTRIBUTIONS = _counter("millrace_attributions_total", "What became of late and orphan events.", "outcome", "reason")
ATTRIBUTION_MEMORY = _counter(
    "millrace_attribution_memory_total", "What attribution kept in Redis for later.", "outcome", "reason"
)
PROPENSITY_LISTS = _counter(
    "millrace_propensity_lists_total", "Closed searches by what they say of examination.", "outcome", "reason"
)
PROPENSITY_VERSIONS = _counter("millrace_propensity_versions_total", "Versions of propensities published.")
TRUST_ALARMS = _gauge("millrace_trust_alarms", "Cells whose clicks show trust in the rank.")
ARM_OUTCOMES = _counter("millrace_arm_outcomes_total", "What became of lists read for arms.", "outcome", "reason")
ARM_SUMS = _gauge("millrace_arm_sums", "Lists of an arm, and sums over them.", "arm", "surface", "what")
PAIRS_BUILT = _counter("millrace_pairs_built_total", "Preference pairs emitted.", "source")
LISTS_OUT_OF_TIME = _counter("millrace_lists_out_of_time_total", "Lists decided out of event time.", "how")
PAIRS_TRAINED = _counter("millrace_pairs_trained_total", "Preference pairs taken into account.", "source")
PAIRS_DROPPED = _counter("millrace_pairs_dropped_total", "Preference pairs read, not taken into account.", "reason")
LISTS_READ = _counter("millrace_lists_read_total", "Training searches read by the trainer.", "outcome")
EVIDENCE_CELLS = _gauge("millrace_evidence_cells", "Query and product pairs with evidence.")
EVIDENCE_DROPPED = _gauge("millrace_evidence_dropped_cells", "Cells that left for want of room.")
EVIDENCE_SOUGHT = _gauge("millrace_evidence_sought_products", "Products chosen more often than they are looked at.")
RULES_ASKED = _gauge("millrace_rules_asked_ratio", "Weight that pairs of rules ask for, as a share of the clicks'.")
SOLVE_SECONDS = _histogram("millrace_solve_duration_seconds", "Time of computing weights or a prior.", "what")
DEBIASING = _gauge(
    "millrace_debiasing", "How strongly showings are weighed, and what exchanged neighbours say of it.", "statistic"
)
GAIN_NATS = _gauge("millrace_gain_nats", "Gain on left-out queries per click, and its standard error.", "statistic")
CHECKPOINT_TIME = _gauge(
    "millrace_checkpoint_last_success_timestamp_seconds", "When the last checkpoint became durable."
)
RELEASES = _counter("millrace_releases_total", "Releases by what was decided.", "tower", "decision")
DECISIONS = _counter("millrace_decisions_total", "Verdicts on live against the anchor.", "verdict")
RELEASE_INFO = _gauge("millrace_release_in_force", "Number of the release in force.", "tower")
INDEX_WRITES = _counter("millrace_index_writes_total", "Points written to the vector store.", "kind")
INDEX_WRITE_SECONDS = _histogram("millrace_index_write_duration_seconds", "Time of a write to the vector store.")
INDEX_POINTS = _gauge("millrace_index_points", "Points in a collection.", "collection")
AUDIT_DIFFERENCES = _gauge("millrace_audit_differences", "Products that the last audit found different.", "kind")
AUDIT_TIME = _gauge("millrace_audit_last_success_timestamp_seconds", "When the last audit ended.")
ROLLOVER = _gauge("millrace_rollover_progress_ratio", "Share of the index moved to the new product release.")
FRESHNESS = _histogram(M_FRESHNESS, "Change to visible in search.", "path", buckets=FRESHNESS_BUCKETS_S)
SEARCH_SECONDS = _histogram("millrace_search_duration_seconds", "Time of a search, by stage.", "stage")
IMPRESSIONS = _counter("millrace_impressions_total", "Impressions taken over from search.", "outcome")
NO_GOOD_MATCH = _counter("millrace_no_good_match_total", "Searches that nothing matched well.")
DEGRADED = _counter("millrace_degraded_total", "Answers given without a dependency.", "mode")
DEPENDENCY_UP = _gauge("millrace_dependency_up", "1 while the dependency answers.", "dependency")
LEDGER_BALANCE = _gauge("millrace_ledger_balance_records", "Accepted minus all accounted; 0.", "ledger")
LEDGER = _gauge("millrace_ledger_records", "Terms of the ledgers.", "ledger", "term")

METRICS_OF: Final[dict[Process, tuple[MetricWrapperBase, ...]]] = {
    Process.COLLECTOR: (
        REQUESTS, REQUEST_SECONDS, EVENTS_ACCEPTED, EVENTS_REJECTED, EVENTS_DUPLICATE, CORRECTIONS,
        DEGRADED, DEPENDENCY_UP,
    ),
    Process.STREAMS: (
        EVENT_OUTCOMES, DEAD_LETTERS, STAGE_WATERMARK, STAGE_PROGRESS, JOIN_OPEN, SEARCH_OUTCOMES, PAIRS_BUILT,
        LISTS_OUT_OF_TIME, ATTRIBUTIONS, ATTRIBUTION_MEMORY, ARM_OUTCOMES, PROPENSITY_LISTS, PROPENSITY_VERSIONS,
        TRUST_ALARMS, DEPENDENCY_UP,
    ),
    Process.TRAINER: (
        DEAD_LETTERS, STAGE_WATERMARK, STAGE_PROGRESS, LISTS_READ, PAIRS_TRAINED, PAIRS_DROPPED, EVIDENCE_CELLS,
        EVIDENCE_DROPPED, EVIDENCE_SOUGHT, RULES_ASKED, SOLVE_SECONDS, DEBIASING, GAIN_NATS, CHECKPOINT_TIME, RELEASES,
        DECISIONS, RELEASE_INFO, DEPENDENCY_UP,
    ),
    Process.INDEXER: (
        DEAD_LETTERS, STAGE_WATERMARK, STAGE_PROGRESS, RELEASES, RELEASE_INFO, INDEX_WRITES, INDEX_WRITE_SECONDS,
        INDEX_POINTS, ROLLOVER, AUDIT_DIFFERENCES, AUDIT_TIME, FRESHNESS, DEPENDENCY_UP,
    ),
    Process.SEARCH: (
        REQUESTS, REQUEST_SECONDS, SEARCH_SECONDS, FRESHNESS, IMPRESSIONS, RELEASES, RELEASE_INFO, NO_GOOD_MATCH,
        DEGRADED, DEPENDENCY_UP,
    ),
    Process.QDRANT: (REQUESTS, REQUEST_SECONDS, INDEX_POINTS),
    Process.PAGE: (REQUESTS, REQUEST_SECONDS, LAG_RECORDS, LEDGER_BALANCE, LEDGER, ARM_SUMS, DEPENDENCY_UP),
}  # fmt: skip
"""What each process feeds, and therefore exposes."""

LANES: Final = ("query", "product")
STARTS_AT_ZERO: Final[dict[MetricWrapperBase, Iterable[tuple[str, ...]]]] = {
    EVENTS_ACCEPTED: [
        (kind,) for kind in ("impression", "view", "click", "dwell", "cart", "purchase", "product", "product_deleted")
    ],
    CORRECTIONS: [(correction,) for correction in Correction],
    PAIRS_BUILT: [("click",), ("rule",), ("curated",), ("value",)],
    LISTS_OUT_OF_TIME: [(how,) for how in OutOfTime],
    PAIRS_TRAINED: [("click",), ("rule",), ("curated",), ("value",)],
    PAIRS_DROPPED: [(reason,) for reason in PairDropReason],
    LISTS_READ: [(outcome,) for outcome in ListOutcome],
    SOLVE_SECONDS: [("weights",), ("prior",)],
    RELEASE_INFO: [(lane,) for lane in LANES],
    INDEX_WRITES: [("upsert",), ("tombstone",), ("stale",), ("same_version",)],
    AUDIT_DIFFERENCES: [(kind,) for kind in AuditDifference],
    IMPRESSIONS: [("written",), ("lost",)],
    FRESHNESS: [(path,) for path in FRESHNESS_PATHS],
}
"""Label values that exist before anything happened; outcomes and ledgers of agents are declared with the agents."""


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

"""Metrics: the names of the contract, and zeros where a process feeds them."""

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.metrics import MetricWrapperBase

from contracts.telemetry import Process
from service import metrics
from service.health import Health
from tests.support.reference import metrics_by_name

NAMES = {
    "millrace_arm_outcomes_total",
    "millrace_arm_sums",
    "millrace_audit_differences",
    "millrace_audit_last_success_timestamp_seconds",
    "millrace_checkpoint_last_success_timestamp_seconds",
    "millrace_consumer_lag_records",
    "millrace_dead_letters_total",
    "millrace_degraded_total",
    "millrace_dependency_up",
    "millrace_event_outcomes_total",
    "millrace_events_accepted_total",
    "millrace_events_duplicate_total",
    "millrace_events_rejected_total",
    "millrace_freshness_seconds",
    "millrace_impressions_total",
    "millrace_lists_out_of_time_total",
    "millrace_no_good_match_total",
    "millrace_index_points",
    "millrace_index_write_duration_seconds",
    "millrace_index_writes_total",
    "millrace_intake_corrections_total",
    "millrace_join_open_searches",
    "millrace_ledger_balance_records",
    "millrace_ledger_records",
    "millrace_lists_read_total",
    "millrace_evidence_cells",
    "millrace_evidence_dropped_cells",
    "millrace_evidence_sought_products",
    "millrace_rules_asked_ratio",
    "millrace_debiasing",
    "millrace_gain_nats",
    "millrace_solve_duration_seconds",
    "millrace_attribution_memory_total",
    "millrace_attributions_total",
    "millrace_pairs_built_total",
    "millrace_pairs_dropped_total",
    "millrace_pairs_trained_total",
    "millrace_propensity_lists_total",
    "millrace_propensity_versions_total",
    "millrace_trust_alarms",
    "millrace_release_in_force",
    "millrace_decisions_total",
    "millrace_releases_total",
    "millrace_request_duration_seconds",
    "millrace_requests_total",
    "millrace_rollover_progress_ratio",
    "millrace_search_duration_seconds",
    "millrace_search_outcomes_total",
    "millrace_stage_last_progress_timestamp_seconds",
    "millrace_stage_watermark_timestamp_seconds",
}
"""What boards and alerts outside this repository may rely on."""
SHARED = {name: metric for name, metric in metrics_by_name().items() if metric in vars(metrics).values()}
"""The metrics of `service/metrics.py`; the counters that agents declare stand in docs/operations.md only."""


def test_every_name_that_is_relied_on_has_its_metric_and_no_other_exists() -> None:
    """A board or an alert still finds its metric; a new one is written down here."""
    assert set(SHARED) == NAMES


def test_every_metric_is_fed_by_some_process() -> None:
    """No metric is defined that nobody exposes."""
    fed = {metric for exposed in metrics.METRICS_OF.values() for metric in exposed}
    assert set(SHARED.values()) == fed


def test_bounded_series_exist_at_zero_before_anything_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board shows zero, not "no data", from the first scrape."""
    fresh = Counter("millrace_fresh", "Counted by no other test.", ("kind",), registry=None)
    monkeypatch.setitem(metrics.METRICS_OF, Process.PAGE, (fresh,))
    monkeypatch.setitem(metrics.STARTS_AT_ZERO, fresh, [("one",), ("other",)])
    Health(Process.PAGE)
    try:
        for kind in ("one", "other"):
            assert REGISTRY.get_sample_value("millrace_fresh_total", {"kind": kind}) == 0
    finally:
        REGISTRY.unregister(fresh)


@pytest.mark.parametrize(
    ("process", "series", "labels"),
    [
        (Process.TRAINER, "millrace_lists_read_total", {"outcome": "learned"}),
        (Process.INDEXER, "millrace_index_writes_total", {"kind": "tombstone"}),
    ],
)
def test_a_process_shows_its_series_from_the_start(process: Process, series: str, labels: dict[str, str]) -> None:
    """The tables of metrics and labels hold for real processes."""
    Health(process)
    assert REGISTRY.get_sample_value(series, labels) is not None


def test_initialising_twice_keeps_what_was_counted() -> None:
    """Two healths in one process share the counters."""
    metrics.initialise(Process.TRAINER)
    metrics.PAIRS_DROPPED.labels("malformed").inc()
    before = REGISTRY.get_sample_value("millrace_pairs_dropped_total", {"reason": "malformed"})
    metrics.initialise(Process.TRAINER)
    assert REGISTRY.get_sample_value("millrace_pairs_dropped_total", {"reason": "malformed"}) == before != 0


@pytest.mark.parametrize("metric", list(metrics.STARTS_AT_ZERO), ids=lambda metric: str(metric._name))
def test_zeros_have_as_many_labels_as_their_metric(metric: MetricWrapperBase) -> None:
    """Each starting series fits its metric."""
    assert {len(labels) for labels in metrics.STARTS_AT_ZERO[metric]} == {len(metric._labelnames)}

"""Metrics: the names of the contract, and zeros where a process feeds them."""

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.metrics import MetricWrapperBase

from contracts import telemetry
from contracts.telemetry import Process
from service import metrics
from service.health import Health


def declared_names() -> set[str]:
    """Return every metric name of the contract."""
    return {value for name, value in vars(telemetry).items() if name.startswith("M_")}


def defined() -> dict[str, MetricWrapperBase]:
    """Return every metric object by the name it is exposed under."""
    objects = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    return {f"{value._name}_total" if value._type == "counter" else value._name: value for value in objects}


def test_every_name_of_the_contract_has_its_metric_and_no_other_exists() -> None:
    """Boards and code use the same names."""
    assert set(defined()) == declared_names()


def test_every_metric_is_fed_by_some_process() -> None:
    """No metric is defined that nobody exposes."""
    fed = {metric for exposed in metrics.METRICS_OF.values() for metric in exposed}
    assert set(defined().values()) == fed


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
        (Process.PAGE, "millrace_ledger_balance_records", {"ledger": "searches"}),
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

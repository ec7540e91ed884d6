"""Quantiles are read from the processes' histograms as Prometheus reads them."""

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from contracts.telemetry import FRESHNESS_BUCKETS_S, M_FRESHNESS
from millrace.watch.freshness import freshness_report


def exposed(observations: dict[str, list[float]]) -> str:
    """Return the metrics text of a process that observed these."""
    registry = CollectorRegistry()
    histogram = Histogram(M_FRESHNESS, "test", ("path",), buckets=FRESHNESS_BUCKETS_S, registry=registry)
    for path, values in observations.items():
        for value in values:
            histogram.labels(path=path).observe(value)
    return generate_latest(registry).decode()


def test_each_way_is_read_from_the_process_that_measures_it() -> None:
    """Search measures clicks, the indexer measures products; the report has both."""
    texts = [exposed({"click_to_search": [12.0] * 100}), exposed({"product_to_search": [0.4] * 50}), ""]
    report = freshness_report(texts)
    assert report["click_to_search"]["count"] == 100
    assert report["click_to_search"]["p50"] == pytest.approx(12.5)
    assert report["product_to_search"]["p99"] == pytest.approx(0.4975)


def test_several_processes_of_one_kind_are_measured_together() -> None:
    """Two search services each saw some of the clicks; the quantiles are over all of them."""
    texts = [exposed({"click_to_search": [0.1] * 10}), exposed({"click_to_search": [50.0] * 90})]
    report = freshness_report(texts)
    assert report["click_to_search"]["count"] == 100
    assert report["click_to_search"]["p50"] is not None
    assert report["click_to_search"]["p50"] > 45


def test_nothing_measured_is_none_not_zero() -> None:
    """A way without observations has no quantiles: a zero would look like perfect freshness."""
    assert freshness_report([exposed({})])["click_to_search"] == {"p50": None, "p99": None, "count": 0.0}


def test_observations_beyond_the_last_bucket_give_its_bound() -> None:
    """A quantile in the open bucket is at least the largest bound; it is never invented beyond it."""
    report = freshness_report([exposed({"product_to_search": [9_999.0]})])
    assert report["product_to_search"]["p50"] == FRESHNESS_BUCKETS_S[-1]

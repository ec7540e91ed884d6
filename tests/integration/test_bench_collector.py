"""The collector bench in little, on a real Kafka and Redis: both collectors accept every event."""

import pytest

from simulator.bench import collector

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]


def test_a_small_bench_reports_both_collectors() -> None:
    """One round gives each row with figures of both sides; how fast is not judged here."""
    told: list[str] = []
    report = collector.run(told.append, searches=1_000, rounds=1, turns=20)
    assert [(row["name"], row["unit"]) for row in report["results"]] == [
        ("accepted events, 50 in a request", "events/CPU-s"),
        ("accepted events, 1 in a request", "events/CPU-s"),
        ("10 events accepted, p50", "ms"),
        ("10 events accepted, p99", "ms"),
    ]
    assert all(row["ours"] > 0 and row["peer_value"] > 0 for row in report["results"])
    assert len(told) == 2

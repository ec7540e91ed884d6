"""The stream bench runs to its end on a real Kafka and reports every side."""

import pytest

from service.settings import env_name
from simulator.bench import streams

pytestmark = [pytest.mark.kafka]


def test_a_small_bench_reports_every_side(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of a small shop-like log gives each row with figures of both sides; how fast is not judged here."""
    monkeypatch.setenv(env_name("kafka_bootstrap"), kafka_bootstrap)
    monkeypatch.setattr(streams, "LOGS", streams.LOGS[1:])
    told: list[str] = []
    report = streams.run(told.append, searches=2_000, rounds=1)
    assert [(row["name"], row["unit"]) for row in report["results"]] == [
        ("joined events, lists of 24", "events/s"),
        ("joined events, lists of 24", "events/CPU-s"),
        ("paired searches, lists of 24", "searches/CPU-s"),
    ]
    assert all(row["ours"] > 0 and row["peer_value"] > 0 for row in report["results"])
    assert len(told) == 2

"""The stream bench runs to its end on a real Kafka and reports both sides."""

import pytest

from service.settings import env_name
from simulator.bench import streams

pytestmark = [pytest.mark.kafka]


def test_a_small_bench_reports_both_sides(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of a small log gives both rows with figures of both sides; how fast is not judged here."""
    monkeypatch.setenv(env_name("kafka_bootstrap"), kafka_bootstrap)
    told: list[str] = []
    report = streams.run(told.append, searches=1_500, rounds=1)
    assert [row["name"] for row in report["results"]] == ["joined events", "joined events per CPU"]
    assert all(row["ours"] > 0 and row["peer_value"] > 0 for row in report["results"])
    assert len(told) == 3

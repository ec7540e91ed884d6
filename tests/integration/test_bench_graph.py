"""The graph bench in little: a store of its own, and rows that say what was measured beside what."""

import pytest

from simulator.bench import graph

pytestmark = [pytest.mark.qdrant, pytest.mark.slow]


def test_the_bench_asks_both_ways_and_tells_what_the_graph_cost() -> None:
    """Of the smallest collection with a graph it tells both latencies, what was found, and the cost of building."""
    told: list[str] = []
    report = graph.run(told.append, sizes=(800,), queries=5)
    names = [row["name"] for row in report["results"]]
    asked = ("ten nearest of 800", "both arms of 800", "ten nearest of 800 while 20% is rewritten")
    assert names == [f"{what}: {figure}" for what in asked for figure in ("p50", "p99", "recall@10")]
    assert all(row["ours"] > 0 and row["peer"] == "scan" for row in report["results"])
    (build,) = report["builds"]
    assert (build["products"], build["waited_s"] > 0, build["disk_mb"] > 0) == (800, True, True)
    assert told

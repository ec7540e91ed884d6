"""The trainer bench, small: it counts, computes, releases and steps, and says what of it was measured."""

from simulator.bench.trainer import run


def test_rows() -> None:
    """Each size gives what counting, towers, a release and memory took; only what has a goal is judged by it."""
    told: list[str] = []
    report = run(told.append, cells=(600,), rounds=2)
    count, towers, release, memory = report["results"]
    cells = int(count["name"].split(", ")[1].removesuffix(" cells").replace(",", ""))
    assert cells >= 600
    assert 0 < count["ours"] < towers["ours"] < release["ours"]
    assert (count["goal"], towers["goal"], release["goal"]) == (None, "<= 150 ms", "<= 5000 ms")
    assert memory["unit"] == "MB"
    assert release["ratio"] == release["ours"] / release["peer_value"]
    assert told[-1] == "round 2 of 2"

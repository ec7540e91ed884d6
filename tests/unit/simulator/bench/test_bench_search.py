"""What `millrace bench search` asks, and its rows, from times that are given."""

from simulator.bench.search import drawn_queries, rows
from towers.lexical import QueryKind, read_query


def test_queries_are_words_and_no_identifiers() -> None:
    """What is timed is a usual search: model numbers are looked for in one way more, and each hit is read for them."""
    assert {read_query(text).kind for text in drawn_queries(200)} == {QueryKind.LONG}


def test_only_what_was_measured_as_its_goal_says_is_judged() -> None:
    """One search at a time meets or misses no goal that is for a load; each row has its peer's figure."""
    times = {"hot": [1.0, 1.0], "never seen": [30.0, 30.0], "peer": [20.0, 20.0]}
    times |= {f"{kind} CPU": values for kind, values in times.items()}
    found = rows(times, 20_000)
    assert {row["name"]: row["met"] for row in found if row["goal"]} == {
        "never seen p50, 20,000 products": False,
        "never seen, CPU of all but the store": False,
    }
    assert all((row["goal"] is None) == (row["met"] is None) for row in found)
    assert {row["peer_value"] for row in found} == {20.0}
    assert found[0]["ratio"] == 0.05

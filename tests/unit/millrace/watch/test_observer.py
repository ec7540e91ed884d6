"""One document holds all that the page shows, and it is JSON."""

import json

import orjson
import pytest

from millrace.watch.observer import releases_report, state_of
from millrace.watch.scrape import ProcessView
from tests.support.deployment import NOW_MS, busy_snapshot, models_table, process_views


def test_the_parts_are_those_that_the_page_reads() -> None:
    """Page and commands show the same numbers under the same names."""
    view = busy_snapshot()
    parts = {"at", "lag", "ledger", "arms", "freshness_s", "promise_s", "releases", "processes", "unknown"}
    assert set(view) == parts
    assert view["at"] == NOW_MS
    assert view["releases"] == releases_report(models_table().look())
    assert (view["ledger"]["events"]["balance"], view["ledger"]["searches"]["balance"]) == (0, 0)


def test_a_snapshot_is_strict_json() -> None:
    """No NaN, no infinity, no key that is no text: browsers read it as it is."""
    view = busy_snapshot()
    assert json.loads(orjson.dumps(view)) == view


@pytest.mark.parametrize(
    ("view", "state"),
    [(ProcessView(ready=True), "ready"), (ProcessView(ready=False), "waiting"), (ProcessView(ready=None), "silent")],
)
def test_the_state_of_a_process_is_one_word(view: ProcessView, state: str) -> None:
    """Not answering and not being ready are two things."""
    assert state_of(view) == state


def test_processes_keep_their_order_and_reasons() -> None:
    """The page lists them as the settings name them."""
    rows = busy_snapshot()["processes"]
    assert [row["name"] for row in rows] == list(process_views())
    assert rows[2] == {
        "name": "search", "state": "waiting", "reasons": ["releases: models has not been read to its end yet"],
    }  # fmt: skip

"""Vouching for a release, and what differs between two."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from contracts.decisions import Decision, Decisions
from contracts.errors import UsageError
from contracts.releases import Serving
from contracts.wire import encode
from millrace.output import utc
from millrace.promoting import check_promotable, difference_report, difference_table
from millrace.releasing import BOOTSTRAPPING, decision_lines, releases_table, untested_lines
from millrace.watch.observer import releases_report
from tests.support.deployment import NOW_MS, models_table
from tests.support.indexing import product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.release_files import Release

ENCODER = TinyEncoder()


def decision(**changes: object) -> Decision:
    """A step back."""
    values = {"verdict": "stepped_back", "decided_at": NOW_MS, "query_release": 2, "subject": 1, "began_at": NOW_MS,
              "reason": "live is worse than the anchor: clicked", **changes}  # fmt: skip
    return Decision.model_validate(values)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_is_there_may_be_promoted(number: int) -> None:
    """The one in force, an older one, and none."""
    check_promotable(models_table().look(), number)


@pytest.mark.parametrize("number", [3, 9])
def test_what_is_newer_or_not_there_is_refused(number: int) -> None:
    """Release 3 was made and is not in force."""
    with pytest.raises(UsageError, match=f"query release {number} is not on the topic, or newer"):
        check_promotable(models_table().look(), number)


def test_what_was_taken_back_is_refused() -> None:
    """Its record may still be there."""
    table = models_table()
    serving = Serving(
        query_release=3, product_release=1, collection="c", published_at=NOW_MS + 1, withdrawn=2, withdrawn_above=1
    )
    table.apply(b"serving", encode(serving))
    with pytest.raises(UsageError, match="was taken back"):
        check_promotable(table.look(), 2)


def test_decisions_are_told_with_the_releases() -> None:
    """Newest first; of those that moved nothing only the newest; the promoted release is marked."""
    table = models_table()
    moved, idle = decision(), decision(verdict="undecided", subject=2, reason="not told apart", decided_at=NOW_MS + 1)
    table.apply(b"decisions", encode(Decisions(promoted=1, began_at=NOW_MS, latest=idle, decided=(moved,))))
    report = releases_report(table.look())
    assert json.loads(json.dumps(report)) == report
    assert (report["promoted"], [one["verdict"] for one in report["decisions"]]) == (1, ["undecided", "stepped_back"])
    lines = decision_lines(report["decisions"])
    assert "nothing moves; not told apart" in lines[0]
    assert "live steps back to release 1; live is worse" in lines[1]
    console = Console(width=120, record=True)
    console.print(releases_table(report))
    assert any("query 1" in line and "promoted" in line for line in console.export_text().splitlines())


@pytest.mark.parametrize(("verdict", "says"), [("too_little", BOOTSTRAPPING), ("undecided", "not tested yet:")])
def test_what_could_not_be_tested_is_told(verdict: str, says: str) -> None:
    """Under a heading that tells a deployment that is bootstrapping from one that lacks a test; else nothing."""
    missed = decision(verdict=verdict, subject=2, untested=("clicked: 3 of 40",))
    table = models_table()
    table.apply(b"decisions", encode(Decisions(promoted=1, began_at=NOW_MS, latest=missed, decided=())))
    told = releases_report(table.look())["decisions"]
    assert untested_lines(told) == [says, "  clicked: 3 of 40"]
    proven = decision(verdict="promoted").model_dump()
    assert untested_lines([*told, proven])[0] == "not tested yet:"
    assert untested_lines([*told, {**proven, "by": "person"}])[0] == says
    compared = {"better_by": [{"metric": "clicked"}]}
    assert untested_lines([{**told[0], "held_out": compared}])[0] == "not tested yet:"
    assert untested_lines([decision().model_dump()]) == []
    assert untested_lines([]) == []


def test_what_differs_between_two_query_releases() -> None:
    """How far the probe texts turned, and which queries are remembered anew."""
    one, two = (query_release(number, ENCODER, scale=scale) for number, scale in ((1, 0.0), (2, 0.05)))
    same = difference_report(one, one)["moved"]
    assert same["probe_cosine_least"] == pytest.approx(1.0)
    moved = difference_report(one, two)["moved"]
    assert 0 < moved["probe_cosine_least"] < moved["probe_cosine_mean"] < 1
    assert moved["queries_newly_remembered"] == 0


def test_when_releases_were_made_is_told_as_times() -> None:
    """Nobody reads milliseconds."""
    one, two = (query_release(number, ENCODER, scale=0.0) for number in (1, 2))
    later = Release(two.manifest.model_copy(update={"created_at": one.manifest.created_at + 90_000}), two.tensors)
    console = Console(width=120, record=True)
    console.print(difference_table(difference_report(one, later)))
    row = next(line for line in console.export_text().splitlines() if "created_at" in line)
    assert utc(one.manifest.created_at) in row
    assert utc(one.manifest.created_at + 90_000) in row


def test_what_differs_between_two_product_releases() -> None:
    """By how many nats what features say moved; a feature that only one has counts from 0."""
    one, two = (product_release(number, ENCODER, nats=nats) for number, nats in ((1, 0.2), (2, 0.5)))
    moved = difference_report(one, two)["moved"]
    assert moved["features_moved"] == len(one.tensors["words"])
    assert moved["features_most_nats"] == pytest.approx(0.3, abs=1e-6)
    assert (moved["products_moved"], moved["products_mean_nats"]) == (0, 0.0)
    fewer = Release(two.manifest, {**two.tensors, "features": two.tensors["features"][1:],
                                   "idf": two.tensors["idf"][1:], "words": two.tensors["words"][1:]})  # fmt: skip
    assert difference_report(one, fewer)["moved"]["features_most_nats"] == pytest.approx(0.3, abs=1e-6)
    report = difference_report(one, two)
    assert json.loads(json.dumps(report)) == report
    console = Console(width=120, record=True)
    console.print(difference_table(report))
    assert "features most nats" in console.export_text()


def test_releases_over_different_bases_are_not_compared() -> None:
    """Their vectors mean different things."""
    one = query_release(1, ENCODER)
    other = replace(one, manifest=one.manifest.model_copy(update={"base_version": "other"}))
    with pytest.raises(UsageError, match="different base models"):
        difference_report(one, other)
    assert np.isfinite(difference_report(one, one)["moved"]["probe_cosine_mean"])

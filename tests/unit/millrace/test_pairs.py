"""`millrace pairs`: what is listed and counted, what a factor comes from, and which lines of a file can be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import millrace.pairs
from contracts import wire
from contracts.errors import UsageError
from contracts.joined import Origin
from contracts.pairs import Factors, PreferencePair
from millrace.curating import PAIR_LINE, BadLine, read_file
from millrace.pair_origins import Place, explanation, explanation_tables, factors
from millrace.pairs import (
    ID_SHOWN,
    LoggedPair,
    Wanted,
    export_lines,
    newest_pairs,
    pair_json,
    pair_stats,
    pairs_ls,
    pairs_table,
    stats_table,
    wanted_pairs,
)
from millrace.tables import Row
from service.settings import Settings
from tests.support.pairs import CLICKED_MS, preference_pair
from tests.support.search_events import click, impression

EVERY = Wanted()


def logged(*pairs: PreferencePair | None) -> list[LoggedPair]:
    """Return pairs as they stand on a partition; None is no pair."""
    return [
        LoggedPair(0, offset, CLICKED_MS + offset, b"{}" if pair is None else wire.encode(pair), pair)
        for offset, pair in enumerate(pairs)
    ]


def test_the_newest_pairs_that_are_asked_for_come_first() -> None:
    """By when they were written; what was looked through is told, and so is what is no pair."""
    pairs = logged(*(preference_pair(f"s{number}", query=f"Quiet fridge {number % 2}") for number in range(4)), None)
    report = newest_pairs(pairs, Wanted(query="quiet  FRIDGE 1"), 1)
    assert [one.offset for one in report["pairs"]] == [3]
    assert (report["found"], report["looked_through"], report["malformed"]) == (2, 4, 1)
    shown = pair_json(report["pairs"][0])
    assert (shown["search_id"], shown["partition"], shown["offset"]) == ("s3", 0, 3)
    assert pairs_table(report["pairs"]).row_count == 1


@pytest.mark.parametrize("width", [40, 80])
def test_an_id_can_be_copied_from_a_narrow_terminal(width: int) -> None:
    """It stands on one line where there is room, and is never cut: `pairs explain` asks for it."""
    pair = preference_pair(query="a query of quite some words " * 3)
    console = Console(width=width, soft_wrap=True)
    with console.capture() as captured:
        console.print(pairs_table(logged(pair)))
    columns = zip(*(line.split("│")[1:-1] for line in captured.get().splitlines() if line.startswith("│")), strict=True)
    assert pair.pair_id[:ID_SHOWN] in {"".join(map(str.strip, column)) for column in columns}
    assert width < 80 or pair.pair_id[:ID_SHOWN] in captured.get()


@pytest.mark.parametrize(("pairs", "told"), [((), "there are no pairs"), ((preference_pair(),), "0 of 1 pairs")])
def test_where_no_pair_is_found_a_sentence_says_so(
    pairs: tuple[PreferencePair, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No empty table is shown."""
    monkeypatch.setattr(millrace.pairs, "running_settings", Settings)
    monkeypatch.setattr(millrace.pairs, "logged_pairs", lambda *_: iter(logged(*pairs)))
    pairs_ls(query="kettle")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(Wanted(source="value"), 1), (Wanted(product="P-2"), 2), (Wanted(product="P-9"), 0), (Wanted(query="kettle"), 1)],
)
def test_pairs_are_filtered_by_source_product_and_query(wanted: Wanted, found: int) -> None:
    """A product may stand on either side."""
    pairs = logged(preference_pair(), preference_pair("s2", source="value", query="kettle"))
    assert newest_pairs(pairs, wanted, 9)["found"] == found


def test_a_source_that_does_not_exist_is_refused() -> None:
    """A misspelt one would find nothing, and look like an empty shop."""
    with pytest.raises(UsageError, match="clicks is none") as refused:
        wanted_pairs("clicks", "", "")
    assert "click" in refused.value.fix


def test_statistics_count_each_pair_once() -> None:
    """A pair that a killed agent wrote twice is told apart, and so is what is no pair."""
    sampled = Factors(value=1.0, ratio=0.5, sampling=4.0, cap=0.5)
    other = preference_pair("s2", source="value", weight=9.0).model_copy(update={"inferred": True, "filters": ("F2",)})
    pairs = logged(preference_pair(), preference_pair(), None, other.model_copy(update={"factors": sampled}))
    report = pair_stats(pairs, EVERY)
    assert (report["pairs"], report["searches"], report["repeated"], report["malformed"]) == (2, 2, 1, 1)
    assert (report["by_source"], report["by_grade"], report["by_filters"]) == (
        {"click": 1, "value": 1},
        {"1": 2},
        {"F2": 1},
    )
    assert (report["weight"]["p1"], report["weight"]["p99"], report["weight"]["sum"]) == (1.0, 9.0, 10.0)
    assert report["sampled"] == {"pairs": 1, "mean_factor": 4.0}
    assert report["capped"] == {"pairs": 1, "mean_factor": 0.5}
    assert (report["inferred"], report["from"], report["to"]) == (1, CLICKED_MS, CLICKED_MS)
    assert stats_table(report).row_count > 0


def test_statistics_of_nothing_are_unknown_and_not_zero() -> None:
    """An empty topic has no median weight."""
    report = pair_stats([], EVERY)
    assert (report["pairs"], report["weight"]["p50"], report["from"]) == (0, None, None)
    assert stats_table(report).row_count > 0


def test_an_export_holds_the_messages_as_they_stand() -> None:
    """Fields of a later version included; what is no pair is told."""
    pair, malformed = preference_pair(), list[LoggedPair]()
    line = LoggedPair(0, 0, CLICKED_MS, b'{"later":1}', pair)
    assert list(export_lines([line, *logged(None)], EVERY, malformed)) == [b'{"later":1}\n']
    assert len(malformed) == 1
    assert list(export_lines([line], Wanted(source="rule"), malformed)) == []


def test_every_factor_says_what_it_comes_from() -> None:
    """Positions with their examination by the prior, grade, and that nothing was sampled or capped."""
    told = {one["name"]: (one["value"], one["why"]) for one in factors(preference_pair())}
    assert told["value"] == (1.0, "grade 1 (click) is worth 1")
    assert told["ratio"] == (1.0, "positions 1 and 2: min(1, 1 / 0.5), by the prior")
    assert told["sampling"] == (1.0, "every pair was kept")
    late = preference_pair(source="value", weight=9.0).model_copy(update={"propensity_version": 3})
    told = {one["name"]: (one["value"], one["why"]) for one in factors(late)}
    assert told["value"][1].endswith("9 more than was known before")
    assert told["ratio"][1] == "how likely each position is looked at, version 3"


def test_an_explanation_holds_the_list_with_what_came_of_each_slot() -> None:
    """Chosen and rejected are marked; a record that is gone is told."""
    pair = preference_pair("s1", chosen="b", rejected="a")
    events: Sequence[dict[str, Any]] = [
        {"origin": {"topic": "search-events", "partition": 0, "offset": 1}, "event": impression(products="abc")},
        {"origin": {"topic": "search-events", "partition": 0, "offset": 2}, "event": click("b")},
        {"origin": {"topic": "search-events", "partition": 0, "offset": 3}, "problem": "gone"},
    ]
    report = explanation(pair, [Place(0, 7, CLICKED_MS)], events)
    slots = [(slot["product_id"], slot["position"], slot["role"], slot["events"]) for slot in report["slots"]]
    assert slots == [("a", 1, "rejected", []), ("b", 2, "chosen", ["click"]), ("c", 3, None, [])]
    assert (report["gone"], report["not_read"], report["weight_agrees"]) == (1, 0, True)
    assert len(explanation_tables(report)) == 4
    wrong = pair.model_copy(update={"weight": 2.0, "origins": (Origin(topic="t", partition=0, offset=0),) * 501})
    report = explanation(wrong, [], [])
    assert (report["weight_agrees"], report["not_read"]) == (False, 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"query": "q", "chosen": "a"}, "rejected"),
        ({"query": "q", "chosen": "a", "rejected": "a"}, "the same"),
        ({"query": "q", "chosen": "a", "rejected": "b", "weight": "much"}, "weight"),
        ({"query": " ", "chosen": "a", "rejected": "b"}, "query"),
    ],
)
def test_a_line_that_is_no_pair_says_why(fields: dict[str, Any], reason: str) -> None:
    """In a table empty fields are absent, so a blank query is a missing one."""
    read = PAIR_LINE.read(Row(3, fields), {})
    assert isinstance(read, BadLine)
    assert read.line == 3
    assert reason in read.message


def test_a_table_is_read_with_its_own_names_and_all_bad_lines_are_found(tmp_path: Path) -> None:
    """Columns that say nothing are left out; the same preference twice is told with the first line."""
    path = tmp_path / "pairs.csv"
    path.write_text(
        "search,chosen,rejected,weight,note,shelf\n"
        "Quiet fridge,P-1,P-2,2.5,dealers say so,7\n"
        "quiet  FRIDGE,P-1,P-2,,,\n"
        "kettle,P-3,,,,\n"
        "kettle,P-3,P-4,0,,\n",
        encoding="utf-8",
    )
    pairs, bad = read_file(path, {"query": "search"}, {"author": "merch"}, lambda _done, _of: None)
    (pair,) = pairs
    assert (pair.query, pair.weight, pair.note, pair.author) == ("Quiet fridge", 2.5, "dealers say so", "merch")
    assert pair.model_extra == {}
    assert [(one.line, one.reason) for one in bad if one.reason == "repeated"] == [(3, "repeated")]
    assert [one.line for one in bad] == [3, 4, 5]


def test_an_empty_file_or_one_without_a_query_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    path = tmp_path / "pairs.csv"
    path.write_text("chosen,rejected\nP-1,P-2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no column query"):
        read_file(path, {}, {}, lambda _done, _of: None)
    path.write_text("query,chosen,rejected\n", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no pair"):
        read_file(path, {}, {}, lambda _done, _of: None)

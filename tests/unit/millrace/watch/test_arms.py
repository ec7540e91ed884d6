"""Arms as page and command tell them: sums of all partitions, compared by groups of persons."""

from dataclasses import replace

import pytest
from rich.console import Console

from contracts.arms import ANCHOR, ARMS, LIVE, ArmCounts, Interleaving
from contracts.errors import DependencyDown
from millrace.arms import arms_table, comparisons_table, interleaving_words
from millrace.watch.arms import RATES, arms_report
from millrace.watch.kafka_view import KafkaView
from tests.support.deployment import arms_progress


def view(*partitions: int, **fields: object) -> KafkaView:
    """Return the view of arms agents of partitions."""
    return KafkaView(ends={}, progress={"arms": {one: arms_progress(one, **fields) for one in partitions}})  # type: ignore[arg-type] # as it takes them


def printed(table: object) -> str:
    """Return what a table shows."""
    console = Console(width=250, record=True)
    console.print(table)
    return console.export_text()


def test_figures_are_those_of_all_partitions_per_search() -> None:
    """Sums are added, and rates made of the sums."""
    report = arms_report(view(0, 1))
    assert report is not None
    live, anchor = report["arms"]
    assert [(row["arm"], row["surface"], row["searches"]) for row in (live, anchor)] == [
        (LIVE, "search", 200),
        (ANCHOR, "search", 200),
    ]
    assert live["click_rate"] == pytest.approx(live["clicked"] / 200)
    assert live["value_per_search"] == pytest.approx(live["value"] / 200)
    assert {*RATES.values()} <= {*ArmCounts.model_fields}


def test_live_is_compared_with_the_anchor_once_there_is_enough() -> None:
    """By groups of persons: those of one number are the same persons in every partition."""
    report = arms_report(view(0, 1, lists=6_400, lift=20))
    assert report is not None
    by_metric = {row["metric"]: row for row in report["comparisons"]}
    clicked = by_metric["clicked"]
    assert (clicked["verdict"], clicked["live_searches"]) == ("better", 6_400)
    assert clicked["low"] > 0
    assert clicked["value"] == pytest.approx(clicked["live"] - clicked["anchor"]) == pytest.approx(0.2)
    assert by_metric["purchased"]["verdict"] == "too little"
    text = printed(comparisons_table(report))
    assert "better" in text
    assert "+0.2000" in text


def test_an_undecided_comparison_says_how_many_more_lists_it_needs() -> None:
    """If the difference stays what it is; too little for an interval says that alone."""
    report = arms_report(view(0, lists=6_400, lift=1))
    assert report is not None
    groups = list(view(0, lists=6_400).progress["arms"][0].groups[ANCHOR])  # type: ignore[attr-defined] # of this agent
    noisy = tuple(group.model_copy(update={"clicked": 20 + 50 * (n % 2)}) for n, group in enumerate(groups))
    unsure = arms_progress(0, lists=6_400)
    unsure = unsure.model_copy(update={"groups": {**unsure.groups, ANCHOR: noisy}})
    report = arms_report(KafkaView(ends={}, progress={"arms": {0: unsure}}))
    assert report is not None
    clicked = report["comparisons"][0]
    assert clicked["verdict"] == "undecided"
    assert clicked["more_lists"] > 0
    assert f"about {clicked['more_lists']:,} more lists" in printed(comparisons_table(report))


def test_nothing_counted_is_told_as_nothing() -> None:
    """No figures and no verdict; what is not known is not told as nothing."""
    empty = arms_report(KafkaView(ends={}))
    assert empty is not None
    assert empty["arms"] == []
    assert {row["verdict"] for row in empty["comparisons"]} == {"too little"}
    assert {row["live"] for row in empty["comparisons"]} == {None}
    assert "No interleaved list" in interleaving_words(empty["interleaving"])
    assert "too little" in printed(comparisons_table(empty))
    assert arms_report(replace(view(0), unknown={"arms-progress": DependencyDown("it is gone")})) is None


def test_what_a_site_calls_its_surfaces_is_no_markup() -> None:
    """It is shown as it is written."""
    progress = arms_progress(0)
    odd = progress.model_copy(update={"arms": {LIVE: {"[red]x[/]": progress.arms[LIVE]["search"]}}})
    report = arms_report(KafkaView(ends={}, progress={"arms": {0: odd}}))
    assert report is not None
    assert "[red]x[/]" in printed(arms_table(report))


def test_every_rate_can_be_read_in_a_narrow_terminal() -> None:
    """Metrics are rows, so that arms and surfaces fit beside one another in 80 columns; no heading is cut."""
    rates = {name: place / 1_000 for place, name in enumerate(RATES, start=1)}
    rows = [{"arm": arm, "surface": "search", "searches": 1_234_567, **rates} for arm in ARMS[:4]]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(arms_table({"arms": rows}))
    read = {cells[1].strip(): cells[2:-1] for line in captured.get().splitlines() if len(cells := line.split("│")) > 2}
    for name, rate in rates.items():
        assert [float(cell) for cell in read[name.replace("_", " ")]] == [rate] * 4
    assert "…" not in captured.get()


def test_interleaved_lists_are_told_with_their_test() -> None:
    """Wins of all partitions, the share with its interval, and the p-value."""
    report = arms_report(view(0, 1, interleaving=Interleaving(live=60, anchor=20, tied=300)))
    assert report is not None
    told = report["interleaving"]
    assert (told["live"], told["anchor"], told["tied"], told["share"]) == (120, 40, 600, 0.75)
    assert told["p"] < 0.001
    words = interleaving_words(told)
    assert "live won 120, anchor 40, 600 tied" in words
    assert "75.0%" in words

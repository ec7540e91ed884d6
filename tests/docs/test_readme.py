"""The README is short and true: its test command is what CI runs, and its figures are recorded ones of the demo."""

import io
import re
from typing import Any

from rich.console import Console

from simulator.demo.report import facts_table, quality_table
from tests.support.markdown import ROOT, fences

README = ROOT / "README.md"
MOST_LINES = 130
NUMBER = r"[+-]?\d\.\d{4}"
OTHER_FIGURES: dict[str, Any] = {
    "freshness_s": {"click_to_search": {"p50": 1, "p99": 1}, "product_to_search": {"p50": 1, "p99": 1}},
    "search_ms": {"p50": 1, "p99": 1},
    "releases": {"query": 1, "product": 1},
    "events": {"sent": 1, "accepted": 1},
    "ledger": {},
}


def text_block(name: str) -> str:
    """Return the README's text block of that name."""
    (found,) = [one.text for one in fences(README, "text") if one.name == name]
    return found


def printed(renderable: Any) -> list[str]:
    """Return the lines that a terminal shows."""
    file = io.StringIO()
    Console(file=file, width=100).print(renderable)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_it_is_read_in_a_minute() -> None:
    """The README keeps to its length; what does not fit belongs into docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    """`.ci/run` calls the command that the README gives for the tests, and nothing else."""
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert "make test" in [
        line.split("#")[0].strip() for fence in fences(README, "bash") for line in fence.text.splitlines()
    ]


def test_two_commands_stand_before_everything_else() -> None:
    """The first block of commands in the README is `make demo` and `make test`."""
    first = fences(README, "bash")[0]
    commands = [line.split("#")[0].strip() for line in first.text.splitlines()]
    assert [line for line in commands if line.startswith("make")] == ["make demo", "make test"]


def test_flow_is_drawn_in_plain_text() -> None:
    """The picture of the flow can be read without a renderer and names every process of ours."""
    picture = text_block("flow")
    for process in ("collector", "join", "pairs", "trainer", "indexer", "search", "Qdrant"):
        assert process in picture


def test_the_screen_is_what_the_demo_prints_of_a_recorded_run() -> None:
    """The closing screen is drawn by the demo's own code, and the figures of its table are in the experiments."""
    shown = text_block("screen").splitlines()
    recorded = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    quality: dict[str, Any] = {}
    for split, queries, metric, *numbers in re.findall(
        rf"│ (\w+) \((\d+)\) +│ (\S+) +│ ({NUMBER}) +│ ({NUMBER}) +│ ({NUMBER})  \(({NUMBER}) to ({NUMBER})\)",
        text_block("screen"),
    ):
        before, after, mean, low, high = numbers
        assert f"| {split} {metric}, before → after | {before} → {after} |" in recorded
        assert f"| {split} {metric}, difference (95 %) | {mean} ({low} to {high}) |" in recorded
        part = quality.setdefault(split, {"queries": int(queries), "before": {}, "after": {}, "difference": {}})
        part["before"][metric], part["after"][metric] = float(before), float(after)
        part["difference"][metric] = {"mean": float(mean), "low": float(low), "high": float(high)}
    table = printed(quality_table(quality))
    assert shown[: len(table)] == table
    labels = [re.split(r" {2,}", line)[0] for line in printed(facts_table(OTHER_FIGURES))]
    rest = [re.split(r" {2,}", line)[0] for line in shown[len(table) :]]
    assert rest == [label for label in labels if label in rest]

"""The command that compares arms: what became of each arm's searches, and whether learning helps."""

from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from contracts.telemetry import Process
from millrace.asking import numbers, observe, tell_unknown, texts
from millrace.output import Json, out, print_json


def arms(json: Json = False) -> None:
    """Show what became of each arm's searches, and whether live is better than the anchor: at any time, at 5 % error.

    Example: millrace arms
    """
    from millrace.watch.arms import arms_report
    from millrace.watch.ledger import unknown_report
    from streams.arms.partition_arms import ARMS_AGENT

    seen = observe(lambda observer: observer.look())
    report = arms_report(seen)
    if json:
        print_json({**(report or {"arms": None}), "unknown": unknown_report(seen)})
    elif report is not None:
        out().print(arms_table(report) if report["arms"] else "no search was closed yet")
        out().print(comparisons_table(report))
        out().print(interleaving_words(report["interleaving"]))
    tell_unknown(seen, [ARMS_AGENT.progress_topic, Process.KAFKA.value])


def arms_table(report: Mapping[str, Any]) -> Table:
    """A column for each arm and surface; what a site calls its surfaces is shown as it is, never as markup."""
    from millrace.watch.arms import RATES

    arms = report["arms"]
    table = Table(*texts("per search"), *(Column(Text(row["arm"]), justify="right", overflow="fold") for row in arms))
    table.add_row("surface", *(Text(row["surface"]) for row in arms))
    table.add_row("searches", *(f"{row['searches']:,}" for row in arms), end_section=True)
    for name in RATES:
        table.add_row(name.replace("_", " "), *(f"{row[name]:.4f}" for row in arms))
    return table


def comparisons_table(report: Mapping[str, Any]) -> Table:
    """Live against the anchor as a table, per search."""
    table = Table("per search", *numbers("live", "anchor", "difference", "95 % interval"), "verdict")
    for row in report["comparisons"]:
        means = ("-" if row[arm] is None else f"{row[arm]:.4f}" for arm in ("live", "anchor"))
        told = ["-", "-"]
        if row["value"] is not None:
            told = [f"{row['value']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}"]
        more = "" if row["more_lists"] is None else f": about {row['more_lists']:,} more lists"
        table.add_row(row["metric"], *means, *told, f"{row['verdict']}{more}")
    return table


def interleaving_words(interleaved: Mapping[str, Any]) -> str:
    """What interleaved lists say, in one sentence."""
    if interleaved["share"] is None:
        return "No interleaved list was decided (MILLRACE_INTERLEAVE_SHARE)."
    won = f"live won {interleaved['live']:,}, anchor {interleaved['anchor']:,}, {interleaved['tied']:,} tied"
    share = f"{interleaved['share']:.1%} ({interleaved['low']:.1%} to {interleaved['high']:.1%})"
    return f"Interleaved: {won}; live wins {share}, p = {interleaved['p']:.3g}."

"""The demo's closing figures: one JSON document, and the same as a screen for people."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simulator.evaluation import METRICS

LINES_PER_EXAMPLE: Final = 5


def closing_screen(
    figures: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], links: Mapping[str, str]
) -> Group:
    """Return the screen that ends a demo.

    Args:
        figures: the document that `--json` writes.
        examples: per example query `query`, `class`, and `before` and `after`: result rows with `title` and `grade`.
        links: what to open next -> where.
    """
    return Group(
        *(example_panel(example) for example in examples),
        quality_table(figures["quality"]),
        facts_table(figures),
        next_steps(links),
    )


def example_panel(example: Mapping[str, Any]) -> Panel:
    """Return one query's first results before and after, side by side, with the shop's own grades."""
    table = Table(box=None, expand=True, show_header=True, pad_edge=False)
    table.add_column("before", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("after", ratio=1, overflow="ellipsis", no_wrap=True)
    before, after = example["before"][:LINES_PER_EXAMPLE], example["after"][:LINES_PER_EXAMPLE]
    for index in range(max(len(before), len(after))):
        table.add_row(*(_result(rows, index) for rows in (before, after)))
    return Panel(table, title=Text(f"“{example['query']}”  ({example['class'].replace('_', ' ')})"), title_align="left")


def _result(rows: Sequence[Mapping[str, Any]], index: int) -> Text:
    if index >= len(rows):
        return Text("")
    grade = rows[index]["grade"]
    colour = "green" if grade >= 3 else "yellow" if grade > 0 else "dim"
    return Text.assemble((f"{'★' * grade:4} ", colour), rows[index]["title"])


def quality_table(quality: Mapping[str, Any]) -> Table:
    """Return quality before and after; the interval is a paired bootstrap over queries."""
    table = Table(
        title="Search quality (★ = the shop's own grade; 'unseen' = queries that no shopper typed)",
        title_justify="left",
    )
    for name in ("queries", "metric", "before", "after", "difference (95 % interval)"):
        table.add_column(name)
    for split in ("unseen", "seen"):
        part = quality[split]
        for metric in METRICS:
            difference = part["difference"][metric]
            interval = f"{difference['mean']:+.4f}  ({difference['low']:+.4f} to {difference['high']:+.4f})"
            before, after = (f"{part[when][metric]:.4f}" for when in ("before", "after"))
            table.add_row(
                f"{split} ({part['queries']})", metric, before, after, interval, end_section=metric == METRICS[-1]
            )
    return table


def facts_table(figures: Mapping[str, Any]) -> Table:
    """Return freshness, latency, releases and both ledgers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for path, name in (("click_to_search", "click to search"), ("product_to_search", "product to search")):
        row = figures["freshness_s"][path]
        missing = f"; {row['missing']:,} not seen in time" if row.get("missing") else ""
        table.add_row(name, f"{_seconds(row['p50'])} (p50), {_seconds(row['p99'])} (p99){missing}")
    latency = figures["search_ms"]
    table.add_row("search", f"{latency['p50']:.1f} ms (p50), {latency['p99']:.1f} ms (p99), as the shop's site saw it")
    releases, events = figures["releases"], figures["events"]
    table.add_row("releases", f"{releases['query']} of the query head, {releases['product']} of the whole index")
    table.add_row("events", f"{events['sent']:,} sent, {events['accepted']:,} accepted")
    for name, terms in figures["ledger"].items():
        table.add_row(f"{name} ledger", _ledger_line(terms))
    return table


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f} s"


def _ledger_line(terms: Mapping[str, Any]) -> str:
    parts = []
    for term, value in terms.items():
        count = sum(value.values()) if isinstance(value, Mapping) else value
        if count or term == "balance":
            parts.append(f"{term.replace('_', ' ')} {count:,}")
    return ", ".join(parts)


def next_steps(links: Mapping[str, str]) -> Panel:
    """Return where to look next."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, where in links.items():
        table.add_row(name, where)
    return Panel(table, title="Where to look next", title_align="left")


def live_view(progress: Mapping[str, Any]) -> RenderableType:
    """Return the view that runs beside the shoppers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    rate = f"{progress['events']:,} events ({progress['events_per_s']:.0f}/s)"
    released = f"{progress['query_releases']} query and {progress['product_releases']} product releases"
    table.add_row("shoppers", progress["clock"])
    table.add_row("traffic", f"{progress['searches']:,} searches, {progress['clicks']:,} clicks, {rate}")
    table.add_row("learning", f"{progress['pairs']:,} pairs, {released}")
    for name in ("in force", "click to search", "product to search", "quality so far"):
        table.add_row(name, progress[name])
    return Panel(table, title="Millrace demo", title_align="left")


def live_line(progress: Mapping[str, Any]) -> str:
    """Return the live view as one line, for logs and pipes."""
    return (
        f"{progress['clock']}: {progress['searches']:,} searches, {progress['clicks']:,} clicks, "
        f"{progress['events']:,} events ({progress['events_per_s']:.0f}/s), {progress['pairs']:,} pairs, "
        f"{progress['query_releases']} query and {progress['product_releases']} product releases; "
        f"click to search {progress['click to search']}; quality so far {progress['quality so far']}"
    )

"""What the demo shows: its progress while it runs; its figures at the end, as one JSON document and as a screen."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from millrace.output import counted
from simulator.demo.freshness import quantiles
from simulator.evaluation import METRICS
from simulator.shop.traffic import Totals

LINES_PER_EXAMPLE: Final = 5
LINE_EVERY_S: Final = 10.0


def figures_of(
    *,
    seed: int,
    seconds: int,
    world: str,
    quality: dict[str, Any],
    totals: Totals,
    ledger: dict[str, Any],
    releases: dict[str, int],
    freshness: dict[str, Any],
) -> dict[str, Any]:
    """Put the demo's closing figures into the one document that `--json` writes."""
    splits = {name: {key: part[key] for key in part if key != "by_class"} for name, part in quality.items()}
    return {
        "seed": seed,
        "world": world,
        "seconds": seconds,
        "events": {"sent": totals.sent, "accepted": totals.events_accepted},
        "searches": {"answered": totals.searches, "failed": totals.search_errors, "clicks": totals.clicks},
        "ledger": ledger,
        "releases": releases,
        "quality": {**splits, "by_class": {name: part["by_class"] for name, part in quality.items()}},
        "freshness_s": freshness,
        "search_ms": quantiles(totals.search_ms),
    }


def shortfalls(totals: Totals, never_found: Sequence[str]) -> list[str]:
    """Say what went wrong while shoppers shopped, a line each.

    >>> shortfalls(Totals(visits_skipped=3), ["L-1"])
    ['3 visits did not begin: this machine was too slow', 'never found after their launch: L-1']
    """
    lines = []
    if totals.search_errors:
        failed = counted(totals.search_errors, "search", "searches")
        lines.append(f"{failed} failed, the last one with {totals.last_error}")
    if totals.visits_skipped:
        lines.append(f"{counted(totals.visits_skipped, 'visit')} did not begin: this machine was too slow")
    if totals.delivery.rejected or totals.delivery.failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in totals.delivery.reasons.most_common(3))
        lines.append(f"{totals.delivery.rejected + totals.delivery.failed} events were not accepted: {reasons}")
    if never_found:
        lines.append(f"never found after their launch: {', '.join(never_found)}")
    return lines


def closing_screen(
    figures: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], links: Mapping[str, str]
) -> Group:
    """Build the screen that ends a demo.

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
    """One query's first results before and after, side by side, with the shop's own grades."""
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
    """Quality before and after; the interval is a paired bootstrap over queries."""
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
    """Freshness, latency, releases and both ledgers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for path, name in (("click_to_search", "click to search"), ("product_to_search", "product to search")):
        row = figures["freshness_s"][path]
        missing = f"; {row['missing']:,} not seen in time" if row.get("missing") else ""
        table.add_row(name, f"{_seconds(row['p50'])} (p50), {_seconds(row['p99'])} (p99){missing}")
    latency = figures["search_ms"]
    table.add_row("search", f"{latency['p50']:.1f} ms (p50), {latency['p99']:.1f} ms (p99), as the shop's site saw it")
    releases, events = figures["releases"], figures["events"]
    table.add_row("releases", f"{releases['query']} of the query tower, {releases['product']} of product quality")
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
    """Where to look next."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, where in links.items():
        table.add_row(name, where)
    return Panel(table, title="Where to look next", title_align="left")


def live_view(progress: Mapping[str, Any]) -> RenderableType:
    """The panel that is shown while shoppers shop."""
    table = Table(box=None, show_header=False, pad_edge=False)
    rate = f"{progress['events']:,} events ({progress['events_per_s']:.0f}/s)"
    released = f"{progress['query_releases']} query and {progress['product_releases']} product releases"
    table.add_row("shoppers", progress["clock"])
    table.add_row("traffic", f"{progress['searches']:,} searches, {progress['clicks']:,} clicks, {rate}")
    table.add_row("learning", f"{progress['lists']:,} lists, {released}")
    for name in ("in force", "click to search", "product to search", "quality so far"):
        table.add_row(name, progress[name])
    return Panel(table, title="Millrace demo", title_align="left")


def live_line(progress: Mapping[str, Any]) -> str:
    """The same as one line, for logs and pipes."""
    return (
        f"{progress['clock']}: {progress['searches']:,} searches, {progress['clicks']:,} clicks, "
        f"{progress['events']:,} events ({progress['events_per_s']:.0f}/s), {progress['lists']:,} lists, "
        f"{progress['query_releases']} query and {progress['product_releases']} product releases; "
        f"click to search {progress['click to search']}; quality so far {progress['quality so far']}"
    )


class LiveView:
    """Shows the demo's progress: a panel that is redrawn if the terminal can, else a line every ten seconds."""

    def __init__(self, console: Console, progress: Callable[[], dict[str, Any]]) -> None:
        self._console = console
        self._progress = progress
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Show what there is now."""
        if self._live:
            self._live.update(live_view(self._progress()), refresh=True)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(live_line(self._progress()))

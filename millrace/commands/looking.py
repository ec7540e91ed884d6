"""Commands that look at a running deployment: lag, ledger, freshness, releases, and what is wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Column, Table
from rich.text import Text

from contracts.errors import CheckFailed, DependencyDown
from millrace.context import running_settings
from millrace.output import messages, out, print_json

if TYPE_CHECKING:
    from millrace.doctor import Check
    from millrace.watch.observer import Observer

Json = Annotated[bool, typer.Option("--json", help="Print stable JSON on stdout.")]
CATCH_UP_S = 30.0
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}

T = TypeVar("T")


def observe(question: Callable[["Observer"], T]) -> T:
    """Return what an observer of the running deployment answers.

    Raises:
        UsageError: no Kafka is named and none runs here.
        DependencyDown: Kafka does not answer.
    """
    from millrace.watch.observer import Observer

    settings = running_settings()
    settings.require("kafka_bootstrap")
    with Observer(settings) as observer:
        observer.wait_caught_up(CATCH_UP_S)
        return question(observer)


def lag(json: Json = False) -> None:
    """Show how far each consumer group is behind, per partition, measured from outside.

    Example: millrace lag --json
    """
    from millrace.watch.lag import lag_report

    report = observe(lambda observer: lag_report(observer.look()))
    print_json(report) if json else out().print(lag_table(report))


def lag_table(report: Mapping[str, Any]) -> Table:
    """Return the lag as a table, a line under each group."""
    table = Table("group", "topic", *_numbers("partition", "position", "end", "lag", "held"))
    rows = report["partitions"]
    for row, following in zip(rows, [*rows[1:], {"group": None}], strict=True):
        figures = (f"{row[key]:,}" for key in ("partition", "position", "end", "lag", "held"))
        table.add_row(row["group"], row["topic"], *figures, end_section=row["group"] != following["group"])
    return table


def _numbers(*names: str) -> list[Column]:
    """Return columns that hold numbers."""
    return [Column(name, justify="right") for name in names]


def ledger(json: Json = False) -> None:
    """Show both ledgers; every accepted event and closed search is accounted for. Exit code 3 where one is not.

    Example: millrace ledger
    """
    from millrace.watch.ledger import ledger_report

    report = observe(lambda observer: ledger_report(observer.look()))
    print_json(report) if json else out().print(ledger_table(report))
    unbalanced = [name for name, terms in report.items() if terms["balance"] != 0]
    if unbalanced:
        raise CheckFailed(
            f"the ledger of {' and '.join(unbalanced)} does not balance",
            fix="compare the terms with the logs of `streams` and `indexer`; report it with both",
        )


def ledger_table(report: Mapping[str, Any]) -> Table:
    """Return both ledgers as one table."""
    table = Table("ledger", "term", *_numbers("records"))
    for name, terms in report.items():
        for term, value in terms.items():
            reasons = value if isinstance(value, Mapping) else {}
            total = sum(reasons.values()) if isinstance(value, Mapping) else value
            table.add_row(name, term.replace("_", " "), f"{total:,}", end_section=term == "balance")
            for reason, count in reasons.items():
                table.add_row(name, f"  {reason.replace('_', ' ')}", f"{count:,}")
    return table


def freshness(json: Json = False) -> None:
    """Show how long clicks and product changes took to become visible in search.

    Example: millrace freshness --json
    """
    from millrace.watch.freshness import freshness_report
    from millrace.watch.scrape import look_at_processes, scrape_targets

    views = look_at_processes(scrape_targets(running_settings()))
    if not views:
        raise DependencyDown(
            "it is not known where the processes run",
            fix="start everything with `millrace up`, or set MILLRACE_SCRAPE=search=http://host:port,...",
        )
    for name in [name for name, view in views.items() if view.ready is None]:
        messages().print(f"{name} does not answer; what it measured is missing", markup=False)
    report = freshness_report(view.metrics for view in views.values())
    print_json(report) if json else out().print(freshness_table(report))


def freshness_table(report: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Return the freshness of both ways as a table."""
    table = Table("way", *_numbers("p50", "p99", "measured"))
    for path, row in report.items():
        quantiles = ("-" if row[name] is None else f"{row[name]:.2f} s" for name in ("p50", "p99"))
        table.add_row(path.replace("_", " "), *quantiles, f"{row['count']:,.0f}")
    return table


def doctor(json: Json = False) -> None:
    """Find what is wrong and say how to mend it, in under 10 s. Exit code 3 where a check fails.

    Example: millrace doctor
    """
    from millrace.doctor import doctor_report, examine

    checks = examine(running_settings())
    print_json(doctor_report(checks)) if json else out().print(checks_table(checks))
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise CheckFailed(f"failed: {', '.join(failed)}", fix="each check above says how to mend it")


def checks_table(checks: "Sequence[Check]") -> Table:
    """Return the doctor's checks as a table; what servers said is shown as it is, never as markup."""
    table = Table("check", "", Column("what was seen", overflow="fold"), Column("fix", overflow="fold"))
    for check in checks:
        status = Text(check.status, style=COLOURS[check.status])
        table.add_row(check.name, status, Text(check.cause), Text(check.fix))
    return table


releases_app = typer.Typer(help="Releases of both towers.", no_args_is_help=True)


@releases_app.command("ls")
def releases_ls(json: Json = False) -> None:
    """List the releases on the `models` topic, newest first, and which are in force.

    Example: millrace releases ls
    """
    from millrace.watch.releases import releases_report

    report = observe(lambda observer: releases_report(observer.models.look()))
    print_json(report) if json else out().print(releases_table(report))


def releases_table(report: Mapping[str, Any]) -> Table:
    """Return the releases as a table, with the pair in force above it."""
    serving = report["serving"]
    title = "nothing is in force yet"
    if serving is not None:
        title = f"in force: query release {serving['query_release']}, product release {serving['product_release']}"
    table = Table("release", "in force", *_numbers("pairs trained", "drift", "checks passed"), title=title)
    for row in report["releases"]:
        passed = f"{sum(check['passed'] for check in row['checks'])}/{len(row['checks'])}"
        force = "yes" if row["in_force"] else ""
        figures = (f"{row['pairs_trained']:,}", f"{row['drift_mean']:.4f}", passed)
        table.add_row(f"{row['kind']} {row['release']}", force, *figures)
    return table

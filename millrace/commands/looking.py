"""Commands that look at a running deployment: lag, ledger, freshness, releases."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from contracts.errors import CheckFailed
from millrace.context import running_settings
from millrace.output import messages, out, print_json
from millrace.watch.freshness import freshness_report
from millrace.watch.lag import lag_report
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from millrace.watch.scrape import look_at_processes, scrape_targets

Json = Annotated[bool, typer.Option("--json", help="Print stable JSON on stdout.")]
CATCH_UP_S = 30


def lag(json: Json = False) -> None:
    """Show how far each consumer group is behind, per partition, measured from outside.

    Example: millrace lag --json
    """
    settings = running_settings()
    settings.require("kafka_bootstrap")
    with Observer(settings) as observer:
        observer.wait_caught_up(CATCH_UP_S)
        report = lag_report(observer.look())
    print_json(report) if json else out().print(lag_table(report))


def lag_table(report: Mapping[str, Any]) -> Table:
    """Return the lag as a table."""
    table = Table("group", "topic", "partition", "position", "end", "lag", "held")
    for row in report["partitions"]:
        table.add_row(
            row["group"], row["topic"], *(f"{row[key]:,}" for key in ("partition", "position", "end", "lag", "held"))
        )
    return table


def ledger(json: Json = False) -> None:
    """Show both ledgers; every accepted event and closed search is accounted for. Exit code 3 where one is not.

    Example: millrace ledger
    """
    settings = running_settings()
    settings.require("kafka_bootstrap")
    with Observer(settings) as observer:
        observer.wait_caught_up(CATCH_UP_S)
        report = ledger_report(observer.look())
    print_json(report) if json else out().print(ledger_table(report))
    unbalanced = [name for name, terms in report.items() if terms["balance"] != 0]
    if unbalanced:
        raise CheckFailed(
            f"the ledger of {' and '.join(unbalanced)} does not balance",
            fix="compare the terms with the logs of `streams` and `indexer`; report it with both",
        )


def ledger_table(report: Mapping[str, Any]) -> Table:
    """Return both ledgers as one table."""
    table = Table("ledger", "term", "records")
    table.columns[2].justify = "right"
    for name, terms in report.items():
        for term, value in terms.items():
            if isinstance(value, Mapping):
                for reason, count in value.items():
                    table.add_row(name, f"{term}: {reason}", f"{count:,}")
            else:
                table.add_row(name, term, f"{value:,}", end_section=term == "balance")
    return table


def freshness(json: Json = False) -> None:
    """Show how long clicks and product changes took to become visible in search."""
    views = look_at_processes(scrape_targets(running_settings()))
    report = freshness_report(view.metrics for view in views.values())
    if json:
        print_json(report)
        return
    silent = [name for name, view in views.items() if view.ready is None]
    if silent:
        messages().print(f"no answer from: {', '.join(silent)}")
    table = Table("way", "p50", "p99", "measured")
    for path, row in report.items():
        quantiles = ("-" if row[q] is None else f"{row[q]:.2f} s" for q in ("p50", "p99"))
        table.add_row(path.replace("_", " "), *quantiles, f"{row['count']:,.0f}")
    out().print(table)


releases_app = typer.Typer(help="Releases of both towers.", no_args_is_help=True)


@releases_app.command("ls")
def releases_ls(json: Json = False) -> None:
    """List the releases on the `models` topic, newest first, and which are in force."""
    settings = running_settings()
    settings.require("kafka_bootstrap")
    with Observer(settings) as observer:
        observer.wait_caught_up(CATCH_UP_S)
        report = observer.releases.report()
    if json:
        print_json(report)
        return
    table = Table("release", "in force", "pairs trained", "drift", "checks passed")
    for row in report["releases"]:
        passed = sum(check["passed"] for check in row["checks"])
        name = f"{row['kind']} {row['release']}"
        force = "yes" if row["in_force"] else ""
        table.add_row(
            name, force, f"{row['pairs_trained']:,}", f"{row['drift_mean']:.4f}", f"{passed}/{len(row['checks'])}"
        )
    out().print(table)

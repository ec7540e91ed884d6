"""Commands that start and stop a deployment, ask how it is, and write the schemas of its messages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from contracts.errors import MillraceError, UsageError
from contracts.telemetry import Process
from deploy.local.state import load_running_settings
from deploy.local.supervised_process import State
from millrace.asking import observe
from millrace.output import Json, counted, messages, out, print_json
from millrace.watch.scrape import freshness_report, look_at_processes, scrape_targets
from service.settings import Settings


def _progress(name: str, state: str, detail: str) -> None:
    messages().print(f"{name:10} {state}{f'  {detail}' if detail else ''}")


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is ready.")] = False,
    brokers: Annotated[int, typer.Option(help="Kafka brokers to start: 1 or 3.")] = 1,
    json: Json = False,
) -> None:
    """Run Kafka, Redis, a vector store and every Millrace process on this machine, until Ctrl-C.

    Example: millrace up --detach
    """
    from millrace import processes

    if brokers not in (1, 3):
        raise UsageError(f"--brokers {brokers} is not possible", fix="use 1 or 3")
    show: Callable[[dict[str, Any]], None] = print_json if json else lambda report: None
    if detach:
        show(processes.up_detached(brokers=brokers, on_progress=_progress))
    else:
        processes.up(brokers=brokers, on_progress=_progress, on_ready=show)


def down(json: Json = False) -> None:
    """Stop what `millrace up` runs here.

    Example: millrace down
    """
    from millrace import processes

    report = processes.down()
    if json:
        print_json(report)
        return
    what = "stopped what ran" if report["stopped"] else "nothing ran"
    messages().print(f"{what} on {report['data_dir']}")


def status(json: Json = False) -> None:
    """Show every process, the releases in force, lag and freshness.

    Example: millrace status --json
    """
    report = status_report()
    if json:
        print_json(report)
        return
    out().print(processes_table(report["processes"]))
    print_summary(report)
    if all(row["state"] == State.STOPPED for row in report["processes"]):
        messages().print("nothing runs here; `millrace up` starts everything")


def processes_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The processes as a table; what they wait for is shown as it is, never as markup."""
    table = Table("process", "state", "pid", "port", "waits for")
    for row in rows:
        reasons = Text("; ".join(row.get("reasons", ())))
        table.add_row(row["name"], row["state"], str(row["pid"] or ""), str(row["port"] or ""), reasons)
    return table


def print_summary(report: Mapping[str, Any]) -> None:
    """Print the releases in force, lag and freshness, each if it is known, and what is not known."""
    lines = []
    if serving := report["releases"].get("serving"):
        lines.append(
            f"in force: query release {serving['query_release']}, product release {serving['product_release']}"
        )
    for group, totals in report["lag"].items():
        records = totals["records"]
        lines.append(f"lag of {group}: " + ("not known" if records is None else counted(records, "record")))
    for path, row in report["freshness_s"].items():
        if row["p50"] is not None:
            lines.append(f"{path.replace('_', ' ')}: p50 {row['p50']:.1f} s, p99 {row['p99']:.1f} s")
    lines += [f"{part} not known: {reason}" for part, reason in report["unknown"].items()]
    for line in lines:
        out().print(line)


def status_report() -> dict[str, Any]:
    """Put `status` into stable JSON; what cannot be told is empty or None, with its reason, and no error."""
    from millrace import processes

    report = processes.status()
    settings = load_running_settings()
    measured = freshness_report(look_at_processes(scrape_targets(settings)).values())
    freshness_s = {path: {"p50": row["p50"], "p99": row["p99"]} for path, row in measured.items()}
    return {**report, **_seen_in_kafka(settings), "freshness_s": freshness_s}


def _seen_in_kafka(settings: Settings) -> dict[str, Any]:
    from millrace.watch.ledger import lag_report, unknown_report

    if settings.kafka_bootstrap is None:
        return {"releases": {}, "lag": {}, "unknown": {}}
    try:
        seen, serving = observe(lambda observer: (observer.look(), observer.models.serving()))
    except MillraceError as error:
        return {"releases": {}, "lag": {}, "unknown": {Process.KAFKA.value: error.message}}
    in_force = {"serving": serving.model_dump(mode="json") if serving else None}
    return {"releases": in_force, "lag": lag_report(seen)["groups"], "unknown": unknown_report(seen)}


def schema_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("docs/schemas"),
) -> None:
    """Write JSON Schema of every message and one AsyncAPI document.

    Example: millrace schema export docs/schemas
    """
    from millrace.schema import export

    export(folder)
    messages().print(f"schemas written to {folder}")

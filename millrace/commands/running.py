"""Commands that start, stop and measure things, and write files."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from contracts.errors import DependencyDown, UsageError
from millrace.commands.looking import CATCH_UP_S, Json
from millrace.context import running_settings
from millrace.output import messages, out, print_json
from service.settings import Settings

BENCHES: Final = ("streams",)
PLANNED_BENCHES: Final = ("collector", "trainer", "indexer", "search")
KAFKA_WAIT_S: Final = 3.0
"""How long `status` waits for Kafka: it is asked most when something is down."""


def demo(
    world: Annotated[Path | None, typer.Option(help="Folder with another world; see docs/quickstart.md.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world and its shoppers.")] = 1,
    seconds: Annotated[int, typer.Option(min=10, max=86_400, help="How long shoppers shop.")] = 120,
    keep: Annotated[bool, typer.Option("--keep", help="Serve on until Ctrl-C, also without a terminal.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure of the closing screen here.")] = None,
) -> None:
    """Start everything, let simulated shoppers click, and show how search got better.

    Example: millrace demo --seed 3
    """
    from simulator.demo.options import DemoOptions
    from simulator.demo.stage import run_demo

    run_demo(DemoOptions(world=world, seed=seed, seconds=seconds, keep=keep, json_file=json))


def _progress(name: str, state: str, detail: str) -> None:
    messages().print(f"{name:10} {state}{f'  {detail}' if detail else ''}", markup=False)


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
    on_ready = print_json if json else None
    processes.up(detach=detach, brokers=brokers, on_progress=_progress, on_ready=on_ready)


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
    messages().print(f"{what} on {report['data_dir']}", markup=False)


def status(json: Json = False) -> None:
    """Show every process, the releases in force, lag and freshness.

    Example: millrace status --json
    """
    report = status_report()
    if json:
        print_json(report)
        return
    out().print(processes_table(report["processes"]))
    for line in _summary(report):
        out().print(line, markup=False)


def processes_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the processes as a table; what they wait for is shown as it is, never as markup."""
    table = Table("process", "state", "pid", "port", "waits for")
    for row in rows:
        reasons = Text("; ".join(row.get("reasons", ())))
        table.add_row(row["name"], row["state"], str(row["pid"] or ""), str(row["port"] or ""), reasons)
    return table


def _summary(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if serving := report["releases"].get("serving"):
        releases = f"query release {serving['query_release']}, product release {serving['product_release']}"
        lines.append(f"in force: {releases}")
    lines += [f"lag of {group}: {totals['records']:,} records" for group, totals in report["lag"].items()]
    for path, row in report["freshness_s"].items():
        if row["p50"] is not None:
            lines.append(f"{path.replace('_', ' ')}: p50 {row['p50']:.1f} s, p99 {row['p99']:.1f} s")
    return lines


def status_report() -> dict[str, Any]:
    """Return `status` as stable JSON; what cannot be read because nothing runs is empty, not an error."""
    from millrace import processes
    from millrace.watch.freshness import freshness_report
    from millrace.watch.scrape import look_at_processes, scrape_targets
    from millrace.watch.snapshot import status_freshness

    report = processes.status()
    settings = running_settings()
    views = look_at_processes(scrape_targets(settings))
    fresh = status_freshness(freshness_report(view.metrics for view in views.values()))
    return {**report, **_seen_in_kafka(settings), "freshness_s": fresh}


def _seen_in_kafka(settings: Settings) -> dict[str, Any]:
    """Return the releases in force and the lag; empty, with a word on stderr, where Kafka does not tell."""
    from millrace.watch.lag import lag_report
    from millrace.watch.observer import Observer

    if settings.kafka_bootstrap is None:
        return {"releases": {}, "lag": {}}
    try:
        with Observer(settings.model_copy(update={"dependency_wait_s": KAFKA_WAIT_S})) as observer:
            observer.wait_caught_up(CATCH_UP_S)
            lag = lag_report(observer.look())["groups"]
            serving = observer.models.serving()
    except DependencyDown as exc:
        messages().print(f"releases and lag are not known: {exc.message}", markup=False)
        return {"releases": {}, "lag": {}}
    return {"releases": {"serving": serving.model_dump(mode="json") if serving else None}, "lag": lag}


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
    json: Json = False,
) -> None:
    """Measure one part beside its peer in the same run.

    Example: millrace bench streams --json
    """
    if name not in BENCHES:
        problem = f"bench {name} is not built yet" if name in PLANNED_BENCHES else f"there is no bench {name}"
        raise UsageError(problem, fix=f"built: {', '.join(BENCHES)}")
    run: Callable[[Callable[[str], None]], dict[str, Any]] = import_module(f"simulator.bench.{name}").run
    report = run(lambda line: messages().print(line, markup=False))
    print_json(report) if json else out().print(bench_table(report))


def bench_table(report: Mapping[str, Any]) -> Table:
    """Return what a bench measured as a table."""
    table = Table("what", "unit", "ours", "peer", "peer's", "ratio", "goal", "met")
    for row in report["results"]:
        ours, peers, ratio = f"{row['ours']:,.2f}", f"{row['peer_value']:,.2f}", f"{row['ratio']:.3f}"
        met = "yes" if row["met"] else "no"
        table.add_row(row["name"], row["unit"], ours, row["peer"], peers, ratio, str(row["goal"]), met)
    return table


def shop_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not hold other files.")],
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 1,
) -> None:
    """Write the built-in world as products.jsonl, queries.jsonl and judgments.jsonl.

    Example: millrace shop export my-world && millrace demo --world my-world
    """
    from simulator.shop.commands import export

    export(folder, seed)
    messages().print(f"world {seed} written to {folder}", markup=False)


def schema_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("docs/schemas"),
) -> None:
    """Write JSON Schema of every message and one AsyncAPI document.

    Example: millrace schema export docs/schemas
    """
    from millrace.schema import export

    export(folder)
    messages().print(f"schemas written to {folder}", markup=False)

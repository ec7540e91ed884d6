"""The simulator's commands: the thin edge between the command line and the demo, the benches and the built-in world."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from contracts.errors import UsageError
from millrace.output import Json, messages, out, print_json

BENCHES: Final = ("streams",)


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
    from simulator.demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(world=world, seed=seed, seconds=seconds, keep=keep, json_file=json))


def shop_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not hold other files.")],
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 1,
) -> None:
    """Write the built-in world as products.jsonl, queries.jsonl and judgments.jsonl.

    Example: millrace shop export my-world && millrace demo --world my-world
    """
    from simulator.shop.builtin import builtin_world
    from simulator.shop.world import export_world

    export_world(builtin_world(seed), folder)
    messages().print(f"world {seed} written to {folder}", markup=False)


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
    json: Json = False,
) -> None:
    """Measure one part beside its peer in the same run.

    Example: millrace bench streams --json
    """
    if name not in BENCHES:
        raise UsageError(f"there is no bench {name}", fix=f"there are: {', '.join(BENCHES)}")
    run: Callable[[Callable[[str], None]], dict[str, Any]] = import_module(f"simulator.bench.{name}").run
    report = run(lambda line: messages().print(line, markup=False))
    print_json(report) if json else out().print(bench_table(report))


def bench_table(report: Mapping[str, Any]) -> Table:
    """What a bench measured, as a table."""
    table = Table("what", "unit", "ours", "peer", "peer's", "ratio", "goal", "met")
    for row in report["results"]:
        ours, peers, ratio = f"{row['ours']:,.2f}", f"{row['peer_value']:,.2f}", f"{row['ratio']:.3f}"
        met = "yes" if row["met"] else "no"
        table.add_row(row["name"], row["unit"], ours, row["peer"], peers, ratio, str(row["goal"]), met)
    return table

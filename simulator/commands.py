"""The simulator's commands: the thin edge between the command line and the demo, the benches and the built-in world."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.progress import TaskID
from rich.table import Table

from contracts.errors import UsageError
from millrace.output import Json, messages, out, print_json
from service.machine import write_atomically

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


def simulate(  # noqa: PLR0913, PLR0917 # a command line
    world: Annotated[Path | None, typer.Option(help="Folder with a world; the built-in one without it.")] = None,
    lists: Annotated[int, typer.Option(min=1, help="How many lists are shown.")] = 12_000,
    seed: Annotated[int, typer.Option(help="Seed of queries, shoppers and noise.")] = 1,
    redeploy: Annotated[int, typer.Option(min=1, help="Lists after which the model is solved anew.")] = 500,
    shoppers: Annotated[
        str, typer.Option(help="simple: click on what they looked at; shop: the shop's own.")
    ] = "simple",
    bias: Annotated[str, typer.Option(help="position: look less at lower positions; none: alike at all.")] = "position",
    weights: Annotated[str, typer.Option(help="ratio: undo that; one: do not.")] = "ratio",
    explore: Annotated[float, typer.Option(min=0, help="Noise on the scores of shown lists, in nats.")] = 0.0,
    learner: Annotated[str, typer.Option(help="preference, or none for the untrained model.")] = "preference",
    loss: Annotated[str, typer.Option(help="softmax, logistic, hinge, squared or ranknet.")] = "softmax",
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
) -> None:
    """Show how much a world's clicks teach, without servers: lists are shown, clicked, counted and learned from.

    Example: millrace simulate --world my-world --lists 4000
    """
    from pydantic import TypeAdapter, ValidationError

    from service.settings import load_settings
    from simulator.shop.builtin import world_of
    from simulator.simulate import SimulateOptions, Simulation
    from towers.encoder import load_encoder

    given = {"lists": lists, "seed": seed, "redeploy": redeploy, "shoppers": shoppers, "bias": bias,
             "weights": weights, "explore": explore, "learner": learner, "loss": loss}  # fmt: skip
    try:
        options = TypeAdapter(SimulateOptions).validate_python(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(f"--{wrong['loc'][0]}: {wrong['msg']}", fix="millrace simulate --help") from error
    with progress_bars() as tell:
        simulation = Simulation(world_of(world, seed), load_encoder(load_settings().base_model), cache=world, tell=tell)
        report = simulation.run(options)
    if json is not None:
        write_json(json, report)
    out().print(simulation_table(report))


def simulation_table(report: Mapping[str, Any]) -> Table:
    """What a simulation learned, as a table."""
    title = f"{report['world']}: {report['clicks']:,} clicks, {report['cpu_s']:.0f} s of CPU time"
    table = Table("lists", "nDCG@10, queries typed", "nDCG@10, queries never typed", title=title)
    for point in report["curve"]:
        table.add_row(f"{point['lists']:,}", f"{point['seen']:.3f}", f"{point['unseen']:.3f}")
    changes = [report["quality"][name]["difference"]["ndcg@10"] for name in ("seen", "unseen")]
    table.add_section()
    table.add_row("gain", *(f"{one['mean']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})" for one in changes))
    return table


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows how much of how much is done, a bar for each kind of work."""
    from rich.progress import Progress

    with Progress(console=messages()) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=max(of, 1) if of else 0)

        yield tell


def write_json(path: Path, value: Any) -> None:
    """Write a report where the user asked for it."""
    try:
        write_atomically(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", fix="choose a writable folder") from error


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

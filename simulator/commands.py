"""The simulator's commands: the thin edge between the command line and the demo, the benches and the built-in world."""

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.table import Table

from contracts.errors import UsageError
from contracts.telemetry import FILTERS_ON
from millrace.output import Json, messages, out, print_json, progress_bars
from millrace.tables import column_names
from service.machine import write_atomically

if TYPE_CHECKING:
    from simulator.shown_lists import SimulateOptions

BENCHES: Final = ("streams", "collector", "trainer", "indexer", "graph", "search")


def demo(
    world: Annotated[Path | None, typer.Option(help="Folder with another world; see docs/quickstart.md.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world and its shoppers.")] = 1,
    seconds: Annotated[int, typer.Option(min=10, max=86_400, help="How long shoppers shop.")] = 120,
    clicks: Annotated[
        float | None, typer.Option(min=0.01, max=5, help="Clicks a list, about; as the world has it without.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Serve on until Ctrl-C, also without a terminal.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure of the closing screen here.")] = None,
) -> None:
    """Start everything, let simulated shoppers click, and show how search got better.

    Example: millrace demo --seed 3
    """
    from simulator.demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(world, seed=seed, seconds=seconds, clicks=clicks, keep=keep, json_file=json))


def shop_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not hold another world.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 1,
) -> None:
    """Write the built-in world as products.jsonl, queries.jsonl and judgments.jsonl.

    Example: millrace shop export my-world && millrace demo --world my-world
    """
    from simulator.shop.builtin import builtin_world
    from simulator.shop.world import export_world

    export_world(builtin_world(seed), folder)
    messages().print(f"world {seed} written to {folder}")


def simulate(  # noqa: PLR0913, PLR0917 # a command line
    world: Annotated[Path | None, typer.Option(help="Folder with a world; the built-in one without it.")] = None,
    lists: Annotated[int, typer.Option(min=1, help="How many lists are shown.")] = 12_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of queries, shoppers, noise and the built-in world.")] = 1,
    redeploy: Annotated[int, typer.Option(min=1, help="Lists after which the model is solved anew.")] = 500,
    shoppers: Annotated[
        str, typer.Option(help="simple: click on what they looked at; shop: the shop's own.")
    ] = "simple",
    bias: Annotated[
        str, typer.Option(help="Simple shoppers look less at lower positions (position), or not (none).")
    ] = "position",
    weights: Annotated[
        str, typer.Option(help="ratio: undo position bias; one: do not; auto: as the trainer does, by --swaps.")
    ] = "ratio",
    click_model: Annotated[
        str, typer.Option(help="How simple shoppers read a list: position, cascade or trust.")
    ] = "position",
    ranker: Annotated[
        str, typer.Option(help="Whose lists are shown: own, or always those of base, weak or strong.")
    ] = "own",
    swaps: Annotated[
        float, typer.Option(min=0, max=1, help="Share of lists whose neighbours are exchanged at random.")
    ] = 0.0,
    twin: Annotated[bool, typer.Option("--twin", help="Also solve the same lists without weights.")] = False,
    explore: Annotated[
        float, typer.Option(min=0, help="How far scores of shown lists move: nats, or with draws widths of a quality.")
    ] = 0.0,
    explore_by: Annotated[str, typer.Option(help="noise, or draws of each quality, as search does.")] = "noise",
    learner: Annotated[str, typer.Option(help="preference, one-pass heads, or none.")] = "preference",
    loss: Annotated[str, typer.Option(help="softmax, logistic, hinge, squared or ranknet.")] = "softmax",
    filters: Annotated[str, typer.Option(help="As MILLRACE_FILTERS.")] = ",".join(FILTERS_ON),
    look_ahead: Annotated[float, typer.Option(min=0, help="As MILLRACE_LOOK_AHEAD_S.")] = 0.0,
    trouble: Annotated[str, typer.Option(help="Who comes too: crawl, fraud, heavy and more (quickstart).")] = "none",
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
) -> None:
    """Show how much a world's clicks teach, without servers: lists are shown, clicked, counted and learned from.

    Example: millrace simulate --world my-world --lists 4000
    """
    from threadpoolctl import threadpool_limits

    from service.kafka_settings import comma_list
    from service.settings import load_settings
    from simulator.shop.builtin import world_of
    from simulator.simulate import Simulation
    from towers.encoder import load_encoder

    options = _simulate_options({
        "lists": lists, "seed": seed, "redeploy": redeploy, "shoppers": shoppers, "bias": bias, "weights": weights,
        "click_model": click_model, "ranker": ranker, "swaps": swaps, "twin": twin, "explore": explore,
        "explore_by": explore_by, "learner": learner, "loss": loss, "look_ahead": look_ahead, "trouble": trouble,
        "filters": [] if filters == "none" else comma_list(filters),
    })  # fmt: skip
    refuse_unwritable(json)
    with threadpool_limits(1), progress_bars() as tell:
        simulation = Simulation(world_of(world, seed), load_encoder(load_settings().base_model), cache=world, tell=tell)
        report = simulation.run(options)
    out().print(simulation_table(report))
    if json is not None:
        write_file(json, orjson.dumps(report, option=orjson.OPT_INDENT_2))


def _simulate_options(given: Mapping[str, object]) -> "SimulateOptions":
    from pydantic import TypeAdapter, ValidationError

    from simulator.shown_lists import SimulateOptions

    if given["trouble"] != "none" and given["shoppers"] != "simple":
        raise UsageError("--trouble is made among simple shoppers", fix="leave out --shoppers, or --trouble")
    try:
        return TypeAdapter(SimulateOptions).validate_python(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(
            f"--{str(wrong['loc'][0]).replace('_', '-')}: {wrong['msg']}", fix="millrace simulate --help"
        ) from error


def simulation_table(report: Mapping[str, Any]) -> Table:
    """What a simulation learned, as a table."""
    title = f"{report['world']}: {report['clicks']:,} clicks, {report['cpu_s']:.0f} s of CPU time"
    table = Table("lists", "nDCG@10, queries typed", "nDCG@10, queries never typed", title=title)
    measured = {name: one["queries"] > one["excluded"]["ndcg@10"] for name, one in report["quality"].items()}
    for point in report["curve"]:
        means = (f"{point[name]:.3f}" if measured[name] else "-" for name in ("seen", "unseen"))
        table.add_row(f"{point['lists']:,}", *means)
    differences = {"gain": report["quality"]}
    if (twin := report["twin"]) is not None:
        differences["over its naive twin" if twin["strength"] == 0 else "over its weighed twin"] = twin["quality"]
    table.add_section()
    for words, quality in differences.items():
        changes = {name: quality[name]["difference"]["ndcg@10"] for name in ("seen", "unseen")}
        table.add_row(words, *(
            f"{one['mean']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})" if measured[name] else "-"
            for name, one in changes.items()
        ))  # fmt: skip
    return table


def world_prepare(
    name: Annotated[str, typer.Argument(help="chorus (electronics rated by people) or msrd (films, judged).")],
    into: Annotated[Path, typer.Option(help="Folder to write the world to; must not hold another one.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Folder, or address, of the files; their public home without it.")
    ] = None,
    queries: Annotated[int | None, typer.Option(min=0, help="How many queries; 0 for all.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of which queries are for the test, and how often each is typed.")
    ] = 1,
) -> None:
    """Turn an open catalogue that people judged into a world; its licence is told.

    Example: millrace world prepare msrd --into films && millrace simulate --world films
    """
    from simulator.datasets import DATASETS, prepare
    from simulator.shop.world import export_world

    made = prepare(name, source=source, queries=queries, seed=seed)
    export_world(made, into)
    messages().print(f"{DATASETS[name].title}; {DATASETS[name].licence}")
    messages().print(f"{len(made.products):,} products, {len(made.queries):,} queries written to {into}")


def world_make(
    law: Annotated[str, typer.Argument(help="What shoppers want: rotation, words, quality or none.")],
    source: Annotated[Path, typer.Option("--from", help="Folder of a world that gives the titles.")],
    into: Annotated[Path, typer.Option(help="Folder to write the world to; must not hold another one.")],
    seed: Annotated[int, typer.Option(min=0, help="Of products, queries and law.")] = 1,
) -> None:
    """Make a world of another one's titles, whose shoppers want what a known law says.

    Example: millrace world make rotation --from chorus --into rotation && millrace simulate --world rotation
    """
    from service.settings import load_settings
    from simulator import made_worlds
    from simulator.shop.world import export_world, load_world
    from towers.encoder import load_encoder

    if into.resolve() == source.resolve():
        raise UsageError(f"{into} holds the world that gives the titles", fix="name another folder with --into")
    titles = load_world(source)
    with progress_bars() as tell:
        made = made_worlds.make(
            law, titles, load_encoder(load_settings().base_model), seed=seed, cache=source, tell=tell
        )
    export_world(made, into)
    messages().print(f"{len(made.products):,} products, {len(made.queries):,} queries written to {into}")


def experiment_run(
    file: Annotated[Path, typer.Argument(help="What is varied, as TOML; docs/experiments holds examples.")],
    into: Annotated[
        Path | None,
        typer.Option(help="Folder of the results, in the data folder without it; what is there is not run again."),
    ] = None,
    json: Json = False,
) -> None:
    """Run a seeded grid of worlds and settings, go on where it was left, and compare.

    Writes a report for each cell, and summary.json, table.txt, report.html and each plot as PNG beside them.

    Example: millrace experiment run docs/experiments/losses.toml --into losses
    """
    from threadpoolctl import threadpool_limits

    from service.settings import load_settings
    from simulator import experiment, experiment_page
    from towers.encoder import load_encoder

    settings = load_settings()
    folder = into or settings.data_dir / "experiments" / file.stem
    plan = experiment.read_plan(file)
    with threadpool_limits(1), progress_bars() as tell:
        found = experiment.run(plan, load_encoder(settings.base_model), into=folder, tell=tell)
    write_file(folder / "summary.json", orjson.dumps(found, option=orjson.OPT_INDENT_2))
    write_file(folder / "table.txt", experiment_page.markdown(found).encode())
    write_file(folder / "report.html", experiment_page.page(found).encode())
    for name, picture in experiment_page.pictures(found):
        write_file(folder / name, picture)
    messages().print(f"written to {folder}: summary.json, table.txt, report.html, plots as PNG")
    if json:
        print_json(found)
        return
    for name, variants in found["worlds"].items():
        head, *rows = experiment_page.rows(variants)
        table = Table(*head, title=f"{found['experiment']}: {name}")
        for row in rows:
            table.add_row(*row)
        out().print(table)


def backtest(  # noqa: PLR0913, PLR0917 # a command line
    catalog: Annotated[Path, typer.Option(help="Products: product_id, title and what else you have.")],
    clicks: Annotated[
        Path, typer.Option(help="Clicks: time, query, product_id; if you have them grade, search_id, session_id.")
    ],
    lists: Annotated[
        Path | None,
        typer.Option(help="What was shown: search_id, time, query, product_id, position; or JSON of joined-searches."),
    ] = None,
    columns: Annotated[str, typer.Option(help="Your names for ours: query=search_term,time=ts.")] = "",
    delay: Annotated[str, typer.Option(help="How late clicks are known: one or more of live, 1h, 1d.")] = "live,1h,1d",
    k: Annotated[int, typer.Option(min=1, max=100, help="Depth of the reciprocal rank.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and intervals.")] = 1,
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page for your browser here.")] = None,
) -> None:
    """Show what Millrace would have gained on your own old clicks, before you install anything else.

    CSV, TSV or JSON lines, packed by gzip or not. Each click is predicted before it is learned. A grade (click, cart or
    purchase) says what it is worth. With lists it learns as the trainer does: from what was passed over, too.

    Example: millrace backtest --catalog products.csv --clicks clicks.csv.gz --columns query=term --report report.html
    """
    from threadpoolctl import threadpool_limits

    from service.settings import load_settings
    from simulator.backtest import DELAYS_MS, Backtest, day_of
    from simulator.backtest_page import page
    from simulator.click_log import read_log
    from simulator.logged_lists import read_lists
    from towers.encoder import load_encoder

    delays = [name.strip() for name in delay.split(",")]
    if unknown := [name for name in delays if name not in DELAYS_MS]:
        raise UsageError(f"--delay: {unknown[0]!r} is not known", fix=f"one or more of {', '.join(DELAYS_MS)}")
    refuse_unwritable(json, report)
    with progress_bars() as tell:
        log = read_log(catalog, clicks, columns=column_names(columns), tell=tell)
    shown = None if lists is None else read_lists(lists, log, columns=column_names(columns))
    if log.unseen:
        fix = "correct --columns NAME=COLUMN"
        raise UsageError(f"none of the files has a column {', '.join(sorted(log.unseen))}", fix=fix)
    between = " to ".join(day_of(log.clicks[place].time_ms) for place in (0, -1))
    told = f"{len(log.clicks):,} clicks on {len(log.products):,} products, {between}; times: {log.times}"
    messages().print(told)
    for told in log.skipped.told():
        messages().print(f"skipped {told}")
    with threadpool_limits(1), progress_bars() as tell:
        encoder = load_encoder(load_settings().base_model)
        test = Backtest(log, encoder, cache=catalog.parent, tell=tell, k=k, seed=seed, lists=shown)
        found = test.run(delays)
    out().print(backtest_table(found))
    out().print(found["verdict"]["words"])
    if json is not None:
        write_file(json, orjson.dumps(found, option=orjson.OPT_INDENT_2))
    if report is not None:
        write_file(report, page(found).encode())


def backtest_table(report: Mapping[str, Any]) -> Table:
    """How each method did on the second half of a log, as a table."""
    k = report["settings"]["k"]
    title = f"MRR@{k} on the second half of {report['clicks']:,} clicks, {report['queries']:,} queries"
    table = Table("method", "clicks known", "all", "first time", "repeated", title=title)
    for name, by_delay in report["halves"]["second"].items():
        for delay, kinds in by_delay.items():
            means = [kinds[kind][f"mrr@{k}"] for kind in ("all", "first_time", "repeated")]
            table.add_row(name, delay, *("-" if mean is None else f"{mean:.3f}" for mean in means))
    return table


def refuse_unwritable(*paths: Path | None) -> None:
    """Refuse early what cannot be written in the end: a long run would have been for nothing.

    Raises:
        UsageError: a path is no file, or its folder is none that may be written.
    """
    for path in paths:
        if path is not None and ((path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK)):
            raise UsageError(f"cannot write {path}", fix="name a file in a folder that is there and may be written")


def write_file(path: Path, content: bytes) -> None:
    """Write a report where the user asked for it."""
    try:
        write_atomically(path, content)
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
    report = run(lambda line: messages().print(line))
    print_json(report) if json else out().print(bench_table(report))


def bench_table(report: Mapping[str, Any]) -> Table:
    """What a bench measured, as a table."""
    table = Table("what", "unit", "ours", "peer", "peer's", "ratio", "goal", "met")
    for row in report["results"]:
        ours, peers, ratio = f"{row['ours']:,.2f}", f"{row['peer_value']:,.2f}", f"{row['ratio']:.3f}"
        met = {True: "yes", False: "no"}.get(row["met"], "")
        table.add_row(row["name"], row["unit"], ours, row["peer"], peers, ratio, row["goal"] or "", met)
    return table

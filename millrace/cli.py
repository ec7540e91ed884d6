"""The `millrace` command: what it is called, and what becomes of every failure.

Typer answers wrong usage (exit code 2, with the nearest name), Ctrl-C and closed pipes; every other expected failure is
a MillraceError, which knows its exit code.
"""

import os
import sys
from typing import Annotated

import typer

from contracts.errors import DependencyDown, MillraceError, UsageError
from contracts.telemetry import Process
from deploy.local.processes import past_proxies
from millrace import (
    asking,
    auditing,
    curating,
    dead_letters,
    evaluating,
    explaining,
    exporting,
    importing,
    pair_origins,
    pairs,
    promoting,
    releasing,
    replaying,
    running,
)
from millrace.arms import arms
from millrace.erasing import erase
from millrace.golden import golden_app
from millrace.output import STDOUT_NAME, name_stdout, print_error
from millrace.propensities import propensities
from service.logging import configure
from service.process import expected_failure
from service.settings import Settings
from simulator import commands as simulating

app = typer.Typer(
    help="Millrace turns shop clicks into better product search, continuously.\n\nBegin with `millrace demo`.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shop_app = typer.Typer(help="The simulated shop.", no_args_is_help=True)
world_app = typer.Typer(help="Worlds of real catalogues and titles.", no_args_is_help=True)
experiment_app = typer.Typer(help="Many simulations, compared.", no_args_is_help=True)
schema_app = typer.Typer(help="Schemas of every message.", no_args_is_help=True)

app.command(rich_help_panel="Run")(simulating.demo)
app.command(rich_help_panel="Run")(running.up)
app.command(rich_help_panel="Run")(running.down)
app.command(rich_help_panel="Run")(erase)
app.command(rich_help_panel="Watch")(running.status)
app.command(rich_help_panel="Watch")(asking.doctor)
app.command(rich_help_panel="Watch")(asking.lag)
app.command(rich_help_panel="Watch")(asking.ledger)
app.command(rich_help_panel="Watch")(asking.freshness)
app.command(rich_help_panel="Watch")(arms)
app.command(rich_help_panel="Watch")(auditing.audit)
app.command(rich_help_panel="Watch")(propensities)
app.command(rich_help_panel="Ask")(asking.search)
app.command(rich_help_panel="Ask")(asking.encode)
app.command(rich_help_panel="Ask")(explaining.explain)
app.command(rich_help_panel="Measure")(replaying.replay)
app.command(rich_help_panel="Measure")(simulating.simulate)
app.command(rich_help_panel="Measure")(simulating.backtest)
app.command(rich_help_panel="Measure")(simulating.bench)
shop_app.command("export")(simulating.shop_export)
world_app.command("prepare")(simulating.world_prepare)
world_app.command("make")(simulating.world_make)
experiment_app.command("run")(simulating.experiment_run)
schema_app.command("export")(running.schema_export)
importing.catalog_app.command("vectors")(exporting.catalog_vectors)
pairs.pairs_app.command("explain")(pair_origins.pairs_explain)
pairs.pairs_app.command("import")(curating.pairs_import)
releasing.releases_app.command("promote")(promoting.releases_promote)
releasing.releases_app.command("diff")(promoting.releases_diff)
releasing.releases_app.command("evaluate")(evaluating.releases_evaluate)
app.add_typer(importing.catalog_app, name="catalog", rich_help_panel="Run")
app.add_typer(releasing.releases_app, name="releases", rich_help_panel="Watch")
app.add_typer(releasing.base_app, name="base", rich_help_panel="Run")
app.add_typer(pairs.pairs_app, name="pairs", rich_help_panel="Watch")
app.add_typer(dead_letters.dlq_app, name="dlq", rich_help_panel="Watch")
app.add_typer(golden_app, name="golden", rich_help_panel="Watch")
app.add_typer(explaining.product_app, name="product", rich_help_panel="Ask")
app.add_typer(shop_app, name="shop", rich_help_panel="Measure")
app.add_typer(world_app, name="world", rich_help_panel="Measure")
app.add_typer(experiment_app, name="experiment", rich_help_panel="Measure")
app.add_typer(schema_app, name="schema", rich_help_panel="Measure")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(f"millrace {installed('millrace')}\n")
        sys.stdout.flush()
        raise typer.Exit


def main() -> None:
    """Run the command line; every expected failure is one line, its fix and an exit code."""
    os.environ.update(past_proxies(os.environ))
    # Standard output is for what a command prints; what a Kafka client cannot do, a command says in its own words.
    configure("millrace", Settings(log_level="warning"), silent=("kafka.",))
    name_stdout()
    try:
        app()
    except Exception as error:
        failure = meaning(error)
        if failure is None:
            raise
        print_error(failure)
        sys.exit(failure.exit_code)


def meaning(error: Exception) -> MillraceError | None:
    """Say what a failure means to the person at the terminal; None if nobody foresaw it."""
    if isinstance(error, OSError) and error.filename == STDOUT_NAME:
        return DependencyDown(f"disk full: cannot write {STDOUT_NAME}", fix="free some space, or send it elsewhere")
    expected = expected_failure(error, process=Process.PAGE)
    if expected is None and isinstance(error, OSError) and error.filename is not None:
        return UsageError(f"{error.filename}: {error.strerror}", fix="give a path that can be read or written")
    return expected

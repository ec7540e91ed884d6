"""The `millrace` command."""

import sys
from typing import Annotated

import click
import typer
from rich.table import Table

from contracts.errors import CheckFailed, MillraceError
from millrace.commands import asking, looking, planned, running
from millrace.commands.looking import Json
from millrace.doctor import doctor_report, examine
from millrace.output import messages, out, print_error, print_json

app = typer.Typer(
    help="Millrace turns shop clicks into better product search, continuously.\n\nBegin with `millrace demo`.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shop_app = typer.Typer(help="The simulated shop.", no_args_is_help=True)
schema_app = typer.Typer(help="Schemas of every message.", no_args_is_help=True)

app.command(rich_help_panel="Run")(running.demo)
app.command(rich_help_panel="Run")(running.up)
app.command(rich_help_panel="Run")(running.down)
app.command(rich_help_panel="Watch")(running.status)
app.command(rich_help_panel="Watch")(looking.lag)
app.command(rich_help_panel="Watch")(looking.ledger)
app.command(rich_help_panel="Watch")(looking.freshness)
app.command(rich_help_panel="Ask")(asking.search)
app.command(rich_help_panel="Ask")(asking.encode)
app.command(rich_help_panel="Measure")(running.bench)
shop_app.command("export")(running.shop_export)
schema_app.command("export")(running.schema_export)
app.add_typer(looking.releases_app, name="releases", rich_help_panel="Watch")
app.add_typer(shop_app, name="shop", rich_help_panel="Measure")
app.add_typer(schema_app, name="schema", rich_help_panel="Measure")


@app.command(rich_help_panel="Watch")
def doctor(json: Json = False) -> None:
    """Find what is wrong and say how to mend it, in under 10 s. Exit code 3 where a check fails.

    Example: millrace doctor
    """
    from millrace.context import running_settings

    checks = examine(running_settings())
    if json:
        print_json(doctor_report(checks))
    else:
        table = Table("check", "", "what was seen", "fix")
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in checks:
            table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", check.cause, check.fix)
        out().print(table)
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise CheckFailed(f"failed: {', '.join(failed)}", fix="the table above says how to mend each")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(f"millrace {installed('millrace')}\n")
        raise typer.Exit


planned.add_planned(app, looking.releases_app)


def main() -> None:
    """Run the command line; every expected failure is one line, its fix and an exit code."""
    try:
        code = app(standalone_mode=False)
    except MillraceError as exc:
        print_error(exc)
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        messages().print("stopped")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)

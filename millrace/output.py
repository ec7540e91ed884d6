"""What commands print: stable JSON on stdout, people's text through rich, messages on stderr."""

import sys
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from contracts.errors import MillraceError

Json = Annotated[bool, typer.Option("--json", help="Print stable JSON on stdout.")]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def out() -> Console:
    """The console for results."""
    return Console(soft_wrap=True)


def messages() -> Console:
    """The console for progress and messages."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_error(error: MillraceError) -> None:
    """Say what went wrong and what to do, in at most two lines."""
    console = messages()
    console.print(f"error: {error.message}", style="bold red", markup=False)
    if error.fix:
        console.print(f"fix:   {error.fix}", markup=False)

"""Commands of the plan that this version does not have: refused by name, never ignored."""

from typing import Final

import typer

from contracts.errors import UsageError

PLANNED: Final = ("propensities", "replay", "erase", "pairs", "dlq", "golden", "experiment")
"""Commands, and groups with all that they would hold."""
PLANNED_RELEASES: Final = ("show", "diff", "promote", "rollback")
_ANY: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_planned(app: typer.Typer, releases: typer.Typer) -> None:
    """Add every planned command to the command line, hidden from its help."""
    for name in PLANNED:
        _refuse(app, name, name)
    for name in PLANNED_RELEASES:
        _refuse(releases, name, f"releases {name}")


def _refuse(app: typer.Typer, name: str, full_name: str) -> None:
    @app.command(name, hidden=True, context_settings=_ANY, help="Not built yet.")
    def refused(context: typer.Context) -> None:
        raise UsageError(
            f"`millrace {' '.join([full_name, *_below(context.args)])}` is not built yet",
            fix="`millrace --help` lists what this version does",
        )


def _below(arguments: list[str]) -> list[str]:
    """Return the command's own name below a group, as in `pairs ls`; what else was typed does not matter."""
    return [word for word in arguments[:1] if word.isalpha()]

"""Commands of the plan that this version does not have: refused by name, never ignored."""

import typer

from contracts.errors import UsageError

PLANNED = {
    "propensities": "position-bias curves come with the propensity agent",
    "replay": "replaying events through new rules",
    "erase": "erasing one person's events",
}
PLANNED_GROUPS = {
    "pairs": ("ls", "import", "export", "stats", "explain"),
    "dlq": ("ls", "show", "replay"),
    "golden": ("import",),
    "experiment": ("run",),
}
PLANNED_RELEASES = ("show", "diff", "promote", "rollback")
_ANY = {"allow_extra_args": True, "ignore_unknown_options": True}


def refuse(app: typer.Typer, name: str, full_name: str) -> None:
    """Add a hidden command that says it is not built yet and exits with 2."""

    @app.command(name, hidden=True, context_settings=_ANY, help="Not built yet.")
    def refused() -> None:
        raise UsageError(
            f"`millrace {full_name}` is not built yet", fix="`millrace --help` lists what this version does"
        )


def add_planned(app: typer.Typer, releases: typer.Typer) -> None:
    """Add every planned command to the command line."""
    for name in PLANNED:
        refuse(app, name, name)
    for group, names in PLANNED_GROUPS.items():
        group_app = typer.Typer(help="Not built yet.")
        app.add_typer(group_app, name=group, hidden=True)
        for name in names:
            refuse(group_app, name, f"{group} {name}")
    for name in PLANNED_RELEASES:
        refuse(releases, name, f"releases {name}")

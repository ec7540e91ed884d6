"""`millrace propensities`: how positions are looked at, as the shop's own lists show it, with bands: table and plot."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from contracts import wire
from contracts.errors import ContractError
from contracts.outcomes import Cell, examination
from contracts.propensities import CELL_PROPENSITIES, CellPropensities
from contracts.topics import PROPENSITIES
from millrace.asking import numbers, running_settings
from millrace.output import Json, messages, out, print_json, utc
from service.kafka import records_of
from service.machine import epoch_ms, write_atomically

BAR: Final = 19
"""Characters from 0 to 1 of the plot in the table, which so fits a terminal of 80 columns."""
WIDTH: Final = 720
HEIGHT: Final = 300
MARGIN: Final = 40


def propensities(
    json: Json = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with a plot of each cell.")
    ] = None,
) -> None:
    """Show how much more rarely each position is looked at than the first one, and how sure that is.

    Example: millrace propensities --html propensities.html
    """
    settings = running_settings()
    newest = newest_versions((record.key, record.value) for record in records_of(settings, PROPENSITIES))
    report = propensities_report(newest.values(), now_ms=epoch_ms())
    if html is not None:
        write_atomically(html, page_of(report["cells"]).encode())
        messages().print(f"written to {html}")
    if json:
        print_json(report)
        return
    if not newest:
        out().print("No version yet: every list is weighed by the prior, 1/position.")
    for cell in report["cells"]:
        out().print(cell_table(cell))


def newest_versions(records: Iterable[tuple[bytes | None, bytes | None]]) -> dict[Cell, CellPropensities]:
    """Return the last version of each cell; a record that cannot be read is named."""
    kept: dict[bytes, CellPropensities] = {}
    for key, value in records:
        kept.pop(key or b"", None)
        try:
            if value is not None:
                kept[key or b""] = wire.decode(value, CELL_PROPENSITIES)
        except ContractError as error:
            messages().print(f"{(key or b'').decode(errors='replace')} is left out: {error.message}")
    return {one.cell: one for one in sorted(kept.values(), key=lambda one: (one.cell, one.version))}


def propensities_report(versions: Iterable[CellPropensities], *, now_ms: int) -> dict[str, Any]:
    """Put versions into stable JSON, each with whether it is in force by now."""
    return {"cells": [{**one.model_dump(), "in_force": one.effective_from <= now_ms} for one in versions]}


def cell_table(cell: Mapping[str, Any]) -> Table:
    """One cell as a table with a plot: `=` is the band, `|` the estimate, `.` the prior."""
    table = Table(
        *numbers("position", "theta", "low", "high", "clicks"), "", f"0{'':{BAR - 2}}1", title=Text(_title(cell))
    )
    for slot in cell["slots"]:
        figures = (f"{slot[name]:.3f}" for name in ("theta", "low", "high"))
        known = "prior only" if slot["prior_only"] else ""
        table.add_row(str(slot["position"]), *figures, f"{slot['clicks']:,.0f}", known, Text(bar(slot)))
    return table


def bar(slot: Mapping[str, Any]) -> str:
    """A position's band on a scale from 0 to 1.

    >>> bar({"position": 4, "theta": 0.5, "low": 0.25, "high": 0.75})
    '    .====|=====    '
    """
    places = {name: min(BAR - 1, int(slot[name] * BAR)) for name in ("low", "theta", "high")}
    cells = [" "] * BAR
    for place in range(places["low"], places["high"] + 1):
        cells[place] = "="
    cells[min(BAR - 1, int(examination(slot["position"]) * BAR))] = "."
    cells[places["theta"]] = "|"
    return "".join(cells)


def _title(cell: Mapping[str, Any]) -> str:
    names = ", ".join(filter(None, (cell["surface"], cell["device"], cell["layout"], _kind(cell))))
    since = utc(cell["effective_from"])
    alarm = "\nshoppers trust the rank: clicks are not looks alone" if cell["trust_alarm"] else ""
    return (
        f"{names}: version {cell['version']}, in force from {since} UTC\n{cell['lists']:,} lists, "
        f"{cell['swap_clicks']:,.0f} clicks by swaps and {cell['history_clicks']:,.0f} by histories; "
        f"about 1/position^{cell['steepness']:.2f}{alarm}"
    )


def _kind(cell: Mapping[str, Any]) -> str:
    columns = f"{cell['columns']} columns" if cell["columns"] > 1 else ""
    return ", ".join(filter(None, (columns, "given visible" if cell["kind"] == "visible" else "")))


def page_of(cells: Sequence[Mapping[str, Any]]) -> str:
    """All cells as one page that needs nothing else."""
    plots = "\n".join(f"<h2>{escape(_title(cell))}</h2>\n{_plot(cell['slots'])}" for cell in cells)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Millrace: propensities</title>\n'
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto}"
        "h2{font-size:1em;white-space:pre-line}</style>\n<h1>How positions are looked at, beside the first one</h1>\n"
        "<p>Line and band: estimated. Dashed: the prior, 1/position. Hollow: known by the prior only.</p>\n"
        f"{plots or '<p>No version yet.</p>'}\n</html>\n"
    )


def _plot(slots: Sequence[Mapping[str, Any]]) -> str:
    """The slots of a cell as a drawing, on a logarithmic scale."""
    least = min([*(slot["low"] for slot in slots), examination(len(slots))])
    most = max(slot["high"] for slot in slots)

    def place(slot: Mapping[str, Any], theta: float) -> str:
        """Where a propensity is drawn."""
        x = MARGIN + (WIDTH - 2 * MARGIN) * (slot["position"] - 1) / max(1, len(slots) - 1)
        share = math.log(theta / least) / (math.log(most / least) or 1.0)
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share:.1f}"

    def line(name: str) -> list[str]:
        """The points of one line."""
        return [place(slot, slot[name]) for slot in slots]

    band = " ".join([*line("high"), *reversed(line("low"))])
    prior = " ".join(place(slot, examination(slot["position"])) for slot in slots)
    dots = ""
    for slot in slots:
        x, _, y = place(slot, slot["theta"]).partition(",")
        fill = "white" if slot["prior_only"] else "#1f5fa8"
        told = f"{slot['position']}: {slot['theta']:.3f} ({slot['low']:.3f} to {slot['high']:.3f})"
        dots += f'<circle cx="{x}" cy="{y}" r="4" fill="{fill}" stroke="#1f5fa8"><title>{told}</title></circle>'
        dots += f'<text x="{x}" y="{HEIGHT - 12}" font-size="11" text-anchor="middle">{slot["position"]}</text>'
    scale = "".join(
        f'<text x="4" y="{height}" font-size="11">{value:.3g}</text>'
        for value, height in ((most, MARGIN), (least, HEIGHT - MARGIN))
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="propensity by position">'
        f'<polygon points="{band}" fill="#c9dcf2"/><polyline points="{prior}" fill="none" stroke="#888" '
        f'stroke-dasharray="4 4"/><polyline points="{" ".join(line("theta"))}" fill="none" stroke="#1f5fa8"/>'
        f"{dots}{scale}</svg>"
    )

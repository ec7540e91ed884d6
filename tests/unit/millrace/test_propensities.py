"""What `millrace propensities` prints: the last version of each cell, as table, JSON and a page of its own."""

import re

import pytest
from rich.console import Console

from contracts.outcomes import Cell
from contracts.propensities import CellPropensities
from contracts.wire import encode
from millrace.propensities import BAR, cell_table, newest_versions, page_of, propensities_report
from tests.support.search_events import T0


def version(number: int, device: str = "mobile", **fields: object) -> CellPropensities:
    """Return a version whose third position is known by the prior only."""
    slots = [
        {"position": n, "theta": t, "low": t / 2, "high": t * 1.5, "clicks": 1234.0 / n, "prior_only": n == 3}
        for n, t in enumerate((1.0, 0.53, 0.27), start=1)
    ]
    base = {**Cell("search", device)._asdict(), "version": number, "effective_from": T0, "estimated_at": T0}
    base |= {"lists": 4_211, "swap_clicks": 1_804.0, "history_clicks": 2_214.0, "steepness": 1.12, "slots": slots}
    return CellPropensities.model_validate({**base, **fields})


def shown(one: CellPropensities) -> str:
    """Return the table of a version as it is printed."""
    (cell,) = propensities_report([one], now_ms=T0)["cells"]
    console = Console(width=140, record=True)
    console.print(cell_table(cell))
    return console.export_text()


def test_the_last_version_of_each_cell_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """By number, whatever the order on the topic; what was taken back is gone, and what cannot be read is named."""
    versions = [version(9), version(10), version(2, "desktop"), version(3, "desktop")]
    records: list[tuple[bytes | None, bytes | None]] = [(one.key, encode(one)) for one in versions]
    found = newest_versions([*records, (versions[3].key, None), (b"odd", b"{}"), records[0]])
    assert {cell.device: one.version for cell, one in found.items()} == {"mobile": 10, "desktop": 2}
    assert "odd is left out" in capsys.readouterr().err


def test_json_tells_whether_a_version_is_in_force() -> None:
    """It holds from a minute after it was published."""
    report = propensities_report([version(1)], now_ms=T0 - 1)
    assert [(one["version"], one["in_force"]) for one in report["cells"]] == [(1, False)]
    assert propensities_report([version(1)], now_ms=T0)["cells"][0]["in_force"]


def test_a_table_has_bands_a_plot_and_what_is_known_by_the_prior_only() -> None:
    """A line for each position, the sums above it."""
    printed = shown(version(12))
    assert "search, mobile, list: version 12, in force from 2026-11-20" in printed
    assert "4,211 lists, 1,804 clicks by swaps and 2,214 by histories; about 1/position^1.12" in printed
    line = next(line for line in printed.splitlines() if "0.270" in line)
    assert re.search(r"3 .* 0\.270 .* 0\.135 .* 0\.405 .* 411 .* prior only .* =+\|=*\.=+", line)
    assert "trust" not in printed


def test_bands_are_whole_on_a_terminal_of_80_columns() -> None:
    """A band that is cut, or broken into two lines, would tell another width."""
    slots = [
        {"position": n, "theta": 1 / n, "low": 0.001, "high": 1.0, "clicks": 12_345.0, "prior_only": n > 1}
        for n in range(1, 13)
    ]
    (cell,) = propensities_report([version(1, slots=slots)], now_ms=T0)["cells"]
    console = Console(width=80, soft_wrap=True)
    with console.capture() as captured:
        console.print(cell_table(cell))
    drawn = [line.split("│")[-2] for line in captured.get().splitlines() if line.startswith("│ ")]
    assert [len(re.findall(r"[=|.]", one)) for one in drawn] == [BAR] * 12
    assert max(map(len, captured.get().splitlines())) <= 80


def test_an_alarm_and_a_grid_given_visible_are_said() -> None:
    """Nobody should have to look for either."""
    printed = shown(version(1, layout="grid", columns=3, kind="visible", trust_alarm=True))
    assert "grid, 3 columns, given visible: version 1" in printed
    assert "shoppers trust the rank" in printed


def test_the_page_needs_nothing_else_and_shows_names_as_they_are() -> None:
    """No script, no address; a point for each position, hollow if known by the prior; a name is no markup."""
    page = page_of(propensities_report([version(1, layout="<b>")], now_ms=T0)["cells"])
    assert page.count("<circle") == 3
    assert page.count('fill="white"') == 1
    assert not re.search(r"<script|https?:|src=|<b>", page)
    assert "&lt;b&gt;" in page
    assert "No version yet" in page_of([])

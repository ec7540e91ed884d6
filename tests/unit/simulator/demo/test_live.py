"""The live view is a panel on a terminal and a line now and then elsewhere."""

import io

import pytest
from rich.console import Console

from simulator.demo import live
from simulator.demo.live import LiveView
from tests.unit.simulator.demo.test_report import PROGRESS


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """Return a console and what is written to it."""
    file = io.StringIO()
    return Console(file=file, width=120, force_terminal=terminal), file


def test_elsewhere_lines_come_now_and_then() -> None:
    """A log is not flooded: refreshed twice at once, it gets one line."""
    where, file = console(terminal=False)
    with LiveView(where, lambda: PROGRESS) as view:
        view.refresh()
        view.refresh()
    assert file.getvalue().count("812 searches") == 1
    assert "\x1b" not in file.getvalue()


def test_the_next_line_comes_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time between lines, each refresh gives one."""
    monkeypatch.setattr(live, "LINE_EVERY_S", 0.0)
    where, file = console(terminal=False)
    with LiveView(where, lambda: PROGRESS) as view:
        view.refresh()
        view.refresh()
    assert file.getvalue().count("812 searches") == 2


def test_a_terminal_gets_a_panel_that_leaves_nothing_behind() -> None:
    """The panel is redrawn in place and the cursor comes back."""
    where, file = console(terminal=True)
    with LiveView(where, lambda: PROGRESS) as view:
        view.refresh()
    assert "Millrace demo" in file.getvalue()
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")

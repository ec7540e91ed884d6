"""How commands show their progress: bars on a terminal, lines in a pipe."""

import io

import pytest
from rich.console import Console

from millrace import output
from millrace.output import HEARTBEAT_S, progress_bars


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Give where messages go, which is no terminal."""
    written = io.StringIO()
    monkeypatch.setattr(output, "messages", lambda: Console(file=written, width=80, force_terminal=False))
    return written


def test_in_a_pipe_long_work_says_how_far_it_is(pipe: io.StringIO) -> None:
    """A line every 15 s, not one for every call; minutes without a word look like a hang."""
    time_s = 0.0
    with progress_bars(now=lambda: time_s) as tell:
        for second in range(40):
            time_s = float(second)
            tell("products searchable", 100 * second, 5_100)
        lines = pipe.getvalue().splitlines()
    assert HEARTBEAT_S == 15.0
    assert lines == ["products searchable: 1,500 of 5,100", "products searchable: 3,000 of 5,100"]


def test_no_bar_is_shown_for_nothing(pipe: io.StringIO) -> None:
    """An empty topic is read to its end at once: a bar at 0 % would look as if it were stuck."""
    with progress_bars() as tell:
        tell("reading pairs", 0, 0)
        tell("reading dead letters", 3, 3)
    assert "reading pairs" not in pipe.getvalue()
    assert "100%" in pipe.getvalue()
    assert "0%" not in pipe.getvalue().replace("100%", "")


def test_of_work_without_a_known_end_it_is_told_how_much_is_done(pipe: io.StringIO) -> None:
    """There is no share of it."""
    times = iter((0.0, 20.0, 20.0))
    with progress_bars(now=lambda: next(times)) as tell:
        tell("pairs written", 1_234, 0)
    assert pipe.getvalue().splitlines()[0] == "pairs written: 1,234"
    assert "%" not in pipe.getvalue()

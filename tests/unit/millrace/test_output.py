"""How commands show what they have to say, and their progress: bars on a terminal, lines in a pipe."""

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console, Group, RenderableType
from rich.table import Table

from contracts.errors import UsageError
from millrace import output
from millrace.output import HEARTBEAT_S, PlainConsole, counted, messages, out, print_json, progress_bars
from simulator.demo.report import next_steps


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Give where messages go, which is no terminal."""
    written = io.StringIO()
    monkeypatch.setattr(output, "messages", lambda: Console(file=written, width=80, force_terminal=False))
    return written


@pytest.mark.parametrize("console", [out, messages])
def test_what_anyone_wrote_is_shown_as_it_is_and_commands_no_terminal(
    console: Callable[[], Console], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a table, its title and a sentence: brackets are no markup, and nothing clears the screen of who looks."""
    said = "tv [/b] [red]x :heart: \x1b[2J\x1b]0;title\x07\x9b31m\0end"
    table = Table("query", title=said)
    table.add_row(said)
    console().print(table)
    console().print(said)
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert not set(shown) & set(map(chr, (*range(10), *range(11, 32), *range(0x7F, 0xA0))))
    assert shown.count("[red]x :heart: [2J]0;title31mend") == 3


LONG = "attribution-orphans"


def shown(*, terminal: bool, columns: str | None = None) -> list[str]:
    """Return the lines of a table of long ids, as a console shows them there."""
    table = Table("group", "topic", "state")
    table.add_row(LONG, "joined-searches" * 4, "stopped")
    return lines_of(table, terminal=terminal, columns=columns)


def lines_of(shown: RenderableType, *, terminal: bool, columns: str | None = None) -> list[str]:
    """Return the lines of anything, as a console shows them there."""
    environ = {"TERM": "xterm"} | ({} if columns is None else {"COLUMNS": columns})
    file = io.StringIO()
    PlainConsole(file=file, force_terminal=terminal, color_system=None, _environ=environ).print(shown)
    return file.getvalue().splitlines()


def test_a_table_in_a_pipe_is_as_wide_as_what_it_holds() -> None:
    """`millrace lag | grep attribution-orphans` finds whole lines, unless a person says how wide they may be."""
    assert any(LONG in line and "joined-searches" * 4 in line and "stopped" in line for line in shown(terminal=False))
    assert max(map(len, shown(terminal=False, columns="60"))) <= 60


def test_what_stands_in_a_frame_is_as_wide_as_the_frame() -> None:
    """A frame has no width of its own in a pipe: what is too long for it goes on in the next line, and is not cut."""
    path = "/data/" + "folder/" * 30
    steps = next_steps({"logs": path})
    for frame in (steps, Group("closing", steps)):
        lines = lines_of(frame, terminal=False)
        assert max(map(len, lines)) <= 80
        inner = [line.strip("│ ").removeprefix("logs").strip() for line in lines if line.startswith("│")]
        assert "".join(inner) == path


def test_no_cell_is_cut_where_a_terminal_is_narrow() -> None:
    """What is too long goes on in the next line: a state that reads `stop...` is none."""
    lines = shown(terminal=True, columns="30")
    assert max(map(len, lines)) <= 30
    columns = zip(*([cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line), strict=True)
    assert ["".join(cells) for cells in columns] == [LONG, "joined-searches" * 4, "stopped"]


def test_one_of_something_is_not_many() -> None:
    """A sentence that says `1 lines` reads as if nobody had looked at it."""
    assert [counted(n, "line") for n in (0, 1, 1_200)] == ["0 lines", "1 line", "1,200 lines"]
    assert [counted(n, "search", "searches") for n in (1, 2)] == ["1 search", "2 searches"]


def test_bytes_that_are_no_utf_8_are_escaped_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A bad line of a file in Latin-1, or the file's own name, must not end the command that tells of it."""
    print_json({"fi\udce4": [{"message": "'19,99 \udc80' is no price", "line": 2}]})
    assert json.loads(capsys.readouterr().out) == {"fi\\udce4": [{"message": "'19,99 \\udc80' is no price", "line": 2}]}


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


def test_where_nothing_was_done_nothing_is_written(pipe: io.StringIO) -> None:
    """An error that ends a command before its work begins has no empty line above it."""
    with pytest.raises(UsageError), progress_bars():
        raise UsageError("no Kafka is named")
    assert not pipe.getvalue()


def test_of_work_without_a_known_end_it_is_told_how_much_is_done(pipe: io.StringIO) -> None:
    """There is no share of it."""
    times = iter((0.0, 20.0, 20.0))
    with progress_bars(now=lambda: next(times)) as tell:
        tell("pairs written", 1_234, 0)
    assert pipe.getvalue().splitlines()[0] == "pairs written: 1,234"
    assert "%" not in pipe.getvalue()

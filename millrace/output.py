"""What commands print: stable JSON on stdout, people's text through rich, messages on stderr."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from typing_extensions import override

from contracts.errors import MillraceError
from service.machine import FULL

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.progress import TaskID

Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it, and of how much."""
HEARTBEAT_S: Final = 15.0
DEEPEST: Final = 100
CUT: Final = "..."
"""Stands for what is nested deeper than so many levels, where that is too deep to be written."""
Json = Annotated[bool, typer.Option("--json", help="Print stable JSON on stdout.")]


_OBEYED: Final = dict.fromkeys((*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)))
"""Control characters, which a terminal obeys instead of showing them, but for tabs and ends of lines."""


WIDEST: Final = 10_000
"""Of a table in a pipe or a file, which have no width: whoever searches its lines wants them whole."""


class PlainConsole(Console):
    """Shows what anyone wrote as it is, and whole.

    Brackets are no markup, control characters are left out, and what is too long for its column goes on in the next
    line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        options = self.options if options is None else options
        if isinstance(renderable, Table) and not renderable.expand:
            for column in renderable.columns:
                column.overflow = "fold"
            is_framed = options.max_width < self.width
            if not (self.is_terminal or self._width or is_framed):
                options = options.update(width=WIDEST)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(_OBEYED))


STDOUT_NAME: Final = "standard output"


class _Stdout(io.FileIO):
    """Standard output as a file that says which it is if its disk is full."""

    @override
    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno in FULL:
                error.filename = STDOUT_NAME
                # The flush at the end would fail once more, and end with Python's exit code.
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), self.fileno())
            raise


def name_stdout() -> None:
    """Let whoever writes to standard output in vain learn that it was there; the system names no file."""
    before = sys.stdout
    if isinstance(before, io.TextIOWrapper) and isinstance(before.buffer, io.BufferedWriter | io.FileIO):
        raw = _Stdout(before.fileno(), "wb", closefd=False)
        sys.stdout = io.TextIOWrapper(
            raw if isinstance(before.buffer, io.FileIO) else io.BufferedWriter(raw),  # PYTHONUNBUFFERED
            before.encoding, before.errors,
            line_buffering=before.line_buffering, write_through=before.write_through,
        )  # fmt: skip


def print_json(value: Any) -> None:
    """Print one JSON document on stdout.

    Of what is nested without end, as anyone's record may be, the outer part; bytes of texts that are no UTF-8, as in
    names and fields of anyone's files, are escaped.
    """
    try:
        document = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    except orjson.JSONEncodeError:
        document = orjson.dumps(_writable(value, DEEPEST), option=orjson.OPT_INDENT_2)
    sys.stdout.write(document.decode() + "\n")
    sys.stdout.flush()


def _writable(value: Any, levels: int) -> Any:
    if not levels:
        return CUT
    if isinstance(value, dict):
        return {_writable(name, 1): _writable(inner, levels - 1) for name, inner in value.items()}
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return [_writable(inner, levels - 1) for inner in value] if isinstance(value, list | tuple) else value


def out() -> Console:
    """The console for results."""
    return PlainConsole()


def messages() -> Console:
    """The console for progress and messages."""
    return PlainConsole(stderr=True, highlight=False)


def print_error(error: MillraceError) -> None:
    """Say what went wrong and what to do, in at most two lines."""
    console = messages()
    console.print(f"error: {error.message}", style="bold red")
    if error.fix:
        console.print(f"fix:   {error.fix}")


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things for people; `many` of a word that takes no s.

    >>> counted(1, "line"), counted(1_200, "search", "searches")
    ('1 line', '1,200 searches')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def utc(at_ms: float) -> str:
    """A moment for people.

    >>> utc(1_795_196_006_756)
    '2026-11-20 17:33:26'
    """
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def progress_bars(now: Callable[[], float] = time.monotonic) -> Iterator[Tell]:
    """Give a function that shows how much of how much is done: a bar for each kind of work, none where there is none.

    Where no bar can be redrawn, in a pipe or a log, it is a line every 15 s, and the bars at the end.

    Args:
        now: a clock that never runs backwards, in s.
    """
    from rich.progress import Progress

    console = messages()
    is_redrawn = console.is_terminal and not console.is_dumb_terminal
    bars = Progress(console=console)
    tasks: dict[str, TaskID] = {}
    said_s = now()

    def tell(what: str, done: int, of: int) -> None:
        nonlocal said_s
        if not done and not of:
            return
        if not tasks:
            bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=None)
        bars.update(tasks[what], completed=done, total=of or None)
        if not is_redrawn and now() >= said_s + HEARTBEAT_S:
            said_s = now()
            console.print(f"{what}: {done:,}{f' of {of:,}' if of else ''}")

    try:
        yield tell
    finally:
        if tasks:
            bars.stop()

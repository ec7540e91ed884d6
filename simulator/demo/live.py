"""The live view: a panel that is redrawn on a terminal, a plain line every ten seconds elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.live import Live

from simulator.demo.report import live_line, live_view

LINE_EVERY_S: Final = 10.0


class LiveView:
    """Shows the demo's progress.

    Args:
        console: where to.
        progress: returns what to show now.
    """

    def __init__(self, console: Console, progress: Callable[[], dict[str, Any]]) -> None:
        self._console = console
        self._progress = progress
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Show what there is now."""
        if self._live:
            self._live.update(live_view(self._progress()), refresh=True)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(live_line(self._progress()), markup=False)

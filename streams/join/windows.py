"""Window and lateness over changes of their settings.

A deadline has to be the same however often it is computed, by whatever process: else a search that was closed could be
opened again, and one that was written could be written differently. So a changed window holds for what is shown after
everything that was decided before the change, and a changed lateness for the records read after it. What held before
stays known, and is part of the progress, for as long as something of that time could be open.
"""

from collections.abc import Iterable

from contracts.progress import EarlierWindows


class Windows:
    """Which window belongs to a moment, and which lateness to a record.

    Args:
        window_ms: the newest.
        lateness_ms: the newest.
        earlier: what held before, oldest first.

    >>> windows = Windows(1_000, 100)
    >>> windows.change(5_000, 200, shown_from_ms=7_000, read_from=42)
    >>> windows.window_at(6_999), windows.window_at(7_000), windows.lateness_at(41), windows.lateness_at(42)
    (1000, 5000, 100, 200)
    """

    __slots__ = ("earlier", "lateness_ms", "window_ms")

    def __init__(self, window_ms: int, lateness_ms: int, *, earlier: Iterable[EarlierWindows] = ()) -> None:
        self.window_ms = window_ms
        self.lateness_ms = lateness_ms
        self.earlier = tuple(earlier)

    def window_at(self, time_ms: int) -> int:
        """Return the window of what happened at a moment."""
        return next((one.window_ms for one in self.earlier if time_ms < one.until_ms), self.window_ms)

    def lateness_at(self, offset: int) -> int:
        """Return the lateness with which a record is read."""
        return next((one.lateness_ms for one in self.earlier if offset < one.until_offset), self.lateness_ms)

    @property
    def longest_ms(self) -> int:
        """The longest window that is known."""
        return max(self.window_ms, *(one.window_ms for one in self.earlier), 0)

    def change(self, window_ms: int, lateness_ms: int, *, shown_from_ms: int, read_from: int) -> None:
        """Let other settings hold from here on; nothing changes where they are the same.

        Args:
            window_ms: of what is shown from now on.
            lateness_ms: of what is read from now on.
            shown_from_ms: after everything that was shown so far.
            read_from: offset of the next record.
        """
        if (window_ms, lateness_ms) == (self.window_ms, self.lateness_ms):
            return
        until_ms = max(shown_from_ms, *(one.until_ms for one in self.earlier), 0)
        ended = EarlierWindows(
            until_ms=until_ms, until_offset=read_from, window_ms=self.window_ms, lateness_ms=self.lateness_ms
        )
        self.earlier = (*self.earlier, ended)
        self.window_ms, self.lateness_ms = window_ms, lateness_ms

    def needed_at(self, watermark_ms: int) -> tuple[EarlierWindows, ...] | None:
        """Return what a restart from this watermark has to know of earlier ones, None where that is nothing.

        A waiting event of such a time waits for one window, and the list that could take it is open for another.
        """
        reach_ms = 2 * self.longest_ms
        return tuple(one for one in self.earlier if watermark_ms <= one.until_ms + reach_ms) or None

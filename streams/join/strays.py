"""Events that name a search but not its time: they wait for an impression and never open a search.

An event without `search_time` cannot say when its search closes. It waits until its own time + window; of the lists of
that search id that were shown within a window of it, the one that closes first takes it. Without one it is an orphan.
The rule looks only at times, so that no order of arrival within the lateness changes the outcome.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from streams.join.open_search import Held, OpenSearch


@dataclass(slots=True, eq=False)
class Stray:
    """One waiting event.

    Args:
        search_id: of the search it names.
        held: the event.
        expires: event time after which it waits no longer.
        first_offset: where it stands.
        watermark_ms: the watermark before that record.
    """

    search_id: str
    held: Held
    expires: int
    first_offset: int
    watermark_ms: int
    bound: bool = False
    released: bool = False

    def fits(self, search: OpenSearch) -> bool:
        """Return whether a search with an impression may take this event."""
        return self.held.time_ms <= search.deadline and search.search_time <= self.expires


class Strays:
    """The waiting events of one partition, by the search that they name."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Stray]] = {}

    def add(self, stray: Stray) -> None:
        """Begin to wait."""
        self._waiting.setdefault(stray.search_id, []).append(stray)

    def take_for(self, search: OpenSearch) -> list[Stray]:
        """Remove and return the events that a closing search takes."""
        taken = [stray for stray in self._waiting.get(search.search_id, ()) if stray.fits(search)]
        for stray in taken:
            self.remove(stray)
        return taken

    def remove(self, stray: Stray) -> None:
        """Stop waiting."""
        stray.bound = True
        waiting = self._waiting[stray.search_id]
        waiting.remove(stray)
        if not waiting:
            del self._waiting[stray.search_id]

    @staticmethod
    def home(stray: Stray, searches: Iterable[OpenSearch]) -> OpenSearch | None:
        """Return the open search that takes an event whose wait is over: the first to close, or None."""
        fitting = (search for search in searches if search.impressions and stray.fits(search))
        return min(fitting, key=lambda search: search.deadline, default=None)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

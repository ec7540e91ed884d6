"""Events that name a search but not its time: they wait for its list and never open a search.

Such an event belongs to the latest list of its search id that was shown before it, that shows its product, and in whose
window it happened. The list takes it when it closes: by then every list that came in time is known, so no order of
arrival within the lateness changes the outcome. An event that no list took is an orphan.
"""

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from streams.join.open_search import HeldEvent, KeptRecord, OpenSearch, OpenSearches

MAX_LISTS: Final = 32
"""With more open lists of one id than this, the id tells nothing: its events would be compared with all of them."""


class WaitingEvent(msgspec.Struct, gc=False, order=True, array_like=True):
    """One waiting event; they are in the order in which their waits end.

    Args:
        until_ms: event time up to which it waits: the last deadline of any list shown before it.
        event_id: its type and id.
        search_id: the search that it names.
        offset: of its record.
        event: what is kept of it; None once a list took it.
    """

    until_ms: int
    event_id: str
    search_id: str
    offset: int
    event: HeldEvent | None


class WaitingEvents:
    """The waiting events of one partition.

    Args:
        waiting: in any order.
    """

    def __init__(self, waiting: Iterable[WaitingEvent] = ()) -> None:
        self._by_search: dict[str, list[WaitingEvent]] = {}
        self._by_end: list[WaitingEvent] = []
        for one in waiting:
            self.add(one)

    def __iter__(self) -> Iterator[WaitingEvent]:
        return (one for waiting in self._by_search.values() for one in waiting)

    def add(self, waiting: WaitingEvent) -> None:
        """Let an event wait."""
        self._by_search.setdefault(waiting.search_id, []).append(waiting)
        heapq.heappush(self._by_end, waiting)

    def take_for(self, search: OpenSearch, others: OpenSearches) -> list[tuple[WaitingEvent, HeldEvent]]:
        """Remove and return the events that belong to a closing search, each with what was kept of it.

        Args:
            search: it has a list.
            others: the searches that stay open.
        """
        waiting = self._by_search.get(search.search_id)
        if waiting is None or others.count(search.search_id) >= MAX_LISTS:
            return []
        shown = search.products()
        later = [
            (one.search_time, one.products())
            for one in others.of(search.search_id)
            if one.shown and one.search_time > search.search_time
        ]
        taken: list[tuple[WaitingEvent, HeldEvent]] = []
        left: list[WaitingEvent] = []
        for one in waiting:
            event = one.event
            if event is None or not _fits(event, search, shown) or _shown_again(event, later):
                left.append(one)
            else:
                one.event = None
                taken.append((one, event))
        self._keep(search.search_id, left)
        return taken

    def pop_expired(self, watermark_ms: int) -> tuple[str, KeptRecord] | None:
        """Remove the next event whose wait is over without a list; return the search that it names, and its record."""
        while self._by_end and self._by_end[0].until_ms < watermark_ms:
            expired = heapq.heappop(self._by_end)
            if expired.event is not None and expired.event.record is not None:
                waiting = self._by_search[expired.search_id]
                waiting.remove(expired)
                self._keep(expired.search_id, waiting)
                return expired.search_id, expired.event.record
        return None

    def _keep(self, search_id: str, waiting: list[WaitingEvent]) -> None:
        if waiting:
            self._by_search[search_id] = waiting
        else:
            del self._by_search[search_id]


def _fits(event: HeldEvent, search: OpenSearch, shown: set[str]) -> bool:
    return search.search_time <= event.event_time and event.time_ms <= search.deadline and _names(event, shown)


def _shown_again(event: HeldEvent, later: Iterable[tuple[int, set[str]]]) -> bool:
    return any(search_time <= event.event_time and _names(event, shown) for search_time, shown in later)


def _names(event: HeldEvent, shown: set[str]) -> bool:
    """Whether an event names a product that is shown, or none at all."""
    named = [product_id for product_id, _, _ in event.slots()]
    return not named or not shown.isdisjoint(named)

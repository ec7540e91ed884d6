"""Events that name a search but not its time: they wait for its list and never open a search.

Such an event belongs to the latest list of its search id that was shown before it, that shows its product, and in whose
window it happened. The list takes it when it closes: by then every list that came in time is known, so no order of
arrival within the lateness changes the outcome. An event that no list took is an orphan.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from streams.join.open_search import HeldEvent, KeptRecord, OpenSearch, OpenSearches

MAX_LISTS: Final = 32
"""With more open lists of one id than this, the id tells nothing: its events would be compared with all of them."""
NO_PRODUCT: Final = ""
"""No product has this id."""


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
        self._by_search: dict[str, dict[int, WaitingEvent]] = {}
        """Search id -> offset -> what waits there."""
        self._by_end: list[WaitingEvent] = []
        for one in waiting:
            self.add(one)

    def __iter__(self) -> Iterator[WaitingEvent]:
        return (one for waiting in self._by_search.values() for one in waiting.values())

    def add(self, waiting: WaitingEvent) -> None:
        """Let an event wait."""
        self._by_search.setdefault(waiting.search_id, {})[waiting.offset] = waiting
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
        again_ms: dict[str, int] = {}
        for later in others.of(search.search_id):
            if later.shown and later.search_time > search.search_time:
                for product_id in (*later.products(), NO_PRODUCT):
                    again_ms[product_id] = min(later.search_time, again_ms.get(product_id, later.search_time))
        ends_ms = max(again_ms.get(product_id, math.inf) for product_id in (*shown, NO_PRODUCT))
        in_time = [(one, event) for one in waiting.values() if (event := one.event) and event.event_time < ends_ms]
        taken = [(one, event) for one, event in in_time if _belongs(event, search, shown, again_ms)]
        for one, _ in taken:
            self._forget(one)
        return taken

    def pop_expired(self, watermark_ms: int) -> tuple[str, KeptRecord] | None:
        """Remove the next event whose wait is over without a list; return the search that it names, and its record."""
        while self._by_end and self._by_end[0].until_ms < watermark_ms:
            expired = heapq.heappop(self._by_end)
            event = expired.event
            if event is not None and event.record is not None:
                self._forget(expired)
                return expired.search_id, event.record
        return None

    def _forget(self, done: WaitingEvent) -> None:
        done.event = None
        waiting = self._by_search[done.search_id]
        del waiting[done.offset]
        if not waiting:
            del self._by_search[done.search_id]


def _belongs(event: HeldEvent, search: OpenSearch, shown: set[str], again_ms: Mapping[str, int]) -> bool:
    """Whether a closing list takes an event.

    Args:
        event: the event.
        search: the list.
        shown: the products that it shows.
        again_ms: product -> when a later list first shows it; `NO_PRODUCT` stands for whatever it shows.
    """
    if event.event_time < search.search_time or event.time_ms > search.deadline:
        return False
    named = [product_id for product_id, _, _ in event.slots()]
    if named and shown.isdisjoint(named):
        return False
    return all(again_ms.get(product_id, math.inf) > event.event_time for product_id in named or (NO_PRODUCT,))

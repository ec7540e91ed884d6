"""The lists of one partition as far back as they are remembered, in the order of event time: what rules look back on.

Everything here is a function of which lists there were, never of the order in which they came or of what was decided
about them. So another interleaving of the same joins, or a restart that reads the log again, finds the same past.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator, Mapping
from typing import Final, NamedTuple

from contracts.outcomes import Grade, grade, is_bounce, stood_by_rank
from contracts.structs import JoinedSearch
from towers.text import normalised

REMEMBERED_MS: Final = 86_400_000
"""How long, in event time, a list is remembered: what a shopper may do once a day is counted over as long."""
REMEMBERED_LISTS: Final = 20_000
"""Most lists remembered in a partition, about 20 MB; a restart reads them again within seconds."""


class ListKey(NamedTuple):
    """The place of a list in event time; no two lists share it."""

    closed_at: int
    search_time: int
    search_id: str


class ListFacts(NamedTuple):
    """What is remembered of a list.

    Args:
        key: its place in event time.
        offset: of its record.
        session: its session; None if it names none.
        client: its client; None if it names none.
        query: what was typed, in the form under which queries are remembered.
        page: the first of its pages.
        first: the first position that it shows; 0 if it shows nothing.
        shown: how many slots it has.
        clicked: the products that the shopper went further with.
        counted: those of them that count, with how far: neither a bounce nor a slot that was placed or sold out.
    """

    key: ListKey
    offset: int
    session: str | None
    client: str | None
    query: str
    page: int
    first: int
    shown: int
    clicked: tuple[str, ...]
    counted: Mapping[str, Grade]

    @property
    def shopper(self) -> str | None:
        """Who asked: the client, else the session."""
        return self.client or self.session

    @property
    def visit(self) -> tuple[str, str | None]:
        """In which visit it was typed: the session, else the client."""
        return ("client", self.client) if self.session is None else ("session", self.session)

    @property
    def asked(self) -> Hashable:
        """What was asked for, and by whom: further pages are another thing, whether or not they are numbered."""
        return "asked", self.shopper, self.query, self.page, self.first

    def places(self) -> Iterator[Hashable]:
        """Yield the names under which the list is found.

        Sessions and clients have the lists that a person typed for: a page of shelves, or one that is scrolled, shows
        many lists at once, and says little of who looks at it but by clicks.
        """
        if self.query and (self.page == 1 or self.clicked):
            if self.session is not None:
                yield "session", self.session
            if self.client is not None:
                yield "client", self.client
        for product_id in self.counted:
            yield "chosen", self.key.search_id, product_id
        if self.query and (shopper := self.shopper) is not None:
            yield self.asked
            for product_id in self.counted:
                yield "clicked", shopper, product_id
                yield "clicked", shopper, product_id, self.query


def facts_of(search: JoinedSearch, offset: int) -> ListFacts:
    """Return what is remembered of a list."""
    engaged = [slot for slot in search.slots if grade(slot)]
    by_rank = [(grade(slot), slot.product_id) for slot in engaged if stood_by_rank(slot) and not is_bounce(slot)]
    return ListFacts(
        key=ListKey(search.closed_at, search.search_time, search.search_id),
        offset=offset,
        session=search.session_id,
        client=search.client_id,
        query=normalised(search.query),
        page=search.page,
        first=min((slot.position for slot in search.slots), default=0),
        shown=len(search.slots),
        clicked=tuple(dict.fromkeys(slot.product_id for slot in engaged)),
        counted={product_id: own for own, product_id in sorted(by_rank)},
    )


class RecentLists:
    """What is known of the lists of a partition: those that wait for a decision, and those decided not too long ago.

    Args:
        newest_closed_ms: newest deadline of a decided list.
    """

    def __init__(self, newest_closed_ms: int = -1) -> None:
        self.newest_closed_ms = newest_closed_ms
        self._facts: dict[ListKey, ListFacts] = {}
        self._by_identity: dict[tuple[str, int], ListKey] = {}
        self._by_place: dict[Hashable, list[ListKey]] = {}
        """Rising; a list is forgotten only once it is decided, so these are as long as the memory at most."""
        self._decided: list[ListKey] = []
        """A heap."""
        self._known_offsets: set[int] = set()
        self._offsets: list[int] = []
        """A heap; what was forgotten out of turn may stay for a while."""

    def __getitem__(self, key: ListKey) -> ListFacts:
        return self._facts[key]

    @property
    def size(self) -> int:
        """How much is kept, in entries."""
        places = sum(map(len, self._by_place.values()))
        return places + 2 * len(self._facts) + len(self._decided) + len(self._offsets)

    @property
    def oldest_offset(self) -> int | None:
        """Offset of the oldest record of what is known."""
        return self._offsets[0] if self._offsets else None

    def knows(self, search: JoinedSearch) -> bool:
        """Whether the very same list is known."""
        return (search.search_id, search.search_time) in self._by_identity

    def chose(self, product_id: str, key: ListKey) -> bool:
        """Whether a product was chosen, and counted, when a list was shown before under the same search id."""
        return bool(self.before(("chosen", key.search_id, product_id), key, most=1))

    def add(self, facts: ListFacts) -> None:
        """Get to know a list, once."""
        key = facts.key
        if key in self._facts:
            return
        self._facts[key] = facts
        self._by_identity[key.search_id, key.search_time] = key
        self._known_offsets.add(facts.offset)
        heapq.heappush(self._offsets, facts.offset)
        for place in facts.places():
            insort(self._by_place.setdefault(place, []), key)

    def settle(self, key: ListKey) -> None:
        """Note that a list is decided, and forget what is too old or more than there is room for."""
        heapq.heappush(self._decided, key)
        self.advance(key.closed_at)

    def advance(self, closed_at: int) -> None:
        """Move event time on and forget decided lists: those that are too old, and more than there is room for."""
        self.newest_closed_ms = max(self.newest_closed_ms, closed_at)
        oldest_ms = self.newest_closed_ms - REMEMBERED_MS
        while self._decided and (self._decided[0].closed_at < oldest_ms or len(self._decided) > REMEMBERED_LISTS):
            self._forget(heapq.heappop(self._decided))

    def before(self, place: Hashable, key: ListKey, *, most: int) -> list[ListKey]:
        """Return the last lists of a place before one in event time, rising."""
        keys = self._by_place.get(place, [])
        end = bisect_left(keys, key)
        return keys[max(0, end - most) : end]

    def count_before(self, place: Hashable, key: ListKey) -> int:
        """Count the lists of a place before one in event time."""
        return bisect_left(self._by_place.get(place, ()), key)

    def after(self, place: Hashable, key: ListKey, *, until_ms: int, most: int) -> list[ListKey]:
        """Return the next lists of a place after one, as far as they close by a moment, rising."""
        keys = self._by_place.get(place, [])
        begin = bisect_left(keys, key)
        found = keys[begin : begin + most + 1]
        return [other for other in found if other != key and other.closed_at <= until_ms]

    def _forget(self, key: ListKey) -> None:
        facts = self._facts.pop(key, None)
        if facts is None:
            return
        del self._by_identity[key.search_id, key.search_time]
        for place in facts.places():
            keys = self._by_place[place]
            del keys[bisect_left(keys, key)]
            if not keys:
                del self._by_place[place]
        self._known_offsets.discard(facts.offset)
        while self._offsets and self._offsets[0] not in self._known_offsets:
            heapq.heappop(self._offsets)
        if len(self._offsets) > 2 * len(self._known_offsets) + 16:
            self._offsets = sorted(self._known_offsets)

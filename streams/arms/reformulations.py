"""Which searches their shoppers typed anew: nothing chosen, and within minutes another query in the same session.

Joins hand a session's lists over in any order, so a list is looked at beside those before and after it in event time,
and is told as soon as the second of the two is here. What is remembered follows from the records since the oldest list
of it, whatever came before: a restart reads those again and tells nothing twice (docs/papers.md, "Reformulation").
"""

import heapq
from bisect import bisect_left
from typing import Final, NamedTuple

REFORMULATED_MS: Final = 300_000
"""Another query so soon says that the first one's answer did not do."""
REMEMBERED_MS: Final = 900_000
"""How long a list is remembered, in event time; joins may be apart by what this exceeds five minutes."""
REMEMBERED_LISTS: Final = 50_000
"""Most lists remembered in a partition, about 20 MB: five minutes of 160 searches a second."""
NEIGHBOURS: Final = 20
"""How many of a session's lists are looked at on either side: nobody types more queries in five minutes."""


class Asked(NamedTuple):
    """A list, as far as is remembered of it.

    Args:
        search_time: when it was asked for; lists of a session are kept in this order.
        search_id: its id.
        session: whose it is.
        query: what was typed, in the form under which queries are remembered.
        chosen: whether anything of it was chosen.
        arm: under which it is counted.
        surface: likewise.
        offset: of its record.
    """

    search_time: int
    search_id: str
    session: str
    query: str
    chosen: bool
    arm: str
    surface: str
    offset: int

    def is_reformulated_by(self, other: "Asked") -> bool:
        """Whether another list of the session shows that this one's answer did not do."""
        gap_ms = other.search_time - self.search_time
        return not self.chosen and 0 < gap_ms <= REFORMULATED_MS and other.query != self.query


class RecentSearches:
    """The lists of one partition's last minutes."""

    def __init__(self) -> None:
        self._by_session: dict[str, list[Asked]] = {}
        self._oldest: list[Asked] = []
        """All of them, as a heap."""
        self._newest_ms = -1
        self._told: set[Asked] = set()

    @property
    def oldest_offset(self) -> int | None:
        """Offset of the first record that is still needed; None if nothing is remembered."""
        return min((one.offset for one in self._oldest), default=None)

    def add(self, asked: Asked) -> list[Asked]:
        """Get to know a list; return those of which it is now known, and was not before, that they were reformulated.

        What is known or too old already tells nothing.
        """
        session = self._by_session.setdefault(asked.session, [])
        at = bisect_left(session, asked[:2])
        if session[at : at + 1] and session[at][:2] == asked[:2]:
            return []
        session.insert(at, asked)
        heapq.heappush(self._oldest, asked)
        if not self._forget(asked):
            return []
        at = bisect_left(session, asked)
        before, after = session[max(0, at - NEIGHBOURS) : at], session[at + 1 : at + 1 + NEIGHBOURS]
        found = [one for one in before if one not in self._told and one.is_reformulated_by(asked)]
        if any(asked.is_reformulated_by(other) for other in after):
            found.append(asked)
        self._told.update(found)
        return found

    def _forget(self, newest: Asked) -> bool:
        """Let go of what is too old, and of more than there is room for; tell whether a new list is still there."""
        self._newest_ms = max(self._newest_ms, newest.search_time)
        is_kept = True
        oldest_ms = self._newest_ms - REMEMBERED_MS
        while self._oldest[0].search_time < oldest_ms or len(self._oldest) > REMEMBERED_LISTS:
            gone = heapq.heappop(self._oldest)
            self._told.discard(gone)
            session = self._by_session[gone.session]
            del session[bisect_left(session, gone)]
            if not session:
                del self._by_session[gone.session]
            is_kept &= gone is not newest
        return is_kept

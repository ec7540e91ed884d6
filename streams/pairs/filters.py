"""What a shopper's other lists say about a list: whether it counts at all, how much, and which of its products do.

Each filter has a name by which `MILLRACE_FILTERS` switches it on. None of them asks which of two products was clicked,
but for two that are meant to: a variant of what was clicked was not passed over, and neither was what the same shopper
clicked right afterwards (docs/papers.md, "Which lists count").
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from contracts.arms import is_in_share
from contracts.outcomes import grade
from contracts.structs import JoinedSearch
from contracts.telemetry import Filter, FilterReason, SlotReason
from streams.pairs.recent_lists import ListFacts, ListKey, RecentLists

RATE_LISTS: Final = 20
RATE_MS: Final = 60_000
"""So many lists within a minute: nobody types and reads a query every three seconds for so long."""
REGULAR_GAPS: Final = 10
REGULAR_SHARE: Final = 0.1
"""So many gaps between lists, all within this share of their mean: people's gaps differ by factors."""
STREAK_LISTS: Final = 20
"""So many lists one after the other with a click in each: people leave a list alone every second or third time."""
ALL_CLICKED: Final = 5
"""From so many slots on, nobody clicks them all."""
MOST_CLICKED: Final = 50
"""Products of one list that a person goes further with, at most."""
REPEATED_MS: Final = 1_800_000
"""Within half an hour the same query of the same shopper is the same visit."""
FULL_LISTS: Final = 50
"""Lists of a shopper within a day, of what was typed, that count whole; the n-th weighs 50 / n."""
MOST_LISTS: Final = 200
"""Lists of a shopper within a day that count at all."""
PRODUCT_CLICKS: Final = 5
"""Clicks of a shopper on one product within a day that count, over all queries."""
REFORMULATED_MS: Final = 10_000
"""Whoever types something else so soon without a click has not read the list."""
LATER_MS: Final = 300_000
"""A product clicked within so many minutes for a like query had been passed over for the moment only."""
LIKE_SHARE: Final = 0.5
"""Queries are alike if they share more than this of the words that either has."""
NEXT_LISTS: Final = 20
"""How many of the typed lists before or after are looked at."""


class Judgement(NamedTuple):
    """How a list counts.

    Args:
        reason: why it does not count at all; None if it does.
        excluded: products that do not count in it, with the reason.
        cap: what it weighs as a whole.
    """

    reason: FilterReason | None = None
    excluded: Mapping[str, SlotReason] = {}
    cap: float = 1.0


def judge(
    search: JoinedSearch, facts: ListFacts, lists: RecentLists, *, filters: frozenset[Filter], look_ahead_ms: int = 0
) -> Judgement:
    """Judge a list by the other lists of its shopper.

    Args:
        search: the list.
        facts: what is remembered of it.
        lists: what is known; lists that come after it are looked at only if they close within the look-ahead.
        filters: those that are on.
        look_ahead_ms: how much later than this list those close that may be looked at.
    """
    for one, (applies, reason) in _WHOLE_LIST.items():
        if one in filters and applies(facts, lists, look_ahead_ms):
            return Judgement(reason)
    cap = min(1.0, FULL_LISTS / (_lists_before(facts, lists) + 1)) if Filter.CAPS in filters else 1.0
    excluded: dict[str, SlotReason] = {}
    if Filter.LATER_CLICKS in filters:
        excluded |= dict.fromkeys(_later_clicks(facts, lists, look_ahead_ms), SlotReason.LATER_CLICKED)
    if Filter.VARIANTS in filters and facts.clicked:
        excluded |= dict.fromkeys(_variants(search), SlotReason.VARIANT)
    if Filter.REPEATS in filters:
        excluded |= dict.fromkeys(_clicked_before(facts, lists), SlotReason.REPEATED_CLICK)
    return Judgement(None, excluded, cap)


def is_held_out(facts: ListFacts, share: float) -> bool:
    """Whether a list is one that is never learned from: by its shopper or by its query, each a share by hash.

    The hash is salted, so that it has nothing to do with which arm a shopper belongs to.
    """
    shopper = facts.shopper
    by_shopper = bool(share and shopper) and is_in_share(f"holdout shopper {shopper}", b"", share)
    return by_shopper or is_held_out_query(facts.query, share)


def is_held_out_query(query: str, share: float) -> bool:
    """Whether nothing is ever learned from the lists of a normalised query."""
    return bool(share and query) and is_in_share(f"holdout query {query}", b"", share)


def _is_robot(facts: ListFacts, lists: RecentLists, look_ahead_ms: int) -> bool:
    """Whether the rate, the regularity or the clicks of a session, else of a client, are no person's.

    It is told by lists of what was typed, first pages and those with a click (`ListFacts.places`).
    """
    del look_ahead_ms
    clicked = len(facts.clicked)
    if clicked > MOST_CLICKED or (facts.shown >= ALL_CLICKED and clicked == facts.shown):
        return True
    before = lists.before(facts.visit, facts.key, most=max(RATE_LISTS, REGULAR_GAPS, STREAK_LISTS) - 1)
    times = sorted([*(key.search_time for key in before), facts.key.search_time])
    if len(times) >= RATE_LISTS and times[-1] - times[-RATE_LISTS] < RATE_MS:
        return True
    gaps = [later - earlier for earlier, later in pairwise(times[-REGULAR_GAPS - 1 :])]
    mean = sum(gaps) / max(len(gaps), 1)
    if len(gaps) == REGULAR_GAPS and all(abs(gap - mean) <= REGULAR_SHARE * mean for gap in gaps):
        return True
    streak = before[-STREAK_LISTS + 1 :]
    return bool(facts.clicked) and len(streak) == STREAK_LISTS - 1 and all(lists[key].clicked for key in streak)


def _is_repeated(facts: ListFacts, lists: RecentLists, look_ahead_ms: int) -> bool:
    """Whether the shopper saw this page of this query shortly before, as somebody does who goes back to a list.

    A click is new all the same: who comes back to a list, or narrows it down, and goes on. Of clicks that were counted
    before `_clicked_before` takes care.
    """
    del look_ahead_ms
    if facts.clicked:
        return False
    since = facts.key.search_time - REPEATED_MS
    return any(key.search_time > since for key in lists.before(facts.asked, facts.key, most=NEXT_LISTS))


def _is_beyond_cap(facts: ListFacts, lists: RecentLists, look_ahead_ms: int) -> bool:
    del look_ahead_ms
    return _lists_before(facts, lists) >= MOST_LISTS


def _is_reformulated(facts: ListFacts, lists: RecentLists, look_ahead_ms: int) -> bool:
    """Whether the shopper clicked nothing and typed another query right away."""
    if facts.clicked or not facts.query:
        return False
    until = facts.key.search_time + REFORMULATED_MS
    return any(
        other.query != facts.query and facts.key.search_time < other.key.search_time <= until
        for other in _following(facts, lists, look_ahead_ms)
    )


LOOK_AHEAD: Final = frozenset({Filter.LATER_CLICKS, Filter.REFORMULATIONS})
"""Filters that look at lists which close later."""
_WHOLE_LIST: Final[Mapping[Filter, tuple[Callable[[ListFacts, RecentLists, int], bool], FilterReason]]] = {
    Filter.ROBOTS: (_is_robot, FilterReason.ROBOT),
    Filter.REPEATS: (_is_repeated, FilterReason.REPEATED),
    Filter.CAPS: (_is_beyond_cap, FilterReason.CAPPED),
    Filter.REFORMULATIONS: (_is_reformulated, FilterReason.REFORMULATED),
}


def _lists_before(facts: ListFacts, lists: RecentLists) -> int:
    """How many lists that the client typed for, or the session if that has more, came within the last day."""
    places = (("client", facts.client), ("session", facts.session))
    return max((lists.count_before(place, facts.key) for place in places if place[1] is not None), default=0)


def _clicked_before(facts: ListFacts, lists: RecentLists) -> list[str]:
    """Of the products that count those of which this shopper's other lists have said as much, or often enough."""

    def before(*place: str | None) -> list[ListKey]:
        return lists.before(("clicked", facts.shopper, *place), facts.key, most=NEXT_LISTS)

    return [
        one
        for one, own in facts.counted.items()
        if any(lists[key].counted[one] >= own for key in before(one, facts.query)) or len(before(one)) >= PRODUCT_CLICKS
    ]


def _variants(search: JoinedSearch) -> list[str]:
    """The products that are variants of a clicked one, and were not clicked themselves."""
    chosen = {slot.product_id for slot in search.slots if grade(slot)}
    parents = {slot.parent_id for slot in search.slots if slot.product_id in chosen} - {None}
    return [slot.product_id for slot in search.slots if slot.parent_id in parents and slot.product_id not in chosen]


def _later_clicks(facts: ListFacts, lists: RecentLists, look_ahead_ms: int) -> set[str]:
    """The products that the shopper clicked shortly afterwards for a like query."""
    until = facts.key.search_time + LATER_MS
    later = (
        other
        for other in _following(facts, lists, look_ahead_ms)
        if facts.key.search_time < other.key.search_time <= until and are_alike(facts.query, other.query)
    )
    return {product_id for other in later for product_id in other.clicked} - set(facts.clicked)


def _following(facts: ListFacts, lists: RecentLists, look_ahead_ms: int) -> list[ListFacts]:
    """The lists that were typed for next in the session, as far as the look-ahead reaches."""
    if facts.session is None:
        return []
    until_ms = facts.key.closed_at + look_ahead_ms
    place = ("session", facts.session)
    return [lists[key] for key in lists.after(place, facts.key, until_ms=until_ms, most=NEXT_LISTS)]


def are_alike(one: str, other: str) -> bool:
    """Whether two normalised queries share most of their words.

    >>> are_alike("quiet fridge", "fridge quiet"), are_alike("quiet fridge", "quiet oven")
    (True, False)
    """
    words = set(one.split()), set(other.split())
    return len(words[0] & words[1]) > LIKE_SHARE * len(words[0] | words[1])

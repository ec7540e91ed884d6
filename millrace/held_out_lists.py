"""Held-out lists as far as they say something of the order in which products stood."""

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from contracts.errors import ContractError
from contracts.outcomes import filter_reason, grade, stood_by_rank
from contracts.structs import JOINED_SEARCH, JoinedSearch, JoinedSlot

MOST_LISTS: Final = 50_000
"""Held in memory, the newest: 6.4 kB each with 24 slots."""


class HeldOutList(NamedTuple):
    """A held-out list as far as it counts: its slots from the top, and who asked."""

    search: JoinedSearch
    shopper: str
    slots: list[JoinedSlot]


def held_out_lists(values: Iterable[bytes | None], *, most: int = MOST_LISTS) -> tuple[list[HeldOutList], Counter[str]]:
    """Take each list once, the newest ones, with the slots that count; count those that are left out by reason.

    Slots of the first page count that stood there by their rank, of products that stood nowhere else in the list; if
    the list has view events, those that were seen. A list counts that has two of them: fewer have no order.
    """
    lists: dict[str, HeldOutList] = {}
    left_out: Counter[str] = Counter()
    oldest: list[tuple[int, str]] = []
    for value in values:
        try:
            search = JOINED_SEARCH.decode(value)
        except ContractError as error:
            left_out[error.reason] += 1
            continue
        slots = _counted(search)
        if search.search_id in lists:
            left_out["duplicate"] += 1
        elif (reason := filter_reason(search)) is not None:
            left_out[reason.value] += 1
        elif search.page > 1:
            left_out["later_page"] += 1
        elif len(slots) < 2 or not search.query.strip():
            left_out["no_order"] += 1
        else:
            shopper = search.client_id or search.session_id or search.search_id
            lists[search.search_id] = HeldOutList(search, shopper, slots)
            heapq.heappush(oldest, (search.search_time, search.search_id))
            if len(lists) > most:
                del lists[heapq.heappop(oldest)[1]]
                left_out["older"] += 1
    return list(lists.values()), left_out


def _counted(search: JoinedSearch) -> list[JoinedSlot]:
    times = Counter(slot.product_id for slot in search.slots)
    reported = any(slot.visible_ms is not None for slot in search.slots)
    return [
        slot
        for slot in search.slots
        if stood_by_rank(slot)
        and times[slot.product_id] == 1
        and slot.position <= (search.first_page_ends or slot.position)
        and (not reported or slot.visible_ms or grade(slot))
    ]

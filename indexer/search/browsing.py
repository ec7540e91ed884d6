"""Lists without a query go on for as long as a shopper turns their pages: the store is asked for what is not in them.

A list keeps what it shows: the store leaves that out, so no product comes twice, and one that moved up meanwhile comes
next.
"""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from contracts.http import SearchRequest
from indexer.search.arrangement import arranged, grouped
from indexer.search.facets import MATCHING
from indexer.search.lists import Entry, RankedList, entries_of
from indexer.search.retrieval import Hit

MOST_LISTED: Final = 10_000
"""Products of a list, its variants among them: so many positions an event may name."""
T = TypeVar("T")


def whole_pages(pages: Sequence[Sequence[T]], k: int) -> Sequence[Sequence[T]]:
    """The pages of a list that goes on: a last one that is not full is asked for again, unless it is the only one.

    >>> whole_pages(["abc", "de"], 3), whole_pages(["ab"], 3)
    (['abc'], ['ab'])
    """
    return pages[:-1] if len(pages) > 1 and len(pages[-1]) < k else pages


def listed_ids(ranked: RankedList) -> list[str]:
    """The products of a list, and the variants that they stand for."""
    return [one for entry in _entries(ranked) for one in (entry.product_id, *entry.variants)]


def wanted(ranked: RankedList, request: SearchRequest, listed: int) -> int:
    """How many further products to ask for, so that a page is reached; none if the list is as long as it may be."""
    missing = request.page * request.k - sum(map(len, ranked.pages))
    return min(max(MATCHING, missing), MOST_LISTED - listed)


def continued(ranked: RankedList, further: Sequence[Hit], request: SearchRequest, *, goes_on: bool) -> RankedList:
    """Put what comes next behind a list, whose pages stay as they were shown.

    Args:
        ranked: the list.
        further: what comes next, none of it in the list.
        request: what was asked.
        goes_on: whether there is more behind it.
    """
    pages = ranked.pages
    if request.group_variants:
        known = [
            Hit(entry.score, {"product_id": entry.product_id, "parent_id": entry.parent_id}, variants=entry.variants)
            for entry in _entries(ranked)
        ]
        groups = grouped([*known, *further])
        variants = iter([group.variants for group in groups])
        pages = tuple(
            tuple(msgspec.structs.replace(entry, variants=next(variants)) for entry in page) for page in pages
        )
        further = groups[len(known) :]
    more: Sequence[Sequence[Hit]] = arranged(further, request)
    more = whole_pages(more, request.k) if goes_on else more
    return msgspec.structs.replace(ranked, pages=(*pages, *entries_of(more)), goes_on=goes_on)


def _entries(ranked: RankedList) -> Iterator[Entry]:
    return (entry for page in ranked.pages for entry in page)

"""Held-out lists as far as they say something of the order in which products stood, and what releases say of them."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from contracts.errors import ContractError, DependencyDown
from contracts.outcomes import VALUE, cell_of, filter_reason, grade, is_bounce, stood_by_rank
from contracts.propensities import Propensities
from contracts.structs import JOINED_SEARCH, JoinedSearch, JoinedSlot
from towers.release_files import Encoder
from towers.text import normalised
from trainer.learner import Products, Towers
from trainer.preference.matches import WordMatches
from trainer.release.asked import AskedProducts
from trainer.release.held_out import HeldOutLists
from trainer.release.looks import MOST_LISTS

ENCODED_AT_ONCE: Final = 64

Tell = Callable[[str, int, int], None]
"""Is told what is done, how far it has come, and how far it goes."""


class HeldOutList(NamedTuple):
    """A held-out list as far as it counts: its slots from the top, and who asked."""

    search: JoinedSearch
    shopper: str
    slots: list[JoinedSlot]


def held_out_lists(
    values: Iterable[bytes | None],
    *,
    most: int = MOST_LISTS,
    counts: Callable[[JoinedSearch], bool] = lambda _search: True,
) -> tuple[list[HeldOutList], Counter[str]]:
    """Take each list once, the newest ones, with the slots that count; count those that are left out by reason.

    Slots of the first page count that stood there by their rank, of products that stood nowhere else in the list; if
    the list has view events, those that were seen. A list counts that has two of them: fewer have no order.

    Args:
        values: of the topic's records.
        most: that are taken.
        counts: which lists are asked for.
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
        if not counts(search):
            left_out["not_asked_for"] += 1
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


class KnownSlots(NamedTuple):
    """L lists with those N of their slots whose product the catalogue knows, and the queries' and products' scores.

    Args:
        lists: L of them.
        slots: their N slots, those of a list together.
        list_of: of each slot, rising, (N,).
        worth: what was chosen of each slot, in worths of a click, (N,).
        unknown: slots that are left out.
        asked: the distinct pairs of query and product.
        pair_of: of each slot its pair, (N,).
    """

    lists: Sequence[HeldOutList]
    slots: Sequence[JoinedSlot]
    list_of: np.ndarray
    worth: np.ndarray
    unknown: int
    asked: AskedProducts
    pair_of: np.ndarray

    def scores(self, towers: Towers) -> np.ndarray:
        """What a release says of each slot's product, (N,)."""
        return np.asarray(self.asked.scores(towers.query, self.asked.quality(towers.product))[self.pair_of])

    def ranked_by(self) -> np.ndarray:
        """The query release that ranked each list, 0 where that is not said, (L,)."""
        return np.array([one.search.ranking.query_release or 0 for one in self.lists], dtype=np.int64)

    def arrays(self, propensities: Propensities) -> HeldOutLists:
        """The lists as they are estimated by, without slices."""
        searches = (self.lists[one].search for one in self.list_of.tolist())
        bands = (
            propensities.band(cell_of(search), slot.position, search.search_time)
            for search, slot in zip(searches, self.slots, strict=True)
        )
        theta = np.fromiter(bands, dtype=(float, 3), count=len(self.slots)).T
        _, persons = numbered([one.shopper for one in self.lists])
        _, queries = numbered([normalised(one.search.query) for one in self.lists])
        clicked = np.asarray(self.worth > 0, dtype=float)
        return HeldOutLists(persons, queries, self.list_of, theta, clicked, {})


def known_slots(
    lists: Sequence[HeldOutList],
    products: Products,
    encoder: Encoder,
    *,
    tell: Tell = lambda _what, _done, _of: None,
) -> KnownSlots:
    """Look up what lists show, and encode their queries.

    Args:
        lists: held out.
        products: the catalogue.
        encoder: of queries.
        tell: told how far they are encoded.

    Raises:
        DependencyDown: the catalogue knows none of their products.
    """
    slots = [slot for one in lists for slot in one.slots]
    ids, id_of = numbered([slot.product_id for slot in slots])
    places = np.flatnonzero(products.look(ids).known[id_of])
    if not len(places):
        raise _none_known()
    list_of = np.repeat(np.arange(len(lists)), [len(one.slots) for one in lists])
    texts, text_of = numbered([" ".join(one.search.query.split()) for one in lists])
    encoded = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        encoded.append(encoder.encode(texts[start : start + ENCODED_AT_ONCE]))
        tell("encoding queries", min(start + ENCODED_AT_ONCE, len(texts)), len(texts))
    pairs, pair_of = np.unique(text_of[list_of[places]] * len(ids) + id_of[places], return_inverse=True)
    asked, named = np.divmod(pairs, len(ids))
    used = np.unique(asked)
    index = products.word_index()
    found = AskedProducts.of(
        [texts[one] for one in used], np.vstack(encoded)[used], asked, np.array(ids, dtype=object)[named], products,
        WordMatches(lambda: index, index.counts),
    )  # fmt: skip
    # Encoding may take minutes: what was deleted meanwhile would stand in both orders by its quality alone.
    is_left = found.products.known[found.cells.products][pair_of]
    places, pair_of = places[is_left], pair_of[is_left]
    if not len(places):
        raise _none_known()
    left = [slots[place] for place in places.tolist()]
    worth = np.array([0.0 if is_bounce(slot) else VALUE.get(grade(slot), 0.0) for slot in left], dtype=float)
    return KnownSlots(lists, left, list_of[places], worth, len(slots) - len(left), found, pair_of)


def _none_known() -> DependencyDown:
    return DependencyDown(
        "no product of a held-out list has a vector", fix="is an indexer running? `millrace doctor` says what is wrong"
    )


def numbered(names: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """The distinct names, and the number of each name among them, (L,); no array of strings, as wide as the longest."""
    number: dict[str, int] = {}
    numbers = np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)
    return list(number), numbers

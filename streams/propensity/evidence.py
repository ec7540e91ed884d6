"""What lists tell of examination: clicks on pairs of positions that showed equal products equally often.

Two interventions make such pairs. Neighbours that a list exchanged with chance 1/2 were each at either position alike,
whatever the products are worth, so no history is needed. And a product that one frozen ranking release showed at
several positions for one query is compared with itself, as Mantel and Haenszel compare rates in strata.

Sums are whole numbers, so that adding partitions and going on after a restart lose nothing.

Source: docs/papers.md, "Propensities from interventions"; ADR 18 says why these sums.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeVar

from contracts.joined import JoinedSearch, JoinedSlot
from contracts.outcomes import Cell, Grade, Kind, exchanged_positions, grade, stood_by_rank
from towers.text import normalised

PLACES: Final = 20
"""Positions that are estimated: below them there are too few clicks."""
APART: Final = 3
"""Most positions between two that are compared; jitter moves most products less, and the sums stay short."""
GROUPS: Final = 16
"""Groups of (query, product) that sums are kept by: what is drawn anew for the bands."""
UNIT: Final = 100_000
"""One click, in the units of the sums."""
VISIBLE_MS: Final = 1_000
"""How long a slot must have been in view to count as seen."""
TRUST_PLACES: Final = (2, 3, 4)
"""Positions compared with the first one by the regression that looks for trust bias."""
TRUST_SHOWINGS: Final = 10
"""How often a product must have been at the first position for its click-through there to say much."""
Pair = tuple[str, int, int]
"""Which intervention (`swap` or `history`), the upper and the lower position."""
Name = TypeVar("Name")
Counts = Mapping[int, list[int]]
"""Position -> showings and clicks of one product."""


class Showing(NamedTuple):
    """A product that a list showed.

    Args:
        key: of the query, the product and the ranking that showed it.
        group: of the query and the product.
        position: where it was.
        clicked: whether it was clicked.
    """

    key: int
    group: int
    position: int
    clicked: bool


class Products:
    """How often each product was shown where, and clicked there, since a table was begun."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[int, list[int]]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, key: int) -> Counts:
        """Return what is known of a product."""
        return self._counts.get(key, {})

    def add(self, shown: Showing) -> None:
        """Count a showing."""
        counts = self._counts.setdefault(shown.key, {}).setdefault(shown.position, [0, 0])
        counts[0] += 1
        counts[1] += shown.clicked


class CellSums:
    """The sums of one cell.

    Args:
        lists: how many lists gave evidence, since the cell last had to make room.
        fresh: how many of them since older ones were last made to weigh less.
        clicks: pair of positions -> clicks in `UNIT` at the upper one, a number for each group, then at the lower one.
        trust: position -> for each group five sums over showings there of products known at the first position.
    """

    def __init__(
        self,
        lists: int = 0,
        fresh: int = 0,
        clicks: dict[Pair, list[int]] | None = None,
        trust: dict[int, list[int]] | None = None,
    ) -> None:
        self.lists = lists
        self.fresh = fresh
        self.clicks: dict[Pair, list[int]] = clicks or {}
        self.trust: dict[int, list[int]] = trust or {}

    def count_list(self) -> None:
        """Count a list that gave evidence."""
        self.lists += 1
        self.fresh += 1

    def decay(self, half_life_lists: float) -> None:
        """Let what was counted so far weigh less, by the lists that gave evidence since the last time."""
        kept = 0.5 ** (self.fresh / half_life_lists)
        self.fresh = 0
        for sums in (*self.clicks.values(), *self.trust.values()):
            sums[:] = [int(one * kept) for one in sums]

    def add(self, other: "CellSums") -> None:
        """Add what another partition knows."""
        self.lists += other.lists
        _add(self.clicks, other.clicks)
        _add(self.trust, other.trust)

    def count_swap(self, upper: Showing, lower: Showing) -> None:
        """Count the clicks on two neighbours that were exchanged with chance 1/2."""
        sums = self._of("swap", upper.position, lower.position)
        sums[upper.group] += UNIT * upper.clicked
        sums[GROUPS + lower.group] += UNIT * lower.clicked

    def count_showing(self, shown: Showing, products: Products) -> None:
        """Count a showing of a frozen ranking: with its product, and what the comparison of that changes by it."""
        known = products.of(shown.key)
        if shown.position in TRUST_PLACES and 1 in known and known[1][0] >= TRUST_SHOWINGS:
            self._regress(shown, *known[1])
        before = dict(comparisons(known))
        products.add(shown)
        for (upper, lower), (above, below) in comparisons(products.of(shown.key)):
            sums = self._of("history", upper, lower)
            above_before, below_before = before.get((upper, lower), (0, 0))
            sums[shown.group] += above - above_before
            sums[GROUPS + shown.group] += below - below_before

    def _of(self, source: str, upper: int, lower: int) -> list[int]:
        return self.clicks.setdefault((source, upper, lower), [0] * (2 * GROUPS))

    def _regress(self, shown: Showing, showings: int, clicks: int) -> None:
        """Add to the sums of 1, c, x, c x and x x, with x the click-through at the first position.

        C (C - 1) / I (I - 1) is expected to be the square of the chance of a click, that of C / I is more.
        """
        sums = self.trust.setdefault(shown.position, [0] * (5 * GROUPS))
        ratio, square = clicks / showings, clicks * (clicks - 1) / (showings * (showings - 1))
        for name, value in enumerate((1, shown.clicked, ratio, shown.clicked * ratio, square)):
            sums[name * GROUPS + shown.group] += round(UNIT * value)


def _add(mine: dict[Name, list[int]], theirs: Mapping[Name, list[int]]) -> None:
    for name, sums in theirs.items():
        known = mine.get(name, [0] * len(sums))
        mine[name] = [one + other for one, other in zip(known, sums, strict=True)]


def comparisons(counts: Counts) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield what a product's showings say of pairs of positions: clicks in `UNIT` at the upper and at the lower one.

    With I showings and C clicks at each of two positions, and N showings at all of them: C_i I_j / N above, C_j I_i / N
    below. In a frozen ranking showings are independent of clicks; then the sums over products have expectations in the
    ratio of the examinations, however few showings a product has. Dividing by N uses no click more than once.

    Source: Mantel and Haenszel 1959, for person-time Rothman and Boice 1979; docs/papers.md.

    >>> [(pair, above / UNIT, below / UNIT) for pair, (above, below) in comparisons({1: [6, 3], 3: [4, 1]})]
    [((1, 3), 1.2, 0.6)]
    """
    if len(counts) < 2:
        return
    whole = sum(showings for showings, _ in counts.values())
    for upper, (showings, clicks) in counts.items():
        for lower, (showings_below, clicks_below) in counts.items():
            if 0 < lower - upper <= APART:
                yield (
                    (upper, lower),
                    (UNIT * clicks * showings_below // whole, UNIT * clicks_below * showings // whole),
                )


def cells_of(search: JoinedSearch) -> Iterator[tuple[Cell, tuple[Showing, ...]]]:
    """Yield each cell that a list speaks of, with the showings that count there.

    Later pages are left out: only who asked for one saw it. So are slots that were not where they were by their rank.
    """
    last = min(PLACES, search.first_page_ends or PLACES) if search.page == 1 else 0
    ranked = [slot for slot in search.slots if slot.position <= last and stood_by_rank(slot)]
    query = normalised(search.query)
    seen = [slot for slot in ranked if (slot.visible_ms or 0) >= VISIBLE_MS]
    by_kind: tuple[tuple[Kind, list[JoinedSlot]], ...] = (("examined", ranked), ("visible", seen))
    for kind, slots in by_kind:
        if len(slots) > 1:
            cell = Cell.of(search, kind)
            ranked_by = f"{ranking_of(search)}\0{cell.key}".encode()
            yield cell, tuple(_showing(f"{query}\0{slot.product_id}".encode(), ranked_by, slot) for slot in slots)


def ranking_of(search: JoinedSearch) -> str | None:
    """Name the frozen ranking that a list came from, None if products may have moved because of clicks.

    Of our own lists only those of the anchor arm, whose scores are jittered on purpose; of another engine's, those that
    name its release.
    """
    ranking = search.ranking
    releases = f"{ranking.query_release} {ranking.product_release}"
    if ranking.ranker == "millrace":
        jittered = ranking.arm == "anchor" and ranking.exploration.policy == "jitter"
        return releases if jittered else None
    is_named = ranking.query_release is not None or ranking.product_release is not None
    return f"{releases} {ranking.ranker}" if is_named else None


def swapped_pairs(search: JoinedSearch, shown: tuple[Showing, ...]) -> Iterator[tuple[Showing, Showing]]:
    """Yield the neighbours that were exchanged with chance 1/2, as far as both count."""
    by_position = {one.position: one for one in shown}
    for position in exchanged_positions(search) or ():
        upper, lower = by_position.get(position), by_position.get(position + 1)
        if upper and lower:
            yield upper, lower


def _showing(asked: bytes, ranked_by: bytes, slot: JoinedSlot) -> Showing:
    group = zlib.crc32(asked)
    key = group << 32 | zlib.crc32(ranked_by, group)
    return Showing(key, group % GROUPS, slot.position, grade(slot) > Grade.SKIP)

"""What a joined search says: how far the shopper went with each product, which outcomes say nothing, who looked where.

Stages that learn from lists read them by these rules and no others. Until propensities are estimated from the
shop's own lists, a prior stands for them: theta_k = 1 / k, version 0.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final, Literal, NamedTuple, Self

import orjson

from contracts.events import BY_RELEVANCE
from contracts.structs import JoinedSearch, JoinedSlot
from contracts.telemetry import FilterReason

LONG_CLICK_MS: Final = 30_000
"""A stay from which a click counts as more than a click."""
BOUNCE_MS: Final = 5_000
"""A stay below which a click says nothing, neither for nor against."""
PRIOR_VERSION: Final = 0
"""The propensity version of what is weighed by the prior alone."""

Kind = Literal["examined", "visible"]
"""`examined`: looked at, given it was served. `visible`: looked at, given a viewport event says it was in view."""


class Cell(NamedTuple):
    """Lists that are looked at alike; what an event left out is empty."""

    surface: str = ""
    device: str = ""
    layout: str = "list"
    columns: int = 1
    kind: Kind = "examined"

    @classmethod
    def of(cls, search: JoinedSearch, kind: Kind = "examined") -> Self:
        """The cell that a list belongs to."""
        return cls(search.surface or "", search.device or "", search.layout, search.columns, kind)

    @property
    def key(self) -> str:
        """The cell as JSON.

        >>> Cell("search", "mobile").key
        '["search","mobile","list",1,"examined"]'
        """
        return orjson.dumps([*self]).decode()

    @classmethod
    def from_key(cls, key: str) -> Self:
        """The cell that a key names.

        >>> Cell.from_key(Cell("search", "mobile").key).device
        'mobile'
        """
        return cls(*orjson.loads(key))


Theta = Callable[[Cell, int, int], tuple[float, int]]
"""Looks up, by cell, position and moment (epoch ms), the propensity in force and its version."""


class Grade(IntEnum):
    """How far a shopper went with a product of a list; more is better."""

    SKIP = 0
    CLICK = 1
    LONG_CLICK = 2
    CART = 3
    PURCHASE = 4


VALUE: Final = {Grade.CLICK: 1.0, Grade.LONG_CLICK: 1.5, Grade.CART: 4.0, Grade.PURCHASE: 10.0}
"""What choosing is worth, by grade: expected value per examination, to be calibrated per shop."""


def grade(slot: JoinedSlot) -> Grade:
    """Return the grade of a slot. A reported stay counts as a click even if the click itself was lost.

    >>> grade(JoinedSlot(product_id="P-1", position=1, clicked=True, dwell_ms=42_000))
    <Grade.LONG_CLICK: 2>
    """
    if slot.purchase_quantity:
        return Grade.PURCHASE
    if slot.cart_quantity:
        return Grade.CART
    if slot.dwell_ms is None:
        return Grade.CLICK if slot.clicked else Grade.SKIP
    return Grade.LONG_CLICK if slot.dwell_ms >= LONG_CLICK_MS else Grade.CLICK


def is_bounce(slot: JoinedSlot) -> bool:
    """Whether the shopper came straight back, which says nothing for the product and nothing against it.

    >>> is_bounce(JoinedSlot(product_id="P-1", position=1, clicked=True, dwell_ms=900))
    True
    """
    return grade(slot) is Grade.CLICK and slot.dwell_ms is not None and slot.dwell_ms < BOUNCE_MS


def stood_by_rank(slot: JoinedSlot) -> bool:
    """Whether a slot had its position by its rank, and could be bought.

    The others are left out on both sides: a slot that could be chosen but never rejected would pull its product up
    without end.
    """
    return slot.in_stock and not slot.sponsored and not slot.pinned


def filter_reason(search: JoinedSearch) -> FilterReason | None:
    """Return why a search is kept out of learning on purpose, or None."""
    if search.synthetic:
        return FilterReason.SYNTHETIC
    if search.consent == "denied":
        return FilterReason.CONSENT
    if search.ranking.sort not in {None, BY_RELEVANCE}:
        return FilterReason.SORTED
    return None


def first_swapped(seed: int) -> int:
    """Return the first position of the first pair of neighbours that a list with policy `swap` may have exchanged.

    The pairs follow one another from there to the end of the list; each was exchanged with chance 1/2, whatever stood
    in it. Two that a page break parts never were: what is learned from exchanges leaves them out.

    >>> first_swapped(6), first_swapped(7)
    (1, 2)
    """
    return 1 + seed % 2


def exchanged_positions(search: JoinedSearch) -> tuple[int, ...] | None:
    """Return the positions of a list that were exchanged with the next one with chance 1/2; None without policy `swap`.

    Only those of the first page: no exchange crosses a page break, and later breaks are not known.
    """
    exploration = search.ranking.exploration
    if exploration.policy != "swap":
        return None
    last = max((slot.position for slot in search.slots), default=0) if search.page == 1 else 0
    return tuple(range(first_swapped(exploration.seed), min(last, search.first_page_ends or last), 2))


def examination(position: int) -> float:
    """Return the relative chance that a shopper examines a position, 1 at the top.

    >>> examination(1), examination(4)
    (1.0, 0.25)
    """
    return 1 / position


def cell_of(search: JoinedSearch) -> Cell:
    """Return the cell by which a list is weighed: of what was in view, if it has view events."""
    return Cell.of(search, "visible" if any(slot.visible_ms is not None for slot in search.slots) else "examined")


def prior(cell: Cell, position: int, at_ms: int) -> tuple[float, int]:
    """Return what stands for a propensity as long as none is estimated, the same in every cell at any time.

    >>> prior(Cell(), 4, 0)
    (0.25, 0)
    """
    del cell, at_ms
    return examination(position), PRIOR_VERSION


def examination_ratio(chosen: float, rejected: float) -> float:
    """Return the weight that undoes position bias: min(1, theta_rejected / theta_chosen), of two propensities.

    It has the same fixed point as 1 / theta_chosen, is bounded by 1 and needs no clipping. It is 1 for a product that
    was chosen from below and less the further down the passed-over product stood.

    Source: docs/papers.md, "The weight of a pair".

    >>> examination_ratio(0.25, 1.0), examination_ratio(1.0, 0.25)
    (1.0, 0.25)
    """
    return min(1.0, rejected / chosen)

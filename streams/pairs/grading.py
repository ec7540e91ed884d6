"""What a shopper's behaviour says about one slot: a grade, and whether the slot may stand in a pair at all."""

from enum import IntEnum
from typing import Final

from contracts.structs import JoinedSlot

LONG_CLICK_MS: Final = 30_000
"""A stay from which a click counts as more than a click."""
BOUNCE_MS: Final = 5_000
"""A stay below which a click says nothing, neither for nor against."""


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
    """Return the grade of a slot. A reported stay counts as a click even where the click itself was lost.

    >>> grade(JoinedSlot(product_id="P-1", position=1, clicked=True, dwell_ms=42_000))
    <Grade.LONG_CLICK: 2>
    """
    if slot.purchase_quantity:
        return Grade.PURCHASE
    if slot.cart_quantity:
        return Grade.CART
    if slot.dwell_ms is not None and slot.dwell_ms >= LONG_CLICK_MS:
        return Grade.LONG_CLICK
    return Grade.CLICK if slot.clicked or slot.dwell_ms is not None else Grade.SKIP


def is_bounce(slot: JoinedSlot) -> bool:
    """Return whether the shopper came straight back; such a slot is neither chosen nor rejected.

    >>> is_bounce(JoinedSlot(product_id="P-1", position=1, clicked=True, dwell_ms=900))
    True
    """
    return grade(slot) is Grade.CLICK and slot.dwell_ms is not None and slot.dwell_ms < BOUNCE_MS


def is_comparable(slot: JoinedSlot) -> bool:
    """Return whether a slot stood where it stood by its rank, and could be bought.

    Sponsored, pinned and sold-out slots are left out on both sides: a slot that could be chosen but never rejected
    would pull its product up without end.
    """
    return slot.in_stock and not slot.sponsored and not slot.pinned

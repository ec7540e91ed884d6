"""What a list says to the learner: of each product that counts, how likely it was looked at, and what was chosen.

Lists without a click count too: the learner divides clicks by showings. What does not count is named with its reason,
so that nobody has to guess why a product of a list has not moved.
"""

from collections.abc import Mapping
from typing import Final

from contracts.base import is_visible
from contracts.outcomes import VALUE, Grade, Theta, cell_of, grade, is_bounce, prior, stood_by_rank
from contracts.structs import JoinedSearch, JoinedSlot, LeftOutSlot, TrainingSearch, TrainingSlot
from contracts.telemetry import SlotReason

TOP: Final = 1


def training_search(
    search: JoinedSearch,
    *,
    theta: Theta = prior,
    excluded: Mapping[str, SlotReason] | None = None,
    cap: float = 1.0,
) -> TrainingSearch | None:
    """Return what may be learned from a list that no filter keeps out; None if that is nothing.

    Advertisements, pinned and sold-out slots stand where they stand for other reasons than their rank. A bounce says
    nothing, and so does a product that was also engaged with in a slot that does not count. If the list has view
    events, what they do not name was not seen. All of it holds whichever product was clicked.

    Args:
        search: the list.
        theta: propensities; the one in force when the list was shown is used.
        excluded: products that what is known of the shopper's other lists leaves out.
        cap: weight of the whole list.
    """
    if not is_visible(search.query):
        return None
    excluded = excluded or {}
    cell, at_ms = cell_of(search), search.search_time
    top, version = theta(cell, TOP, at_ms)
    reported = any(slot.visible_ms is not None for slot in search.slots)
    tainted = {slot.product_id for slot in search.slots if is_bounce(slot) or (grade(slot) and not stood_by_rank(slot))}
    counted: dict[str, TrainingSlot] = {}
    left_out: list[LeftOutSlot] = []
    for slot in search.slots:
        product_id = slot.product_id
        reason = _reason(slot, reported=reported, tainted=tainted) or excluded.get(product_id)
        if reason is not None:
            left_out.append(LeftOutSlot(product_id=product_id, position=slot.position, reason=reason.value))
            continue
        examined, _ = theta(cell, slot.position, at_ms)
        counted[product_id] = _merged(counted.get(product_id), slot, showing=min(1.0, examined / top))
    if not counted:
        return None
    return TrainingSearch(
        search_id=search.search_id,
        search_time=search.search_time,
        closed_at=search.closed_at,
        query=search.query,
        locale=search.locale,
        ranking=search.ranking,
        slots=tuple(counted.values()),
        left_out=tuple(left_out),
        cap=cap,
        propensity_version=version,
    )


def _reason(slot: JoinedSlot, *, reported: bool, tainted: set[str]) -> SlotReason | None:
    """Why a slot does not count, by what its own list says."""
    if not stood_by_rank(slot):
        return SlotReason.PLACED if slot.in_stock else SlotReason.SOLD_OUT
    if slot.product_id in tainted:
        return SlotReason.BOUNCED if is_bounce(slot) else SlotReason.ENGAGED_ELSEWHERE
    if reported and not slot.visible_ms and grade(slot) is Grade.SKIP:
        return SlotReason.UNSEEN
    return None


def _merged(known: TrainingSlot | None, slot: JoinedSlot, *, showing: float) -> TrainingSlot:
    """Join a slot to what is known of its product, which may stand twice: its best look and its best outcome."""
    own = grade(slot)
    value = VALUE.get(own, 0.0)
    times = [slot.click_time] if own and slot.click_time is not None else []
    position = slot.position
    if known is not None:
        position, showing, value = known.position, max(known.showing, showing), max(known.value, value)
        times += [known.click_time] if known.click_time is not None else []
    return TrainingSlot(
        product_id=slot.product_id,
        position=position,
        showing=showing,
        value=value,
        click_time=min(times, default=None),
    )

"""What a list says to the learner: of each product that counts, how likely it was looked at, and what was chosen.

Lists without a click count too: the learner divides clicks by showings. What does not count is named with its reason,
so that nobody has to guess why a product of a list has not moved.
"""

from collections.abc import Mapping
from typing import Final

from contracts.base import is_visible
from contracts.outcomes import VALUE, Theta, cell_of, exchanged_positions, grade, is_bounce, prior, stood_by_rank
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
    slots, grades = search.slots, [grade(slot) for slot in search.slots]
    engaged = [slot for slot, own in zip(slots, grades, strict=True) if own]
    tainted = {slot.product_id for slot in engaged if is_bounce(slot) or not stood_by_rank(slot)}
    reported = any(slot.visible_ms is not None for slot in slots)
    counted: dict[str, TrainingSlot] = {}
    left_out: list[LeftOutSlot] = []
    for slot, own in zip(slots, grades, strict=True):
        product_id, position = slot.product_id, slot.position
        reason = _reason(slot, tainted, unseen=reported and not own and not slot.visible_ms) or excluded.get(product_id)
        if reason is not None:
            left_out.append(LeftOutSlot(product_id=product_id, position=position, reason=reason.value))
            continue
        told = TrainingSlot(
            product_id=product_id,
            position=position,
            showing=min(1.0, theta(cell, position, at_ms)[0] / top),
            value=VALUE[own] if own else 0.0,
            click_time=slot.click_time if own else None,
        )
        known = counted.get(product_id)
        counted[product_id] = told if known is None else _merged(known, told)
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
        exchanged=exchanged_positions(search),
        propensity_version=version,
    )


def _reason(slot: JoinedSlot, tainted: set[str], *, unseen: bool) -> SlotReason | None:
    """Why a slot does not count, by what its own list says."""
    if not stood_by_rank(slot):
        return SlotReason.PLACED if slot.in_stock else SlotReason.SOLD_OUT
    if slot.product_id in tainted:
        return SlotReason.BOUNCED if is_bounce(slot) else SlotReason.ENGAGED_ELSEWHERE
    return SlotReason.UNSEEN if unseen else None


def _merged(one: TrainingSlot, other: TrainingSlot) -> TrainingSlot:
    """Join two slots of a product that stands twice: the higher place, the better look, the better outcome."""
    times = [slot.click_time for slot in (one, other) if slot.click_time is not None]
    return TrainingSlot(
        product_id=one.product_id,
        position=one.position,
        showing=max(one.showing, other.showing),
        value=max(one.value, other.value),
        click_time=min(times, default=None),
    )

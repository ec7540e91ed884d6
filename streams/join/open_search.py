"""One search while its window is open, and the joined search that it becomes.

Whatever the order in which events arrive, the same events give the same bytes: every field is a sum, a minimum, a
maximum or a sorted list.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from contracts.joined import MAX_ORIGINS
from contracts.structs import Cart, Click, Dwell, Impression, Purchase, PurchaseItem, ShopEvent, Slot, View
from contracts.topics import SEARCH_EVENTS
from streams.agents.spec import LogRecord

if TYPE_CHECKING:
    from streams.join.strays import Stray

_FROM_IMPRESSION: Final = (
    "session_id", "client_id", "user_id", "locale", "device", "surface", "total_results",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Held:
    """An event that waits for its search to close."""

    event: ShopEvent
    time_ms: int
    record: LogRecord

    def precedes(self, other: "Held") -> bool:
        """Return whether this one is kept where both carry one event id: a choice that no order of arrival changes."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, bytes]:
        """Return what decides between two events of one id."""
        return self.event.event_time, msgspec.json.encode(self.event)


@dataclass(slots=True, eq=False)
class OpenSearch:
    """The events of one search.

    Args:
        search_id: with `search_time`, its identity.
        search_time: the impression's event time.
        deadline: it closes when the watermark has passed this.
        first_offset: oldest record that a restart needs to rebuild it.
        watermark_ms: the watermark before that record.
    """

    search_id: str
    search_time: int
    deadline: int
    first_offset: int
    watermark_ms: int
    events: dict[str, Held] = field(default_factory=dict)
    impressions: int = 0
    strays: "list[Stray]" = field(default_factory=list)
    """Waiting events that this search took."""
    released: bool = False

    def add(self, held: Held) -> bool:
        """Add an event; False where its id is already here: one of the two is a duplicate."""
        known = self.events.setdefault(held.event.event_id, held)
        if known is held:
            self.impressions += isinstance(held.event, Impression)
            return True
        if held.precedes(known):
            self.impressions += isinstance(held.event, Impression) - isinstance(known.event, Impression)
            self.events[held.event.event_id] = held
        return False

    def close(self) -> "tuple[Held, list[Held]]":
        """Return the impression that counts, which there must be, and the events of other kinds."""
        held = self.events.values()
        impressions = [one for one in held if isinstance(one.event, Impression)]
        kept = min(impressions, key=lambda one: (one.event.event_time, one.event.event_id))
        return kept, [one for one in held if not isinstance(one.event, Impression)]


def search_of(event: ShopEvent) -> tuple[str | None, int | None]:
    """Return the search an event belongs to, as (search_id, search_time); what it does not name is None."""
    if isinstance(event, Impression):
        return event.search_id, event.event_time
    if isinstance(event, Purchase):
        return event.items[0].search_id, event.items[0].search_time
    return event.search_id, event.search_time


def joined_search(search: OpenSearch, shown: Held, happened: Iterable[Held], *, partition: int) -> tuple[bytes, bytes]:
    """Return the key and the value of a closed search's message.

    Args:
        search: the search that closed.
        shown: the impression that counts.
        happened: every other event of the search.
        partition: where its records stand.
    """
    impression = shown.event
    assert isinstance(impression, Impression)  # noqa: S101 - narrows the type; `close` returns nothing else
    events = [shown, *happened]
    slots = {slot.product_id: _outcome_of(slot) for slot in impression.slots}
    unlisted = sum(not _apply(one, slots) for one in events[1:])
    message = {
        "schema_version": 1,
        "type": "joined_search",
        "search_id": search.search_id,
        "search_time": search.search_time,
        "closed_at": search.deadline,
        **_given(impression, _FROM_IMPRESSION),
        **_consent([one.event for one in events]),
        "synthetic": any(one.event.synthetic for one in events),
        "query": impression.query,
        "layout": impression.layout,
        "columns": impression.columns,
        "page": impression.page,
        "ranking": _ranking(impression),
        "slots": [_set_fields(slot) for slot in sorted(slots.values(), key=_position)],
        "unlisted": unlisted,
        "origins": _origins(events, partition),
    }
    return (impression.session_id or search.search_id).encode(), orjson.dumps(message)


def _outcome_of(slot: Slot) -> dict[str, Any]:
    """Return a served slot with nothing having happened to it; every field has its place, so bytes do not vary."""
    return {
        "product_id": slot.product_id,
        "position": slot.position,
        "sponsored": slot.sponsored,
        "pinned": slot.pinned,
        "in_stock": slot.in_stock,
        "price": slot.price,
        "score": slot.score,
        "parent_id": slot.parent_id,
        "visible_ms": None,
        "clicked": False,
        "click_time": None,
        "dwell_ms": None,
        "cart_quantity": 0,
        "purchase_quantity": 0,
    }


def _apply(held: Held, slots: dict[str, dict[str, Any]]) -> bool:
    """Note an event on the slots it names; False where it names a product that the list does not show."""
    event = held.event
    if isinstance(event, View):
        listed = [_apply_max(slots.get(seen.product_id), "visible_ms", seen.visible_ms) for seen in event.slots]
        return all(listed)
    named: Click | Dwell | Cart | PurchaseItem = event.items[0] if isinstance(event, Purchase) else event  # type: ignore[assignment] # an impression never comes here
    slot = slots.get(named.product_id)
    if slot is None:
        return False
    if isinstance(event, Click):
        slot["clicked"] = True
        first = slot["click_time"]
        slot["click_time"] = held.time_ms if first is None else min(first, held.time_ms)
    elif isinstance(event, Dwell):
        _apply_max(slot, "dwell_ms", event.dwell_ms)
    elif isinstance(event, Cart):
        slot["cart_quantity"] += event.quantity
    elif isinstance(event, Purchase):
        slot["purchase_quantity"] += event.items[0].quantity
    return True


def _apply_max(slot: dict[str, Any] | None, name: str, value: int) -> bool:
    """Keep the largest value seen; False where there is no such slot."""
    if slot is None:
        return False
    slot[name] = max(value, slot[name] or 0)
    return True


def _position(slot: dict[str, Any]) -> int:
    """Return where a slot stood in the list."""
    position: int = slot["position"]
    return position


def _set_fields(slot: dict[str, Any]) -> dict[str, Any]:
    """Return a slot without the fields that are not set, as the wire leaves them out."""
    return {name: value for name, value in slot.items() if value is not None}


def _given(source: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields that are set."""
    return {name: value for name in names if (value := getattr(source, name)) is not None}


def _consent(events: list[ShopEvent]) -> dict[str, str]:
    """Return the impression's consent, unless any event of the search says that it is denied."""
    if any(event.consent == "denied" for event in events):
        return {"consent": "denied"}
    return {} if events[0].consent is None else {"consent": events[0].consent}


def _ranking(impression: Impression) -> dict[str, Any]:
    """Return who ranked the list."""
    ranking = impression.ranking
    return {
        "ranker": ranking.ranker,
        **_given(ranking, ("query_release", "product_release")),
        "arm": ranking.arm,
        "exploration": {"policy": ranking.exploration.policy, "seed": ranking.exploration.seed},
    }


def _origins(events: list[Held], partition: int) -> list[dict[str, Any]]:
    """Return where the records stand, in the log's order."""
    offsets = sorted(one.record.offset for one in events)[:MAX_ORIGINS]
    return [{"topic": SEARCH_EVENTS, "partition": partition, "offset": offset} for offset in offsets]

"""What a closed search becomes: one record with its list and, per slot, what the shopper saw and did."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, cast

import msgspec
import orjson

from contracts.joined import MAX_JOINED_BYTES, MAX_LIST_SLOTS, MAX_ORIGINS
from contracts.structs import Exploration, JoinedSearch, Origin, Ranking, encode
from contracts.topics import SEARCH_EVENTS
from streams.join.open_search import HeldEvent, OpenSearch, ShownList

_LINE_NUMBER: Final = re.compile(r"#\d+$")
_position: Final = attrgetter("position")


class ListedSlot(msgspec.Struct, gc=False, omit_defaults=True):
    """A slot of a joined search: as it was served, and what happened to it.

    The fields of `contracts.joined.JoinedSlot`; a default that is made by a factory is written, None is not.
    """

    product_id: str
    position: int
    sponsored: bool
    pinned: bool
    in_stock: bool
    price: float | None = None
    score: float | None = None
    parent_id: str | None = None
    team: str | None = None
    visible_ms: int | None = None
    clicked: bool = msgspec.field(default_factory=bool)
    click_time: int | None = None
    dwell_ms: int | None = None
    cart_quantity: int = msgspec.field(default_factory=int)
    purchase_quantity: int = msgspec.field(default_factory=int)
    value: float | None = None
    currency: str | None = None


class ClosedSearch(msgspec.Struct, gc=False):
    """A closed search as it is written, and what became of its events."""

    key: bytes
    value: bytes
    joined: int
    repeated: int


def joined_search(search: OpenSearch, *, partition: int, most_slots: int = MAX_LIST_SLOTS) -> ClosedSearch:
    """Return what a search becomes that showed a list.

    Args:
        search: the search that closed.
        partition: where its records are.
        most_slots: how many are kept, the upper ones; fewer if the record would be larger than its topics take.
    """
    pages, slots = _merged(search.impressions())
    slots = slots[:most_slots]
    events = _without_repeated_lines(search.events or {})
    shown = pages[0]
    ranker, query_release, product_release, arm, policy, seed, sort, no_good_match = shown.ranking
    denied = synthetic = False
    offsets: list[int] = []
    held: list[ShownList | HeldEvent] = [*pages, *events]
    for one in held:
        denied, synthetic = denied or one.denied, synthetic or one.synthetic
        offsets.append(one.offset)
    offsets.sort()
    message = JoinedSearch(
        search_id=search.search_id,
        search_time=search.search_time,
        closed_at=search.deadline,
        session_id=shown.session_id,
        client_id=None if denied or shown.client_id is None else shown.client_id.hex(),
        user_id=None if denied or shown.user_id is None else shown.user_id.hex(),
        locale=shown.locale,
        device=shown.device,
        surface=shown.surface,
        total_results=shown.total_results,
        consent="denied" if denied else shown.consent,
        synthetic=synthetic,
        query=shown.query,
        layout=shown.layout,
        columns=shown.columns,
        page=shown.page,
        first_page_ends=max((slot[1] for slot in shown.slots), default=None) if len(pages) > 1 else None,
        ranking=Ranking(
            ranker=ranker,
            query_release=query_release,
            product_release=product_release,
            arm=arm,
            exploration=Exploration(policy=policy, seed=seed),
            sort=sort,
            no_good_match=no_good_match,
        ),
        unlisted=_note_all(events, slots),
        slots=cast("Any", slots),
        origins=tuple(
            [Origin(topic=SEARCH_EVENTS, partition=partition, offset=offset) for offset in offsets[:MAX_ORIGINS]]
        ),
    )
    value = encode(message, orjson.loads(shown.unknown) if shown.unknown else None)
    if slots and len(value) > MAX_JOINED_BYTES:
        of_slots = len(encode(slots))
        fewer = min(len(slots) - 1, len(slots) * max(0, MAX_JOINED_BYTES - len(value) + of_slots) // of_slots)
        return joined_search(search, partition=partition, most_slots=fewer)
    joined = len(pages) + len(events)
    return ClosedSearch((shown.session_id or search.search_id).encode(), value, joined, search.size - joined)


def _merged(impressions: list[ShownList]) -> tuple[list[ShownList], list[ListedSlot]]:
    """Return the impressions that are pages of one list, the first one first, and the slots of all, by position.

    What shows nothing new is a repeat, and so is what shows another product at a position that is taken.
    """
    if len(impressions) == 1:
        return impressions, _listed(impressions[0])
    pages: list[ShownList] = []
    listed: dict[int, ListedSlot] = {}
    for one in sorted(impressions, key=_first_position):
        slots = {slot.position: slot for slot in _listed(one)}
        taken = slots.keys() & listed.keys()
        agrees = all(slots[position].product_id == listed[position].product_id for position in taken)
        if not pages or (agrees and len(taken) < len(slots)):
            pages.append(one)
            listed = {**slots, **listed}
    by_position = sorted(listed.values(), key=_position)
    return pages, by_position if len(pages) == 1 else _organic_once(by_position)


def _listed(shown: ShownList) -> list[ListedSlot]:
    slots = [ListedSlot(*slot) for slot in shown.slots]
    slots.sort(key=_position)
    return slots


def _first_position(shown: ShownList) -> tuple[float, str]:
    return min((slot[1] for slot in shown.slots), default=math.inf), shown.event_id


def _organic_once(slots: Iterable[ListedSlot]) -> list[ListedSlot]:
    """Return slots without products that stand further up and are not sponsored: a later page listed them again."""
    organic: set[str] = set()
    kept: list[ListedSlot] = []
    for slot in slots:
        if slot.sponsored or slot.product_id not in organic:
            kept.append(slot)
        if not slot.sponsored:
            organic.add(slot.product_id)
    return kept


def _without_repeated_lines(events: Mapping[str, HeldEvent]) -> list[HeldEvent]:
    """Return events without the lines of an order that came once more as another event.

    The lines of one event are numbered behind its id: an order may have two lines of one product.
    """
    if len(events) < 2:
        return list(events.values())
    lines = [(event.event_time, event_id) for event_id, event in events.items() if event.order_id is not None]
    if len(lines) < 2:
        return list(events.values())
    counted: dict[tuple[str | None, str], str] = {}
    repeated: set[str] = set()
    for _, event_id in sorted(lines):
        line, order_event = events[event_id], _LINE_NUMBER.sub("", event_id)
        if counted.setdefault((line.order_id, line.product_id), order_event) != order_event:
            repeated.add(event_id)
    return [event for event_id, event in events.items() if event_id not in repeated]


def _note_all(events: list[HeldEvent], slots: list[ListedSlot]) -> int:
    """Note events on the slots that they name; return how many name a product that the list does not show.

    A product may stand twice, sponsored and organic. The position decides which one is meant; without it, the one that
    was clicked, else the organic one.
    """
    if not events:
        return 0
    by_product = {slot.product_id: slot for slot in slots}
    bought: dict[int, list[HeldEvent]] = {}
    if len(by_product) == len(slots):
        unlisted = [_note(event, {}, by_product, bought) for event in events].count(False)
    else:
        by_place: dict[tuple[str, int | None], ListedSlot] = {(slot.product_id, slot.position): slot for slot in slots}
        unlisted = 0
        for is_click in (True, False):
            slots.sort(key=lambda slot: (slot.clicked, not slot.sponsored, -slot.position))
            by_product = {slot.product_id: slot for slot in slots}
            unlisted += sum(
                not _note(event, by_place, by_product, bought)
                for event in events
                if (event.kind == "click") == is_click
            )
        slots.sort(key=_position)
    if bought:
        for slot in slots:
            slot.value, slot.currency = _order_value(bought.get(slot.position, ()))
    return unlisted


def _order_value(lines: Sequence[HeldEvent]) -> tuple[float | None, str | None]:
    """What lines of orders are worth together and in which currency; the sum is the same in any order."""
    prices = [(line.price, line.amount) for line in lines if line.price is not None]
    currencies = {line.currency for line in lines}
    if not lines or len(prices) < len(lines) or len(currencies) > 1:
        return None, None
    return math.fsum(price * amount for price, amount in prices), currencies.pop()


def _note(
    event: HeldEvent,
    by_place: Mapping[tuple[str, int | None], ListedSlot],
    by_product: Mapping[str, ListedSlot],
    bought: dict[int, list[HeldEvent]],
) -> bool:
    """Note one event: the first click, the longest view and stay, sums of quantities; lines of orders by position.

    Returns:
        Whether every product that it names is listed.
    """
    listed = True
    kind = event.kind
    for product_id, position, amount in event.slots():
        slot = by_product.get(product_id)
        if by_place:
            slot = by_place.get((product_id, position), slot)
        if slot is None:
            listed = False
        elif kind == "view":
            if slot.visible_ms is None or amount > slot.visible_ms:
                slot.visible_ms = amount
        elif kind == "click":
            slot.clicked = True
            if slot.click_time is None or amount < slot.click_time:
                slot.click_time = amount
        elif kind == "dwell":
            if slot.dwell_ms is None or amount > slot.dwell_ms:
                slot.dwell_ms = amount
        elif kind == "cart":
            slot.cart_quantity += amount
        else:
            slot.purchase_quantity += amount
            bought.setdefault(slot.position, []).append(event)
    return listed

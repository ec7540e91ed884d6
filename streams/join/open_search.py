"""One search while its window is open, and all the open searches of a partition.

What is kept of an event is what the joined search needs of it, in a form that the garbage collector does not walk: half
a million searches may be open.
"""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final, Literal, Self, get_args

import msgspec
import orjson

from contracts import events
from contracts.errors import MalformedMessage
from contracts.events import protected_id
from contracts.joined import passed_on, without_addresses
from contracts.structs import Impression, ShopEvent
from contracts.wire import is_unicode, parse_leniently
from streams.agents.spec import LogRecord

_PERSONS: Final = ("client_id", "user_id")
_FORMS: Final = {get_args(form.model_fields["type"].annotation)[0]: form for form in get_args(events.ShopEvent)}
_pack: Final = msgspec.msgpack.Encoder().encode
_fields_of: Final[Callable[[Any], tuple[Any, ...]]] = msgspec.structs.astuple
_unpack_seen: Final = msgspec.msgpack.Decoder(list[tuple[str, int | None, int]]).decode


class KeptRecord(msgspec.Struct, gc=False, array_like=True):
    """A record of which it is not known yet whether it has to be set aside."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, record: LogRecord) -> Self:
        """Return what is needed of a client's record."""
        return cls(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))


def protected_record(record: LogRecord, person_key: bytes | None) -> LogRecord:
    """Return a record as it may stand on a topic of ours: ids of persons are replaced, or left out without consent.

    Fields beyond the form of its type that may hold an address are left out. Of what is no JSON object nobody can say
    whom it names: neither value nor key stays.

    Args:
        record: as it came.
        person_key: replaces ids; without it they are left out.
    """
    sent = _json_object(record.value)
    if sent is None:
        return KeptRecord(record.offset, record.timestamp, None, None, ())
    kind, may_stay = sent.get("type"), sent.get("consent") != "denied"
    form = _FORMS.get(kind, events.Envelope) if isinstance(kind, str) else events.Envelope
    key, fields = record.key, without_addresses(sent, form, [])
    for name in _PERSONS:
        given = fields.get(name)
        if given is None:
            continue
        is_id = isinstance(given, str) and is_unicode(given)
        stand_in = protected_id(given, person_key) if is_id and may_stay else None
        if not is_id or key == given.encode():
            key = (stand_in or "").encode()
        fields[name] = stand_in
        if stand_in is None:
            del fields[name]
    value = _json(fields)
    return KeptRecord(record.offset, record.timestamp, None if value is None else key, value, tuple(record.headers))


def _json_object(value: bytes | None) -> dict[str, Any] | None:
    try:
        sent = parse_leniently(value or b"")
    except MalformedMessage:
        return None
    return sent if isinstance(sent, dict) else None


def _json(fields: dict[str, Any]) -> bytes | None:
    """Write an object again; None if it has a number beyond the range of floats."""
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        with suppress(ValueError):
            return json.dumps(fields, allow_nan=False).encode()  # half a surrogate pair, escaped as it came
    return None


class HeldEvent(msgspec.Struct, gc=False, array_like=True):
    """What is kept of an event other than an impression.

    Args:
        kind: its type.
        event_time: when it happened, by the sender's clock.
        time_ms: when it happened, as the join counts.
        product_id: the product that it names; empty if it is a view.
        position: where the product stood, if it says so.
        amount: what it adds to its slot: milliseconds or a quantity.
        seen: of a view, packed: (product_id, position, visible_ms) of each slot.
        order_id: of a purchase.
        denied: the shopper did not agree to be learned from.
        synthetic: no person made it.
        offset: of its record.
        record: kept while its search has no list, because without one it is an orphan.
        price: of a purchase, for one piece.
        currency: of a purchase.
    """

    kind: str
    event_time: int
    time_ms: int
    product_id: str
    position: int | None
    amount: int
    seen: bytes
    order_id: str | None
    denied: bool
    synthetic: bool
    offset: int
    record: KeptRecord | None = None
    price: float | None = None
    currency: str | None = None

    def slots(self) -> Iterable[tuple[str, int | None, int]]:
        """Return the slots that it names: product, position if it says so, amount."""
        return _unpack_seen(self.seen) if self.seen else ((self.product_id, self.position, self.amount),)

    def precedes(self, other: Self) -> bool:
        """Whether this one is kept of two events with one id: a choice that no order of arrival changes."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, bytes]:
        return self.event_time, _pack(msgspec.structs.replace(self, offset=0, record=None))


def held_event(event: ShopEvent, time_ms: int, offset: int) -> HeldEvent:
    """Return what is kept of an event other than an impression."""
    position, seen, order_id, price, currency = None, b"", None, None, None
    if event.type == "view":
        product_id, amount, seen = "", 0, _pack(list(map(_fields_of, event.slots)))
    elif event.type == "click":
        product_id, position, amount = event.product_id, event.position, time_ms
    elif event.type == "dwell":
        product_id, amount = event.product_id, event.dwell_ms
    elif event.type == "cart":
        product_id, amount = event.product_id, event.quantity
    elif event.type == "purchase" and len(event.items) == 1:
        line = event.items[0]
        product_id, amount, order_id, price, currency = (
            line.product_id, line.quantity, event.order_id, line.price, event.currency,
        )  # fmt: skip
    else:
        raise TypeError(f"{event.event_id} does not follow a list")
    event_time, denied = event.event_time, event.consent == "denied"
    held = HeldEvent(
        event.type, event_time, time_ms, product_id, position, amount, seen, order_id, denied, event.synthetic, offset
    )
    held.price, held.currency = price, currency
    return held


class ShownList(msgspec.Struct, gc=False, array_like=True):
    """What is kept of an impression, packed; its ids of persons are protected.

    Args:
        ranking: ranker, query release, product release, arm, exploration policy and seed, sort, no good match.
        slots: each as the fields of a served slot, in order.
        unknown: what the shop adds and may be passed on, as a JSON object; empty if it adds nothing.
        offset: of its record; stands last, so that of two with one id the content decides which is kept.
    """

    event_id: str
    session_id: str | None
    client_id: bytes | None
    user_id: bytes | None
    locale: str | None
    device: str | None
    surface: str | None
    total_results: int | None
    consent: Literal["granted", "denied", "unknown"] | None
    synthetic: bool
    query: str
    layout: str
    columns: int
    page: int
    ranking: tuple[str, int | None, int | None, str, str, int, str | None, bool | None]
    slots: list[tuple[Any, ...]]
    unknown: bytes
    offset: int

    @property
    def denied(self) -> bool:
        """Whether the shopper did not agree to be learned from."""
        return self.consent == "denied"


_unpack_list: Final = msgspec.msgpack.Decoder(ShownList).decode


def packed_list(event: Impression, offset: int, *, person_key: bytes | None) -> bytes:
    """Return what is kept of an impression.

    Args:
        event: the impression.
        offset: of its record.
        person_key: replaces client and user ids; without it they are left out.
    """
    may_name = event.consent != "denied"
    client_id = protected_id(event.client_id, person_key) if may_name and event.client_id is not None else None
    user_id = protected_id(event.user_id, person_key) if may_name and event.user_id is not None else None
    ranking, exploration = event.ranking, event.ranking.exploration
    packed = _pack(
        ShownList(
            event.event_id,
            event.session_id,
            None if client_id is None else bytes.fromhex(client_id),
            None if user_id is None else bytes.fromhex(user_id),
            event.locale,
            event.device,
            event.surface,
            event.total_results,
            event.consent,
            event.synthetic,
            event.query,
            event.layout,
            event.columns,
            event.page,
            (
                ranking.ranker,
                ranking.query_release,
                ranking.product_release,
                ranking.arm,
                exploration.policy,
                exploration.seed,
                ranking.sort,
                ranking.no_good_match,
            ),
            list(map(_fields_of, event.slots)),
            orjson.dumps(passed_on(event.model_extra)) if event.model_extra else b"",
            offset,
        )
    )
    return bytes(
        memoryview(packed)
    )  # a copy, because what the encoder cuts off at the end of its buffer stays allocated


class OpenSearch(msgspec.Struct, gc=False, order=True, array_like=True):
    """The events of one search. Searches are in the order in which they close.

    Args:
        deadline: it closes when the watermark has passed this.
        search_id: with `search_time`, its identity.
        window_ms: from `search_time` to the deadline.
        shown: the first impression that came, packed.
        pages: further ones by their event ids.
        events: what else came, by type and event id.
    """

    deadline: int
    search_id: str
    window_ms: int
    shown: bytes = b""
    pages: dict[str, bytes] | None = None
    events: dict[str, HeldEvent] | None = None

    @property
    def search_time(self) -> int:
        """The impression's event time."""
        return self.deadline - self.window_ms

    @property
    def size(self) -> int:
        """How many events it holds."""
        return bool(self.shown) + len(self.pages or ()) + len(self.events or ())

    def show(self, event_id: str, packed: bytes) -> bool:
        """Add an impression; False if its id is here: one of the two is a duplicate."""
        if not self.shown:
            self.shown = packed
            for event in (self.events or {}).values():
                event.record = None
            return True
        if _unpack_list(self.shown).event_id == event_id:
            self.shown = min(self.shown, packed)
            return False
        self.pages = self.pages or {}
        known = self.pages.get(event_id)
        self.pages[event_id] = packed if known is None else min(known, packed)
        return known is None

    def add(self, event_id: str, event: HeldEvent) -> bool:
        """Add an event that is no impression; False if its type and id are here: one of the two is a duplicate."""
        if self.events is None:
            self.events = {event_id: event}
            return True
        known = self.events.setdefault(event_id, event)
        if known is event:
            return True
        if event.precedes(known):
            self.events[event_id] = event
        return False

    def products(self) -> set[str]:
        """Return the products that were shown."""
        return {slot[0] for one in self.impressions() for slot in one.slots}

    def first_offset(self) -> int:
        """Return where its oldest event is."""
        events = self.events or {}
        return min([one.offset for one in self.impressions()] + [event.offset for event in events.values()])

    def records(self) -> list[KeptRecord]:
        """Return the records of a search that never showed a list, in the log's order."""
        kept = [event.record for event in (self.events or {}).values() if event.record is not None]
        return sorted(kept, key=attrgetter("offset"))

    def impressions(self) -> list[ShownList]:
        """Return every impression."""
        return [_unpack_list(self.shown), *map(_unpack_list, (self.pages or {}).values())]


class OpenSearches:
    """The open searches of one partition.

    Args:
        searches: in any order.
    """

    def __init__(self, searches: Iterable[OpenSearch] = ()) -> None:
        self._first: dict[str, OpenSearch] = {}
        self._further: dict[str, dict[int, OpenSearch]] = {}
        """Lists shown under an id that another open list has, by their time: most ids have one list."""
        self._by_deadline: list[OpenSearch] = []
        for search in searches:
            self.add(search)

    def __len__(self) -> int:
        return len(self._by_deadline)

    def __iter__(self) -> Iterator[OpenSearch]:
        return iter(self._by_deadline)

    def find(self, search_id: str, search_time: int) -> OpenSearch | None:
        """Return a search by its identity."""
        search = self._first.get(search_id)
        if search is not None and search.search_time == search_time:
            return search
        further = self._further.get(search_id)
        return None if further is None else further.get(search_time)

    def add(self, search: OpenSearch) -> None:
        """Take a search that was just opened."""
        if self._first.setdefault(search.search_id, search) is not search:
            self._further.setdefault(search.search_id, {})[search.search_time] = search
        heapq.heappush(self._by_deadline, search)

    def next_deadline(self) -> float:
        """Return the deadline of the search that closes next; infinite if none is open."""
        return self._by_deadline[0].deadline if self._by_deadline else math.inf

    def count(self, search_id: str) -> int:
        """How many open searches an id has."""
        return (search_id in self._first) + len(self._further.get(search_id, ()))

    def of(self, search_id: str) -> Iterator[OpenSearch]:
        """Yield the open searches of an id."""
        if search_id in self._first:
            yield self._first[search_id]
        yield from self._further.get(search_id, {}).values()

    def pop_due(self, watermark_ms: int) -> OpenSearch | None:
        """Remove and return the next search whose deadline the watermark has passed."""
        if not self._by_deadline or self._by_deadline[0].deadline >= watermark_ms:
            return None
        search = heapq.heappop(self._by_deadline)
        if self._first.get(search.search_id) is search:
            del self._first[search.search_id]
        else:
            further = self._further[search.search_id]
            del further[search.search_time]
            if not further:
                del self._further[search.search_id]
        return search

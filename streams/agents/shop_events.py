"""The records of `search-events` as the join's hot path reads them: the contract once more, in a quicker form.

`contracts/events.py` decides what is valid. These structs say the same to msgspec, which is several times quicker than
pydantic; what msgspec refuses goes to the contract, which either names the reason or has the last word and accepts it.
A test holds that both accept and refuse the same records. Both read the output of the same JSON parser.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from contracts.base import YEAR_2000_MS, YEAR_2100_MS
from contracts.events import MAX_SLOTS, SEARCH_RECORD
from contracts.wire import parse, validate

Time = Annotated[int, Meta(ge=YEAR_2000_MS, le=YEAR_2100_MS)]
Id = Annotated[str, Meta(min_length=1, max_length=100)]
ProductId = Annotated[str, Meta(min_length=1, max_length=256)]
Query = Annotated[str, Meta(max_length=1000)]
Label = Annotated[str, Meta(max_length=100)]
Money = Annotated[float, Meta(ge=0, le=1e12)]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
DurationMs = Annotated[int, Meta(ge=0, le=86_400_000)]
Position = Annotated[int, Meta(ge=1, le=10_000)]
Quantity = Annotated[int, Meta(ge=1, le=100_000)]
Consent = Literal["granted", "denied", "unknown"]


class Part(msgspec.Struct, gc=False):
    """A piece of a record; `gc=False` because no cycle can pass through it."""


class Envelope(Part, kw_only=True, tag_field="type"):
    """Fields of every shop event."""

    event_id: Id
    event_time: Time
    schema_version: Literal[1] = 1
    session_id: Id | None = None
    client_id: Id | None = None
    sent_at: Time | None = None
    received_at: Time | None = None
    user_id: Id | None = None
    locale: Label | None = None
    device: Label | None = None
    surface: Label | None = None
    consent: Consent | None = None
    source: Label | None = None
    synthetic: bool = False


class Slot(Part, kw_only=True):
    """One product of a served list."""

    product_id: ProductId
    position: Position
    sponsored: bool = False
    pinned: bool = False
    in_stock: bool = True
    price: Money | None = None
    score: float | None = None
    parent_id: ProductId | None = None


class Exploration(Part, kw_only=True):
    """How the list was perturbed on purpose."""

    policy: Label = "none"
    seed: Count = 0


class Ranking(Part, kw_only=True):
    """Who ranked the list."""

    ranker: Label = "millrace"
    query_release: Count | None = None
    product_release: Count | None = None
    arm: Label = "live"
    exploration: Exploration = msgspec.field(default_factory=Exploration)


class Impression(Envelope, kw_only=True, tag="impression"):
    """One ranked list as it was served."""

    search_id: Id
    query: Query
    slots: Annotated[tuple[Slot, ...], Meta(max_length=MAX_SLOTS)]
    layout: Label = "list"
    columns: Annotated[int, Meta(ge=1, le=100)] = 1
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1
    total_results: Count | None = None
    ranking: Ranking = msgspec.field(default_factory=Ranking)


class Behaviour(Envelope, kw_only=True):
    """An event that belongs to one search."""

    search_id: Id
    search_time: Time | None = None


class Viewed(Part, kw_only=True):
    """How long one slot was visible."""

    product_id: ProductId
    visible_ms: DurationMs
    position: Position | None = None


class View(Behaviour, kw_only=True, tag="view"):
    """Slots that the shopper's viewport showed."""

    slots: Annotated[tuple[Viewed, ...], Meta(max_length=MAX_SLOTS)]


class Click(Behaviour, kw_only=True, tag="click"):
    """A click on one slot."""

    product_id: ProductId
    position: Position | None = None


class Dwell(Behaviour, kw_only=True, tag="dwell"):
    """How long the shopper stayed after a click."""

    product_id: ProductId
    dwell_ms: DurationMs
    click_id: Id | None = None


class Cart(Envelope, kw_only=True, tag="cart"):
    """A product put into the cart."""

    product_id: ProductId
    search_id: Id | None = None
    search_time: Time | None = None
    quantity: Quantity = 1
    price: Money | None = None
    currency: Label | None = None


class PurchaseItem(Part, kw_only=True):
    """One line of an order."""

    product_id: ProductId
    quantity: Quantity = 1
    price: Money | None = None
    search_id: Id | None = None
    search_time: Time | None = None


class Purchase(Envelope, kw_only=True, tag="purchase"):
    """An order line."""

    order_id: Id
    items: Annotated[tuple[PurchaseItem, ...], Meta(min_length=1, max_length=MAX_SLOTS)]
    currency: Label | None = None


class Tick(Part, kw_only=True, tag="tick", tag_field="type"):
    """Moves the event time of an idle partition."""

    event_time: Time
    schema_version: Literal[1] = 1


ShopEvent = Impression | View | Click | Dwell | Cart | Purchase
SearchRecord = ShopEvent | Tick
_FORM: Final[Any] = SearchRecord


def decode(value: bytes | None) -> SearchRecord:
    """Return the record in `value`.

    Raises:
        MalformedMessage: it is not JSON or breaks the contract.
        UnsupportedSchema: its `schema_version` is not known here.

    >>> decode(b'{"type":"tick","event_time":1795196006756}').event_time
    1795196006756
    """
    parsed = parse(value or b"")
    try:
        record: SearchRecord = msgspec.convert(parsed, _FORM)
    except msgspec.ValidationError:
        return _by_contract(parsed)
    return record if _is_consistent(record) else _by_contract(parsed)


def _is_consistent(record: SearchRecord) -> bool:
    """Return whether the conditions hold that concern several fields at once."""
    if isinstance(record, Tick):
        return True
    if record.session_id is None and record.client_id is None:
        return False
    if isinstance(record, Impression):
        slots = record.slots
        distinct = len({slot.position for slot in slots}) == len({slot.product_id for slot in slots}) == len(slots)
        return distinct
    return True


def _by_contract(parsed: Any) -> SearchRecord:
    """Let the contract decide: it names what is wrong, or accepts another way to write the version, such as 1.0."""
    validate(parsed, SEARCH_RECORD)
    record: SearchRecord = msgspec.convert({**parsed, "schema_version": 1}, _FORM)
    return record

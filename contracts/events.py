"""Shop events: what a site sends about one search. An impression says what was served; the rest says what happened.

`search_time` (the impression's `event_time`) travels on every event that belongs to a search, so that the moment
at which the search closes is a function of the event alone: a replayed straggler can never re-open it.
"""

import hashlib
import hmac
import re
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from contracts.base import (
    Count,
    DurationMs,
    Finite,
    Id,
    Label,
    Message,
    Money,
    Part,
    Position,
    ProductId,
    Query,
    Release,
    Time,
    gives_text,
)

_STAND_IN: Final = re.compile("[0-9a-f]{64}")
MAX_SLOTS: Final = 500
FUTURE_TOLERANCE_MS: Final = 300_000
"""An event further ahead of the broker's append time than this is a dead letter."""

BY_RELEVANCE: Final = "relevance"
"""The sort of a list whose positions tell what was taken to be relevant."""


def person_id(identifier: str, person_key: bytes) -> str:
    """Give the stand-in of a client or user id, the same in collector and search service: HMAC-SHA256 as hex.

    >>> person_id("c9", b"key")[:16]
    '93bc80f998a634a3'
    """
    return hmac.new(person_key, identifier.encode(), hashlib.sha256).hexdigest()


def protected_id(identifier: str, person_key: bytes | None) -> str | None:
    """Give the stand-in of an id that may be one already; None if there is no key to replace it.

    Whoever sends 64 hexadecimal digits sends no name: the collector and the search service write such ids.

    >>> protected_id("93bc80f998a634a3" * 4, b"key") == "93bc80f998a634a3" * 4
    True
    >>> protected_id("c9", b"key") == person_id("c9", b"key"), protected_id("c9", None)
    (True, None)
    """
    if _STAND_IN.fullmatch(identifier):
        return identifier
    return None if person_key is None else person_id(identifier, person_key)


class Envelope(Message):
    """Fields of every shop event."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [gives_text("session_id"), gives_text("client_id")]})

    event_id: Id
    """With `type`, the identity of an event: a repeat of both is a duplicate. UUIDv7 is advised."""
    event_time: Time
    """When it happened, by the sender's clock, corrected by the collector where `sent_at` allows."""
    session_id: Id | None = None
    client_id: Id | None = None
    """The device or browser; the collector replaces it by its HMAC."""
    sent_at: Time | None = None
    """When the batch left the sender, by the sender's clock."""
    received_at: Time | None = None
    """When the collector received it; added by the collector."""
    user_id: Id | None = None
    locale: Label | None = None
    device: Label | None = None
    surface: Label | None = None
    consent: Literal["granted", "denied", "unknown"] | None = None
    source: Label | None = None
    synthetic: bool = False
    """True for probes: never trained on."""

    @model_validator(mode="after")
    def _someone(self) -> Self:
        if self.session_id is None and self.client_id is None:
            raise ValueError("session_id or client_id is required")
        return self


class Slot(Part):
    """One product of a served list."""

    product_id: ProductId
    position: Position
    sponsored: bool = False
    pinned: bool = False
    in_stock: bool = True
    price: Money | None = None
    score: Finite | None = None
    parent_id: ProductId | None = None
    team: Label | None = None
    """Of an interleaved list: the arm whose turn it was at this slot, and to which its clicks are credited."""


class Exploration(Part):
    """How the list was perturbed on purpose."""

    policy: Label = "none"
    seed: Count = 0


class Ranking(Part):
    """Who ranked the list."""

    ranker: Label = "millrace"
    query_release: Release | None = None
    product_release: Release | None = None
    arm: Label = "live"
    exploration: Exploration = Exploration()
    sort: Label | None = None
    """What the shopper had the list sorted by, such as `price`; None, as `relevance`, if by relevance.

    Nothing is learned from where a product stands in a sorted list.
    """
    no_good_match: bool | None = None
    """Whether the ranker found that nothing in the list matches well; None if it does not tell."""


class Impression(Envelope):
    """One ranked list, or one page of it, complete and at once, as it was served.

    Impressions of one `search_id` and `event_time` that show other positions are pages of one list.
    """

    type: Literal["impression"]
    search_id: Id
    query: Query
    layout: Label = "list"
    columns: Annotated[int, Field(ge=1, le=100)] = 1
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    total_results: Count | None = None
    slots: Annotated[tuple[Slot, ...], Field(strict=False, max_length=MAX_SLOTS)]
    ranking: Ranking = Ranking()

    @model_validator(mode="after")
    def _distinct_slots(self) -> Self:
        if len({slot.position for slot in self.slots}) < len(self.slots):
            raise ValueError("slots: a position stands twice")
        if len({slot.product_id for slot in self.slots}) == len(self.slots):
            return self
        organic = [slot.product_id for slot in self.slots if not slot.sponsored]
        if len(set(organic)) < len(organic):
            raise ValueError("slots: a product_id stands twice without being sponsored")
        return self


class Behaviour(Envelope):
    """An event that belongs to one search."""

    search_id: Id
    search_time: Time | None = None
    """The impression's `event_time`. Without it the event waits for its impression and never opens a search."""


class Viewed(Part):
    """How long one slot was visible."""

    product_id: ProductId
    position: Position | None = None
    visible_ms: DurationMs


class View(Behaviour):
    """Slots that the shopper's viewport showed."""

    type: Literal["view"]
    slots: Annotated[tuple[Viewed, ...], Field(strict=False, max_length=MAX_SLOTS)]


class Click(Behaviour):
    """A click on one slot."""

    type: Literal["click"]
    product_id: ProductId
    position: Position | None = None


class Dwell(Behaviour):
    """How long the shopper stayed on the product page after a click."""

    type: Literal["dwell"]
    product_id: ProductId
    click_id: Id | None = None
    dwell_ms: DurationMs


class Cart(Envelope):
    """A product put into the cart."""

    type: Literal["cart"]
    product_id: ProductId
    search_id: Id | None = None
    search_time: Time | None = None
    quantity: Annotated[int, Field(ge=1, le=100_000)] = 1
    price: Money | None = None
    currency: Label | None = None


class PurchaseItem(Part):
    """One line of an order."""

    product_id: ProductId
    quantity: Annotated[int, Field(ge=1, le=100_000)] = 1
    price: Money | None = None
    search_id: Id | None = None
    search_time: Time | None = None


class Purchase(Envelope):
    """An order. On the topic it stands as one record per line, with one entry in `items`."""

    type: Literal["purchase"]
    order_id: Id
    currency: Label | None = None
    items: Annotated[tuple[PurchaseItem, ...], Field(strict=False, min_length=1, max_length=MAX_SLOTS)]


class Tick(Message):
    """Moves the event time of an idle partition; written by the join, outside the ledgers."""

    type: Literal["tick"]
    event_time: Time


ShopEvent = Impression | View | Click | Dwell | Cart | Purchase
SHOP_EVENT: Final[TypeAdapter[ShopEvent]] = TypeAdapter(Annotated[ShopEvent, Field(discriminator="type")])
SEARCH_RECORD: Final[TypeAdapter[ShopEvent | Tick]] = TypeAdapter(
    Annotated[ShopEvent | Tick, Field(discriminator="type")]
)
"""What may stand on `search-events`."""

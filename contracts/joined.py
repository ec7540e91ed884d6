"""A joined search: one list and, per slot, what the shopper saw and did within the window."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import Count, DurationMs, Id, Label, Message, Part, Query, Time
from contracts.events import MAX_SLOTS, Ranking, Slot


class Origin(Part):
    """Where a record stands in Kafka."""

    topic: Label
    partition: Count
    offset: Count


class JoinedSlot(Slot):
    """A served slot with its outcome."""

    visible_ms: DurationMs | None = None
    """Longest reported visibility; None where no view event named it."""
    clicked: bool = False
    click_time: Time | None = None
    """Event time of the first click."""
    dwell_ms: DurationMs | None = None
    """Longest reported stay after a click."""
    cart_quantity: Count = 0
    purchase_quantity: Count = 0


class JoinedSearch(Message):
    """What the join emits when a search closes. The same events give the same bytes, `origins` aside."""

    type: Literal["joined_search"] = "joined_search"
    search_id: Id
    search_time: Time
    closed_at: Time
    """The deadline in event time, not the moment of processing: a replay gives the same value."""
    session_id: Id | None = None
    client_id: Id | None = None
    user_id: Id | None = None
    locale: Label | None = None
    device: Label | None = None
    surface: Label | None = None
    consent: Literal["granted", "denied", "unknown"] | None = None
    synthetic: bool = False
    query: Query
    layout: Label = "list"
    columns: Annotated[int, Field(ge=1, le=100)] = 1
    page: Annotated[int, Field(ge=1, le=10_000)] = 1
    total_results: Count | None = None
    ranking: Ranking = Ranking()
    slots: Annotated[tuple[JoinedSlot, ...], Field(strict=False, max_length=MAX_SLOTS)]
    unlisted: Count = 0
    """Events of this search that name a product which the list does not show."""
    origins: Annotated[tuple[Origin, ...], Field(strict=False, max_length=10_000)] = ()

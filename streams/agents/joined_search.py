"""Joined searches as the hot path of the pairs agent reads them: the contract once more, in a quicker form.

As in `shop_events`: `contracts/joined.py` decides what is valid, msgspec says the same several times quicker, and what
it refuses goes to the contract.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from pydantic import TypeAdapter

from contracts.events import MAX_SLOTS
from contracts.joined import JoinedSearch as Contract
from contracts.wire import parse, validate
from streams.agents.shop_events import Consent, Count, DurationMs, Id, Label, Part, Query, Ranking, Slot, Time

MAX_ORIGINS: Final = 10_000
CONTRACT: Final = TypeAdapter(Contract)


class Origin(Part, kw_only=True):
    """Where a record stands in Kafka."""

    topic: Label
    partition: Count
    offset: Count


class JoinedSlot(Slot, kw_only=True):
    """A served slot with its outcome."""

    visible_ms: DurationMs | None = None
    clicked: bool = False
    click_time: Time | None = None
    dwell_ms: DurationMs | None = None
    cart_quantity: Count = 0
    purchase_quantity: Count = 0


class JoinedSearch(Part, kw_only=True):
    """A closed search."""

    search_id: Id
    search_time: Time
    closed_at: Time
    query: Query
    slots: Annotated[tuple[JoinedSlot, ...], Meta(max_length=MAX_SLOTS)]
    type: Literal["joined_search"] = "joined_search"
    schema_version: Literal[1] = 1
    session_id: Id | None = None
    client_id: Id | None = None
    user_id: Id | None = None
    locale: Label | None = None
    device: Label | None = None
    surface: Label | None = None
    consent: Consent | None = None
    synthetic: bool = False
    layout: Label = "list"
    columns: Annotated[int, Meta(ge=1, le=100)] = 1
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1
    total_results: Count | None = None
    ranking: Ranking = msgspec.field(default_factory=Ranking)
    unlisted: Count = 0
    origins: Annotated[tuple[Origin, ...], Meta(max_length=MAX_ORIGINS)] = ()


def decode(value: bytes | None) -> JoinedSearch:
    """Return the joined search in `value`.

    Raises:
        MalformedMessage: it is not JSON or breaks the contract.
        UnsupportedSchema: its `schema_version` is not known here.
    """
    parsed = parse(value or b"")
    try:
        return msgspec.convert(parsed, JoinedSearch)
    except msgspec.ValidationError:
        return _by_contract(parsed)


def _by_contract(parsed: Any) -> JoinedSearch:
    """Let the contract decide: it names what is wrong, or accepts another way to write the version, such as 1.0."""
    validate(parsed, CONTRACT)
    return msgspec.convert({**parsed, "schema_version": 1}, JoinedSearch)

"""What goes over HTTP: the collector's answers, and the search service's requests and answers."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.base import Finite, Id, Label, Money, NullIsAbsent, ProductId, Query, Release, Time
from contracts.events import Exploration

Status = Literal["accepted", "duplicate", "rejected"]


class IntakeReason(StrEnum):
    """Why an item that reads well is still refused at intake."""

    BOT = "bot"
    """The sender's user agent is on the bot list."""
    TOO_FAR_AHEAD = "too_far_ahead"
    """A time lies more than five minutes after the collector's clock."""
    TOO_DEEP = "too_deep"
    """Objects and lists are nested deeper than any of our messages."""
    TOO_LARGE = "too_large"
    """The record would be larger than its topic allows."""


class ItemResult(BaseModel):
    """What became of one item of a request, in the order of the request."""

    event_id: str | None
    """`event_id` of an event, `product_id` of a product, `pair_id` of a curated pair; None where it had none."""
    status: Status
    reason: str | None = None
    field: str | None = None
    message: str | None = None


class IntakeAnswer(BaseModel):
    """A collector's answer: `accepted` counts what Kafka acknowledged."""

    accepted: int
    rejected: int
    duplicate: int = 0
    results: list[ItemResult]


class _Body(NullIsAbsent):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PriceRange(_Body):
    """Bounds of the price, both included."""

    gte: Money | None = None
    lte: Money | None = None


class Filters(_Body):
    """Conditions that every result meets."""

    brand: Annotated[tuple[Label, ...], Field(max_length=100)] | None = None
    price: PriceRange | None = None
    category: Label | None = None
    in_stock: bool | None = None
    locale: Label | None = None


class SearchRequest(_Body):
    """A search."""

    query: Query
    k: Annotated[int, Field(ge=1, le=100)] = 10
    filters: Filters = Filters()
    session_id: Id | None = None
    client_id: Id | None = None
    explain: bool = False
    explore: bool = True
    impression: Literal["server", "client", "none"] = "server"
    """Who writes the impression: this service, the site, or nobody (evaluation)."""


class SearchResult(BaseModel):
    """One product of the answer."""

    product_id: ProductId
    position: int
    score: Finite
    title: str
    price: Money | None = None
    brand: str | None = None
    category: tuple[str, ...] = ()
    in_stock: bool = True
    parent_id: str | None = None
    product_release: Release
    explanation: dict[str, float] | None = None


class SearchAnswer(BaseModel):
    """The answer to a search; `search_id` and `search_time` go back on every event of it."""

    search_id: Id
    search_time: Time
    query_release: Release
    product_release: Release
    arm: Label
    exploration: Exploration
    degraded: str | None
    took_ms: Annotated[float, Field(ge=0)]
    total: int
    results: tuple[SearchResult, ...]


class EncodeRequest(_Body):
    """Texts to encode as queries."""

    texts: Annotated[tuple[Query, ...], Field(min_length=1, max_length=256)]


class EncodeAnswer(BaseModel):
    """Query vectors for people who ask Qdrant themselves, with the releases they belong to."""

    query_release: Release
    product_release: Release
    vectors: tuple[tuple[float, ...], ...]

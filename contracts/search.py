"""The search service's requests and answers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.base import Finite, Id, Label, Money, ProductId, Query, Release, Time
from contracts.events import Exploration


class _Body(BaseModel):
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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "quiet fridge", "k": 5, "filters": {"price": {"lte": 500}, "in_stock": True}}]
        }
    )

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

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["quiet fridge"]}]})

    texts: Annotated[tuple[Query, ...], Field(min_length=1, max_length=256)]


class EncodeAnswer(BaseModel):
    """Query vectors for people who ask Qdrant themselves, with the releases they belong to."""

    query_release: Release
    product_release: Release
    vectors: tuple[tuple[float, ...], ...]

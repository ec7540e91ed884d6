"""A search as query parameters: `GET /v1/search?q=...`, the same request as the POST body."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.base import Id, Label, Money, Query
from contracts.http import Filters, PriceRange, SearchRequest


class SearchParameters(BaseModel):
    """Parameters of a search; others are refused by name, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q: Query
    k: Annotated[int, Field(ge=1, le=100)] = 10
    brand: Annotated[list[Label], Field(max_length=100, description="Repeat it for any of several.")] = []
    price_gte: Money | None = None
    price_lte: Money | None = None
    category: Label | None = None
    in_stock: bool | None = None
    locale: Label | None = None
    session_id: Id | None = None
    client_id: Id | None = None
    explain: bool = False
    explore: bool = True
    impression: Literal["server", "client", "none"] = "server"

    def to_request(self) -> SearchRequest:
        """Return the request that these parameters mean."""
        priced = self.price_gte is not None or self.price_lte is not None
        filters = Filters(
            brand=tuple(self.brand) or None,
            price=PriceRange(gte=self.price_gte, lte=self.price_lte) if priced else None,
            category=self.category,
            in_stock=self.in_stock,
            locale=self.locale,
        )
        return SearchRequest(
            query=self.q,
            k=self.k,
            filters=filters,
            session_id=self.session_id,
            client_id=self.client_id,
            explain=self.explain,
            explore=self.explore,
            impression=self.impression,
        )

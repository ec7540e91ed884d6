"""Search over HTTP: `/v1/search` by body and by parameters, `/v1/encode`, and their documentation."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, field_validator

from contracts.base import Id, Label, Money, Query
from contracts.http import EncodeAnswer, EncodeRequest, Filters, PriceRange, SearchAnswer, SearchRequest
from indexer.search.service import SearchService
from service.api_docs import documentation
from service.health import Health
from service.http import Refused, Route, build_app, json_answer, read_model, read_parameters

BODY_LIMIT_BYTES: Final = 512 * 1024
"""Room for 256 texts of 1,000 characters, escaped."""
MAX_OPEN: Final = 256
"""Requests under way, read and answered ones among them; the service itself bounds what waits."""
DESCRIPTION: Final = (
    "Search with the query head and the product vectors that belong together. Put `search_id` and `search_time` of an "
    "answer on every event of that search. The service is for the shop's backend: it asks for no key, keep it private."
)


class SearchParameters(BaseModel):
    """A search as query parameters, the same request as the body; others are refused by name, never ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"q": "quiet fridge", "k": 5, "price_lte": 500}]}
    )

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

    @field_validator("brand", mode="before")
    @classmethod
    def _may_be_given_once(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

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


def build(service: Callable[[], SearchService], health: Health, *, max_open: int = MAX_OPEN) -> web.Application:
    """Return the web application.

    Args:
        service: gives the search service; raises DependencyDown while it starts.
        health: answers `/live`, `/ready` and `/metrics`.
        max_open: how many requests may be under way.
    """

    async def search_by_parameters(request: web.Request) -> web.StreamResponse:
        parameters = read_parameters(request, SearchParameters)
        _refuse_blank(parameters.q, "q")
        return json_answer(await service().search(parameters.to_request()))

    async def search(request: web.Request) -> web.StreamResponse:
        asked = await read_model(request, SearchRequest, limit_bytes=BODY_LIMIT_BYTES)
        _refuse_blank(asked.query, "query")
        return json_answer(await service().search(asked))

    async def encode(request: web.Request) -> web.StreamResponse:
        asked = await read_model(request, EncodeRequest, limit_bytes=BODY_LIMIT_BYTES)
        return json_answer(await service().encode(asked.texts))

    routes = [
        Route(
            "GET",
            "/v1/search",
            search_by_parameters,
            "Searches by parameters.",
            takes=SearchParameters,
            gives=SearchAnswer,
        ),
        Route("POST", "/v1/search", search, "Searches.", takes=SearchRequest, gives=SearchAnswer),
        Route(
            "POST",
            "/v1/encode",
            encode,
            "Encodes texts as queries, for people who ask Qdrant themselves.",
            takes=EncodeRequest,
            gives=EncodeAnswer,
        ),
    ]
    documented = documentation(routes, title="Millrace search", description=DESCRIPTION)
    return build_app(health, [*routes, *documented], max_open=max_open)


def _refuse_blank(query: str, name: str) -> None:
    if not query.strip():
        raise Refused(422, "empty_query", f"{name}: the query is empty", field=name)

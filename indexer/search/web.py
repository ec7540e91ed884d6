"""Search over HTTP: `/v1/search` by body and by parameters, `/v1/encode`, and their documentation."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from contracts.base import Id, Label, Money, Query, Ratio, Time, is_visible
from contracts.catalog import AttributeName
from contracts.events import BY_RELEVANCE
from contracts.http import (
    MOST_CHOICES,
    MOST_PAGES,
    AttributeFilter,
    EncodeAnswer,
    EncodeRequest,
    FacetName,
    Filters,
    NumberRange,
    PriceRange,
    SearchAnswer,
    SearchRequest,
    Sort,
    TimeRange,
)
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


B = TypeVar("B", bound=BaseModel)

ATTRIBUTE: Final = "attr."
"""What the parameters of attributes begin with."""
Repeated = Annotated[tuple[Label, ...], Field(max_length=MOST_CHOICES, description="Repeat it for any of several.")]


class SearchParameters(BaseModel):
    """A search as query parameters, the same request as the body; others are refused by name, never ignored.

    Those that are empty, as forms send them, count as left out.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"q": "quiet fridge", "k": 5, "price_lte": 500}]}
    )

    q: Annotated[Query, Field(description="Empty, or left out, for browsing by filters, sort or facets.")] = ""
    k: Annotated[int, Field(ge=1, le=100)] = 10
    brand: Repeated = ()
    seller: Repeated = ()
    category: Annotated[Label | None, Field(description="A label at any level.")] = None
    category_path: Annotated[
        tuple[Label, ...], Field(max_length=32, description="Repeat it: the path from its beginning, level by level.")
    ] = ()
    attributes: Annotated[
        dict[AttributeName, AttributeFilter],
        Field(
            alias=f"{ATTRIBUTE}NAME",
            description="A value of the attribute NAME, repeated for any of several; "
            f"`{ATTRIBUTE}NAME_gte` and `{ATTRIBUTE}NAME_lte` bound a number.",
        ),
    ] = {}
    price_gte: Money | None = None
    price_lt: Money | None = None
    price_lte: Money | None = None
    in_stock: bool | None = None
    locale: Label | None = None
    launched_gte: Time | None = None
    launched_lte: Time | None = None
    sort: Sort = "relevance"
    facet: Annotated[
        tuple[FacetName, ...],
        Field(max_length=20, description="`brand`, `seller`, `category`, `price`, `attributes.NAME`; repeat it."),
    ] = ()
    session_id: Id | None = None
    client_id: Id | None = None
    explain: bool = False
    explore: bool = True
    impression: Literal["server", "client", "none"] = "server"
    search_id: Annotated[Id | None, Field(description="Of an earlier answer, to see another `page` of its list.")] = (
        None
    )
    page: Annotated[int, Field(ge=1, le=MOST_PAGES)] = 1
    group_variants: bool = False
    per_seller: Annotated[int, Field(ge=1, le=100)] | None = None
    diversity: Annotated[
        Ratio,
        Field(
            description="How unlike those above it a result of a query is to be, 0 to 1; it is then not explored. "
            "Lists that are browsed or sorted stay as they are."
        ),
    ] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Leave out what a form left empty, and gather what is said of attributes: values, or bounds."""
        known = {name for name in given if name in cls.model_fields or name.startswith(ATTRIBUTE)} - {"q"}
        given = {name: _filled(value) if name in known else value for name, value in given.items()}
        given = {name: value for name, value in given.items() if name not in known or value not in ("", [])}
        values: dict[str, Any] = {}
        bounds: dict[str, dict[str, Any]] = {}
        for parameter in [name for name in given if name.startswith(ATTRIBUTE)]:
            name, value = parameter.removeprefix(ATTRIBUTE), given[parameter]
            bounded, _, bound = name.rpartition("_")
            if bound in NumberRange.model_fields:
                bounds.setdefault(bounded, {})[bound] = value
            else:
                values[name] = _several(value)
        if twice := sorted(values.keys() & bounds.keys()):
            raise ValueError(f"{ATTRIBUTE}{twice[0]} has values and bounds; send one of them")
        if given.keys() >= {"category", "category_path"}:
            raise ValueError("category and category_path are given; send one of them")
        others = {name: value for name, value in given.items() if not name.startswith(ATTRIBUTE)}
        return others | ({f"{ATTRIBUTE}NAME": values | bounds} if values or bounds else {})

    @field_validator("brand", "seller", "category_path", "facet", mode="before")
    @classmethod
    def _may_be_given_once(cls, value: Any) -> Any:
        return _several(value)

    def to_request(self) -> SearchRequest:
        """Return the request that these parameters mean."""
        filters = Filters(
            brand=self.brand or None,
            seller=self.seller or None,
            category=self.category_path or self.category,
            attributes=self.attributes or None,
            price=_unless_empty(PriceRange(gte=self.price_gte, lt=self.price_lt, lte=self.price_lte)),
            in_stock=self.in_stock,
            locale=self.locale,
            launched_at=_unless_empty(TimeRange(gte=self.launched_gte, lte=self.launched_lte)),
        )
        return SearchRequest(
            query=self.q,
            k=self.k,
            filters=filters,
            sort=self.sort,
            facets=self.facet,
            session_id=self.session_id,
            client_id=self.client_id,
            explain=self.explain,
            explore=self.explore,
            impression=self.impression,
            search_id=self.search_id,
            page=self.page,
            group_variants=self.group_variants,
            per_seller=self.per_seller,
            diversity=self.diversity,
        )


def _filled(value: Any) -> Any:
    return [one for one in value if one] if isinstance(value, list) else value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _unless_empty(bounds: B) -> B | None:
    return bounds if bounds.model_dump(exclude_none=True) else None


def build(service: Callable[[], SearchService], health: Health, *, max_open: int = MAX_OPEN) -> web.Application:
    """Return the web application.

    Args:
        service: gives the search service; raises DependencyDown while it starts.
        health: answers `/live`, `/ready` and `/metrics`.
        max_open: how many requests may be under way.
    """

    async def search_by_parameters(request: web.Request) -> web.StreamResponse:
        asked = read_parameters(request, SearchParameters).to_request()
        _refuse_nothing(asked, "q")
        if request.method == "HEAD":  # whose list nobody sees
            asked = asked.model_copy(update={"impression": "none"})
        return json_answer(await service().search(asked))

    async def search(request: web.Request) -> web.StreamResponse:
        asked = await read_model(request, SearchRequest, limit_bytes=BODY_LIMIT_BYTES)
        _refuse_nothing(asked, "query")
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


def _refuse_nothing(asked: SearchRequest, name: str) -> None:
    """Refuse an empty query that asks for nothing else: more often a mistake than a wish to browse everything."""
    browses = asked.filters != Filters() or asked.sort != BY_RELEVANCE or asked.facets
    if not is_visible(asked.query) and not browses:
        detail = f"{name}: the query is empty; to browse, send filters, sort or facets"
        raise Refused(422, "empty_query", detail, field=name)

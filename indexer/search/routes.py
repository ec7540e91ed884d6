"""The HTTP side of search: what is asked, what is answered, and one clear error per mistake."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from contracts.errors import MillraceError
from contracts.search import EncodeAnswer, EncodeRequest, SearchAnswer, SearchRequest
from indexer.search.answering import Searcher
from service import metrics
from service.health import Health

HEALTH_PATHS: Final = ("/live", "/ready", "/metrics")
PROBLEM: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1


class SearchParameters(BaseModel):
    """The query string of a search; what is not named here is refused."""

    model_config = ConfigDict(extra="forbid")

    q: str
    k: int = 10
    brand: list[str] | None = None
    price_gte: float | None = None
    price_lte: float | None = None
    category: str | None = None
    in_stock: bool | None = None
    locale: str | None = None
    session_id: str | None = None
    client_id: str | None = None
    explain: bool = False
    explore: bool = True
    impression: str = "server"

    def request(self) -> SearchRequest:
        """Return the same search as a body would ask for it.

        Raises:
            ValidationError: a value is out of its bounds.
        """
        bounds = {"gte": self.price_gte, "lte": self.price_lte}
        filters = {
            "brand": tuple(self.brand) if self.brand else None,
            "price": None if self.price_gte is None and self.price_lte is None else bounds,
            **self.model_dump(include={"category", "in_stock", "locale"}),
        }
        others = self.model_dump(include={"k", "session_id", "client_id", "explain", "explore", "impression"})
        return SearchRequest.model_validate({"query": self.q, "filters": filters, **others})


def build_app(searcher: Searcher, health: Health) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="Millrace search",
        description="Search over the newest product vectors. Send `search_id` and `search_time` back with every event.",
        version="1",
    )
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(ValidationError, _on_invalid)
    app.add_exception_handler(MillraceError, _on_failure)
    app.middleware("http")(_measured)
    _add_search(app, searcher)
    _add_health(app, health)
    return app


def _add_search(app: FastAPI, searcher: Searcher) -> None:
    @app.post("/v1/search")
    async def search(request: SearchRequest) -> SearchAnswer:
        """Search. Filters are conditions that every result meets."""
        return await searcher.search(request)

    @app.get("/v1/search")
    async def search_get(parameters: Annotated[SearchParameters, Query()]) -> SearchAnswer:
        """Search by query string."""
        return await searcher.search(parameters.request())

    @app.post("/v1/encode")
    async def encode(request: EncodeRequest) -> EncodeAnswer:
        """Encode texts as queries, for asking Qdrant yourself: vector name `product`, alias `products`."""
        return await searcher.encode(request.texts)


def _add_health(app: FastAPI, health: Health) -> None:
    async def answer(request: Request) -> Response:
        status, content_type, body = health.render(request.url.path) or (404, "application/json", b"{}")
        return Response(body, status_code=status, media_type=content_type)

    for path in HEALTH_PATHS:
        app.add_api_route(path, answer, include_in_schema=False)


async def _measured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    began = time.perf_counter()
    response = await call_next(request)
    path = request.url.path
    if path not in HEALTH_PATHS:
        route = path if path in ("/v1/search", "/v1/encode") else "other"
        metrics.REQUESTS.labels(route=route, code=str(response.status_code)).inc()
        metrics.REQUEST_SECONDS.labels(route=route).observe(time.perf_counter() - began)
    return response


async def _on_invalid(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError | ValidationError)  # noqa: S101 - registered for these only
    errors = [
        {"field": _path(error["loc"]), "reason": error["type"], "message": error["msg"]} for error in exc.errors()
    ]
    detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
    return _problem(422, "the request is not valid", detail, errors=errors)


def _path(loc: tuple[str | int, ...]) -> str:
    """Return the dotted path of a field, without where FastAPI found it."""
    return ".".join(str(part) for part in loc if part not in ("body", "query")) or str(loc[-1] if loc else "request")


async def _on_failure(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, MillraceError)  # noqa: S101 - registered for these only
    answer = _problem(503, exc.message, exc.fix)
    answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


def _problem(status: int, title: str, detail: str, **more: Any) -> JSONResponse:
    """Return an error in the form of RFC 9457."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status_code=status, media_type=PROBLEM)

"""The HTTP edge of search: routes, documentation, limits and request metrics."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.http import EncodeAnswer, EncodeRequest, SearchAnswer, SearchRequest
from indexer.search.parameters import SearchParameters
from indexer.search.problems import MEDIA_TYPE, add_handlers, problem
from indexer.search.service import SearchService
from service import metrics
from service.health import Health

BODY_LIMIT_BYTES: Final = 512 * 1024
"""Room for 256 texts of 1,000 characters, escaped."""
ROUTES: Final = ("/v1/search", "/v1/encode")
DESCRIPTION: Final = (
    "Search with the query head and the product vectors that belong together. Put `search_id` and `search_time` of an "
    "answer on every event of that search. The service is for the shop's backend: it asks for no key, keep it private."
)
_PROBLEM: Final[dict[str, Any]] = {"content": {MEDIA_TYPE: {"schema": {"type": "object"}}}}
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    422: {"description": "A parameter or field is wrong; `field` names it.", **_PROBLEM},
    503: {"description": "Nothing to answer with, now; `detail` says why.", **_PROBLEM},
}


def build(service: Callable[[], SearchService], health: Health) -> ASGIApp:
    """Return the application.

    Args:
        service: gives the search service; raises DependencyDown while it starts.
        health: answers `/live`, `/ready` and `/metrics`.
    """
    app = FastAPI(title="Millrace search", version="1", description=DESCRIPTION, redoc_url=None)
    add_handlers(app)

    @app.get("/v1/search", responses=_PROBLEMS, response_model=SearchAnswer)
    async def search_by_parameters(parameters: Annotated[SearchParameters, Query()]) -> Response:
        """Search with query parameters."""
        _refuse_blank(parameters.q, "query", "q")
        return _json(await service().search(parameters.to_request()))

    @app.post("/v1/search", responses=_PROBLEMS, response_model=SearchAnswer)
    async def search(request: SearchRequest) -> Response:
        """Search with a JSON body."""
        _refuse_blank(request.query, "body", "query")
        return _json(await service().search(request))

    @app.post("/v1/encode", responses=_PROBLEMS, response_model=EncodeAnswer)
    async def encode(request: EncodeRequest) -> Response:
        """Encode texts as queries, for people who ask Qdrant themselves."""
        return _json(await service().encode(request.texts))

    @app.get("/live", include_in_schema=False)
    @app.get("/ready", include_in_schema=False)
    @app.get("/metrics", include_in_schema=False)
    async def healthy(request: Request) -> Response:
        """Answer for supervisors and Prometheus."""
        status, content_type, body = health.render(request.url.path) or (404, MEDIA_TYPE, b"")
        return Response(body, status_code=status, headers={"Content-Type": content_type})

    return Edge(app)


def _refuse_blank(query: str, place: str, name: str) -> None:
    """Refuse a query without a word."""
    if not query.strip():
        raise RequestValidationError([{"type": "empty_query", "loc": (place, name), "msg": "the query is empty"}])


def _json(answer: SearchAnswer | EncodeAnswer) -> Response:
    """Return an answer that was validated when it was made."""
    return Response(answer.model_dump_json(), media_type="application/json")


class Edge:
    """Refuses bodies that are too large before they fill the memory, and counts requests.

    Args:
        app: what answers.
        limit_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int = BODY_LIMIT_BYTES) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] not in ROUTES:
            return await self._app(scope, receive, send)
        began, codes = time.perf_counter(), [500]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                codes[0] = message["status"]
            await send(message)

        try:
            await self._limited(scope, receive, counted)
        finally:
            metrics.REQUESTS.labels(scope["path"], str(codes[0])).inc()
            metrics.REQUEST_SECONDS.labels(scope["path"]).observe(time.perf_counter() - began)
        return None

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._limit_bytes:
                refusal = problem(413, f"the body is larger than {self._limit_bytes} bytes", reason="too_large")
                return await refusal(scope, receive, send)
            if not message.get("more_body", False):
                return await self._app(scope, _replay(body, receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands the body over once, then what comes."""
    handed_over = False

    async def again() -> Message:
        nonlocal handed_over
        if handed_over:
            return await receive()
        handed_over = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

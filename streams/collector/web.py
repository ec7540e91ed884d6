"""The HTTP edge: routes, JSON errors, CORS, request metrics, health on the same port."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from service import metrics
from service.health import JSON, Health
from service.logging import get_logger
from streams.collector import access
from streams.collector.access import Refused
from streams.collector.app import EVENTS, PAIRS, PRODUCTS, Collector, Kind

RUNNER_OPTIONS: Final[Mapping[str, Any]] = {"access_log": None, "auto_decompress": False}
"""How the application must be run: `body` unpacks, and requests are counted, not logged one by one."""
INTAKE_ROUTES: Final[Mapping[str, Kind]] = {"/v1/events": EVENTS, "/v1/products": PRODUCTS, "/v1/pairs": PAIRS}
NOT_BUILT: Final = (("POST", "/ubi_events"), ("POST", "/ubi_queries"), ("GET", "/millrace.js"))
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Encoding",
    "Access-Control-Max-Age": "86400",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(collector: Collector, health: Health, *, redis_is_up: Callable[[], bool]) -> web.Application:
    """Return the web application.

    Args:
        collector: answers the intake routes.
        health: answers `/live`, `/ready` and `/metrics`.
        redis_is_up: shown in `/ready` beside the verdict, which does not depend on it.
    """
    app = web.Application(middlewares=[_counted, _cors(collector.origins), _errors_as_json])
    for path, kind in INTAKE_ROUTES.items():
        app.router.add_post(path, _taking(collector, kind))
        app.router.add_route("OPTIONS", path, _preflight(collector.origins))
    for method, path in NOT_BUILT:
        app.router.add_route(method, path, _not_built)
    for path in ("/live", "/ready", "/metrics"):
        app.router.add_get(path, _answering(health, redis_is_up))
    return app


def _taking(collector: Collector, kind: Kind) -> Handler:
    """Return the handler of one intake route."""

    async def take(request: web.Request) -> web.StreamResponse:
        return _json(200, (await collector.take(request, kind)).model_dump())

    return take


def _preflight(origins: tuple[str, ...]) -> Handler:
    """Return the handler of a browser's question before it sends."""

    async def allow(request: web.Request) -> web.StreamResponse:
        access.check_origin(request.headers.get("Origin"), host=request.host, allowed=origins)
        return web.Response(status=204, headers=_PREFLIGHT)

    return allow


async def _not_built(request: web.Request) -> web.StreamResponse:
    """Refuse by name what a later version answers."""
    raise Refused(501, "not_built", f"{request.path} is not built yet; send our own events to /v1/events")


def _answering(health: Health, redis_is_up: Callable[[], bool]) -> Handler:
    """Return the handler of health and metrics."""

    async def answer(request: web.Request) -> web.StreamResponse:
        status, content_type, body = health.render(request.path) or (404, JSON, b"{}")
        if request.path == "/ready":
            body = orjson.dumps({**orjson.loads(body), "redis": "up" if redis_is_up() else "down"})
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    return answer


@web.middleware
async def _counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count and time every answer by route."""
    began_s = time.perf_counter()
    response = await handler(request)
    resource = request.match_info.route.resource
    route = "unknown" if resource is None else resource.canonical
    metrics.REQUESTS.labels(route, str(response.status)).inc()
    metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - began_s)
    return response


def _cors(origins: tuple[str, ...]) -> Any:
    """Return the middleware that lets pages on the list read our answers; never `*`, never credentials."""

    @web.middleware
    async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin")
        if origin is not None and origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin
        return response

    return cors


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every refusal as JSON with a reason and a sentence; an unforeseen error is one log line and a 500."""
    try:
        return await handler(request)
    except Refused as refused:
        return _json(
            refused.status, {"error": refused.reason, "message": refused.message}, headers=dict(refused.headers)
        )
    except web.HTTPException as error:
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        text = f"{request.method} {request.path}: {error.reason}"
        return _json(error.status, {"error": error.reason.lower().replace(" ", "_"), "message": text}, headers=allowed)
    except ConnectionResetError:
        raise
    except Exception as error:  # noqa: BLE001 - one broken request must not end the process or leak a traceback
        get_logger().error("request failed", path=request.path, error=repr(error), exc_info=error)
        return _json(500, {"error": "internal", "message": "this is a fault of the collector; see its log"})


def _json(status: int, content: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer in JSON."""
    return web.Response(status=status, body=orjson.dumps(content), content_type=JSON, headers=headers)

"""The HTTP application: Qdrant's REST API and our health paths over one store.

Answers have Qdrant's form, `{"result": ..., "status": "ok", "time": seconds}`, and refusals too,
`{"status": {"error": "..."}, "time": seconds}`, so that `qdrant-client` works unchanged.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any, Final

import orjson
from aiohttp import web

from deploy.qdrant_edge.errors import ApiError, BadRequest, InternalError, NotSupported
from deploy.qdrant_edge.routes import ROUTES, Route
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Worker
from service import metrics
from service.health import Health
from service.logging import get_logger

QDRANT_VERSION: Final = "1.19.2"
"""The API that is spoken; `qdrant-client` compares it with its own version."""

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
FLUSH_INTERVAL_S: Final = 30.0
"""Between two flushes: each stops the readers for as long as the disk takes, and only shortens the next start."""

COUNT_INTERVAL_S: Final = 5.0
_OPEN_PATHS: Final = frozenset({"/", "/healthz", "/livez", "/readyz", "/live", "/ready", "/metrics"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """The routes bound to one store.

    Args:
        store: open data folder; from now on only touched by the worker.
        worker: the thread that speaks to Edge.
        health: what `/live`, `/ready` and `/metrics` say.
        api_key: asked of every call but the health paths, where set.
    """

    def __init__(self, store: Store, worker: Worker, health: Health, *, api_key: str | None = None) -> None:
        self._store = store
        self._worker = worker
        self._health = health
        self._api_key = api_key
        self._flush_failure: str | None = None
        health.add_check("disk", lambda: self._flush_failure)

    def build(self) -> web.Application:
        """Return the application, with all routes and the task that flushes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._answer_errors, self._check_key])
        app.router.add_get("/", self._root)
        for path in ("/live", "/ready", "/metrics"):
            app.router.add_get(path, self._health_page)
        for path in ("/livez", "/healthz", "/readyz"):
            app.router.add_get(path, self._qdrant_health)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._endpoint(route))
        app.router.add_route("*", "/{path:.*}", _unknown_path)
        app.cleanup_ctx.append(self._keeping_house)
        return app

    def _endpoint(self, route: Route) -> Handler:
        """Return the handler of one route of the table."""

        async def endpoint(request: web.Request) -> web.Response:
            started = time.perf_counter()
            body = _parse(await request.read()) if route.has_body else None
            result = await self._worker.run(route.call, self._store, request.match_info, body)
            if request.query.get("wait") != "true":
                result = _acknowledged(result)
            return _json({"result": result, "status": "ok", "time": time.perf_counter() - started})

        return endpoint

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every failure in Qdrant's form, and count every answer."""
        started = time.perf_counter()
        response = await _guarded(request, handler, started)
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "other"
        metrics.REQUESTS.labels(route, str(response.status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
        return response

    @web.middleware
    async def _check_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a call without the key, where one is set."""
        if self._api_key is not None and request.path not in _OPEN_PATHS:
            scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
            given = request.headers.get("api-key") or (bearer if scheme == "Bearer" else "")
            if not hmac.compare_digest(given.encode(), self._api_key.encode()):
                return _refusal(401, "Must provide an API key or an Authorization bearer token", 0.0)
        return await handler(request)

    async def _root(self, request: web.Request) -> web.Response:
        del request
        title = f"Millrace embedded Qdrant (Qdrant Edge {version('qdrant-edge-py')}), not a Qdrant server"
        return _json({"title": title, "version": QDRANT_VERSION, "commit": None})

    async def _health_page(self, request: web.Request) -> web.Response:
        status, content_type, body = self._health.render(request.path) or (404, "text/plain", b"")
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    async def _qdrant_health(self, request: web.Request) -> web.Response:
        ready = request.path == "/readyz"
        holds, reasons = self._health.ready() if ready else self._health.live()
        well = "all shards are ready" if ready else "healthz check passed"
        return web.Response(status=200 if holds else 503, text=well if holds else "; ".join(reasons))

    async def _keeping_house(self, app: web.Application) -> AsyncIterator[None]:
        """Flush and count while the application runs."""
        del app
        async with (
            _background(self._every(FLUSH_INTERVAL_S, self.flush)),
            _background(self._every(COUNT_INTERVAL_S, self._count_points)),
        ):
            yield

    async def _every(self, interval_s: float, call: Callable[[], None]) -> None:
        while True:
            await self._worker.run(call)
            await asyncio.sleep(interval_s)

    def flush(self) -> None:
        """Write out what changed; a disk that refuses makes the process not ready, and is tried again."""
        try:
            self._store.flush()
        except Exception as exc:  # noqa: BLE001 -- Edge raises bare exceptions; the log still holds every write
            if self._flush_failure is None:
                get_logger().error("flush failed", error=str(exc))
            self._flush_failure = f"cannot write to disk: {exc}"
        else:
            self._flush_failure = None

    def _count_points(self) -> None:
        metrics.INDEX_POINTS.clear()
        for name, points in self._store.points_counts().items():
            metrics.INDEX_POINTS.labels(name).set(points)


@asynccontextmanager
async def _background(work: Any) -> AsyncIterator[None]:
    """Run a coroutine beside the application until it ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _guarded(request: web.Request, handler: Handler, started: float) -> web.StreamResponse:
    """Return the handler's answer, or the refusal that its failure means."""
    try:
        return await handler(request)
    except ApiError as exc:
        if isinstance(exc, InternalError):
            get_logger().error("engine failed", path=request.path, error=exc.message)
        return _refusal(exc.status, exc.message, time.perf_counter() - started)
    except web.HTTPRequestEntityTooLarge:
        limit = f"Payload error: JSON payload is larger than allowed ({MAX_BODY_BYTES} bytes)"
        return _refusal(413, limit, time.perf_counter() - started)
    except web.HTTPException as exc:
        return _refusal(exc.status, exc.reason, time.perf_counter() - started)
    except Exception as exc:  # noqa: BLE001 -- one bad request must not take the others with it
        get_logger().error("request failed", path=request.path, error=repr(exc), exc_info=exc)
        return _refusal(500, f"Service internal error: {exc!r}", time.perf_counter() - started)


async def _unknown_path(request: web.Request) -> web.Response:
    raise NotSupported(f"{request.method} {request.path}")


def _acknowledged(result: Any) -> Any:
    """Return an update's result as Qdrant words it for a caller that did not ask to wait."""
    if type(result) is dict and result.get("status") == "completed":
        return {**result, "status": "acknowledged"}
    if type(result) is list and all(type(entry) is dict and "operation_id" in entry for entry in result):
        return [_acknowledged(entry) for entry in result]
    return result


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"Format error in JSON body: {exc}") from exc


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _refusal(status: int, message: str, took_s: float) -> web.Response:
    return _json({"status": {"error": message}, "time": took_s}, status)

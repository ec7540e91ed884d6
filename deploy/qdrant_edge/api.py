"""The HTTP application: the part of Qdrant's REST API that there is, and our health paths, over one store.

Answers have Qdrant's form, `{"result": ..., "status": "ok", "time": seconds}`, and refusals too,
`{"status": {"error": "..."}, "time": seconds}`, so that `qdrant-client` works unchanged.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import web

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.errors import ApiError, not_supported
from deploy.qdrant_edge.requests import Json
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Kind, Worker
from service import metrics
from service.health import Health
from service.logging import get_logger

QDRANT_VERSION: Final = "1.19.2"
"""The API that is spoken; `qdrant-client` compares it with its own version."""

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
STOP_TIMEOUT_S: Final = 5.0
RETRY_AFTER_S: Final = 1
FLUSH_INTERVAL_S: Final = 30.0
"""Between two flushes: each stops the readers for as long as the disk takes, and only shortens the next start."""

COUNT_INTERVAL_S: Final = 5.0
CLIENT_GONE: Final = 499
"""Counted, never sent: nobody is there to read it."""

_OPEN_PATHS: Final = frozenset({"/", "/healthz", "/livez", "/readyz", "/live", "/ready", "/metrics"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Names = Mapping[str, str]
"""The parts of a path: `name` of the collection or alias, `id`, `field`."""


class Route(NamedTuple):
    """One call of the API.

    Args:
        method: HTTP method.
        path: with the parts of `Names`.
        kind: which queue it waits in.
        call: runs in its turn; takes the JSON body, None if the method has none.
    """

    method: str
    path: str
    kind: Kind
    call: Callable[[Store, Names, Json], Json]


def _to(call: Callable[[Collection, Json], Json]) -> Callable[[Store, Names, Json], Json]:
    return lambda store, names, body: call(store.collection(names["name"]), body)


def _write(kind: str) -> Callable[[Store, Names, Json], Json]:
    return _to(lambda collection, body: collection.write(kind, body))


_NAME: Final = "/collections/{name}"
_POINTS: Final = "/collections/{name}/points"

ROUTES: Final = (
    # The router tries them in this order: first what is asked for most.
    Route("POST", f"{_POINTS}/query", Kind.READ, _to(Collection.query)),
    Route("PUT", _POINTS, Kind.WRITE, _write("upsert")),
    Route("GET", "/collections", Kind.READ, lambda store, names, body: store.describe()),
    Route("GET", "/aliases", Kind.READ, lambda store, names, body: store.aliases()),
    Route("POST", "/collections/aliases", Kind.WRITE, lambda store, names, body: store.update_aliases(body)),
    Route("GET", _NAME, Kind.READ, _to(lambda collection, body: collection.info())),
    Route("PUT", _NAME, Kind.WRITE, lambda store, names, body: store.create(names["name"], body)),
    Route("PATCH", _NAME, Kind.WRITE, lambda store, names, body: store.update(names["name"], body)),
    Route("DELETE", _NAME, Kind.WRITE, lambda store, names, body: store.delete(names["name"])),
    Route("GET", f"{_NAME}/exists", Kind.READ, lambda store, names, body: {"exists": store.exists(names["name"])}),
    Route("GET", f"{_NAME}/aliases", Kind.READ, lambda store, names, body: store.aliases(names["name"])),
    Route("PUT", f"{_NAME}/index", Kind.WRITE, _to(Collection.create_index)),
    Route(
        "DELETE",
        f"{_NAME}/index/{{field}}",
        Kind.WRITE,
        lambda store, names, body: store.collection(names["name"]).delete_index(names["field"]),
    ),
    Route("POST", f"{_NAME}/facet", Kind.READ, _to(Collection.facet)),
    Route("POST", f"{_POINTS}/delete", Kind.WRITE, _write("delete")),
    Route("POST", f"{_POINTS}/payload", Kind.WRITE, _write("set_payload")),
    Route("PUT", f"{_POINTS}/payload", Kind.WRITE, _write("overwrite_payload")),
    Route("POST", f"{_POINTS}/payload/delete", Kind.WRITE, _write("delete_payload")),
    Route("POST", f"{_POINTS}/payload/clear", Kind.WRITE, _write("clear_payload")),
    Route("PUT", f"{_POINTS}/vectors", Kind.WRITE, _write("update_vectors")),
    Route("POST", f"{_POINTS}/vectors/delete", Kind.WRITE, _write("delete_vectors")),
    Route("POST", f"{_POINTS}/batch", Kind.WRITE, _to(Collection.write_batch)),
    Route("POST", f"{_POINTS}/query/batch", Kind.READ, _to(Collection.query_batch)),
    Route("POST", f"{_POINTS}/query/groups", Kind.READ, _to(Collection.query_groups)),
    Route("POST", f"{_POINTS}/scroll", Kind.READ, _to(Collection.scroll)),
    Route("POST", f"{_POINTS}/count", Kind.READ, _to(Collection.count)),
    Route("POST", _POINTS, Kind.READ, _to(Collection.retrieve)),
    Route(
        "GET",
        f"{_POINTS}/{{id}}",
        Kind.READ,
        lambda store, names, body: store.collection(names["name"]).get(names["id"]),
    ),
)


class Api:
    """The routes bound to one store.

    Args:
        store: open data folder.
        worker: gives each call its turn.
        health: what `/live`, `/ready` and `/metrics` say.
        api_key: asked of every call but the health paths, if set.
    """

    def __init__(self, store: Store, worker: Worker, health: Health, *, api_key: str | None = None) -> None:
        self._store = store
        self._worker = worker
        self._health = health
        self._api_key = api_key
        self._flush_failure: str | None = None
        health.add_check("disk", lambda: self._flush_failure)

    def runner(self) -> web.AppRunner:
        """Return what serves the routes; a client that goes away ends the handler, and so what it waits for."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._middleware])
        app.router.add_get("/", self._root)
        for path in ("/live", "/ready", "/metrics"):
            app.router.add_get(path, self._health_page)
        for path in ("/livez", "/healthz", "/readyz"):
            app.router.add_get(path, self._qdrant_health)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._endpoint(route))
        app.router.add_route("*", "/{path:.*}", _unknown_path)
        app.cleanup_ctx.append(self._keeping_house)
        return web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=STOP_TIMEOUT_S
        )

    def _endpoint(self, route: Route) -> Handler:
        has_body = route.method in {"POST", "PUT", "PATCH"}

        async def endpoint(request: web.Request) -> web.Response:
            started = time.perf_counter()
            self._worker.admit(route.kind)
            timeout_s = _timeout_s(request)
            body = await request.read() if has_body else b"null"
            result = await self._worker.run(
                route.kind, lambda: route.call(self._store, request.match_info, _parse(body)), timeout_s=timeout_s
            )
            if request.query.get("wait") != "true":
                result = _acknowledged(result)
            return _json({"result": result, "status": "ok", "time": time.perf_counter() - started})

        return endpoint

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for the key, answer every failure in Qdrant's form, and count every answer."""
        started = time.perf_counter()
        status = CLIENT_GONE
        try:
            answer = await self._refuse_failures(request, handler)
            status = answer.status
        finally:
            resource = request.match_info.route.resource
            route = resource.canonical if resource else "other"
            metrics.REQUESTS.labels(route, str(status)).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
        return answer

    async def _refuse_failures(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._has_key(request):
                return _refusal(401, "Must provide an API key or an Authorization bearer token")
            return await handler(request)
        except ApiError as error:
            if error.status == 500:
                get_logger().error("engine_failed", path=request.path, error=error.message)
            return _refusal(error.status, error.message)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"Payload error: JSON payload is larger than allowed ({MAX_BODY_BYTES} bytes)")
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        except Exception as error:  # noqa: BLE001 -- one bad request must not take the others with it
            get_logger().error("request_failed", path=request.path, error=repr(error), exc_info=error)
            return _refusal(500, f"Service internal error: {error!r}")

    def _has_key(self, request: web.Request) -> bool:
        if self._api_key is None or request.path in _OPEN_PATHS:
            return True
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = request.headers.get("api-key") or (bearer if scheme == "Bearer" else "")
        return hmac.compare_digest(given.encode(), self._api_key.encode())

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
        tasks = [
            asyncio.create_task(self._worker.work()),
            asyncio.create_task(self._every(FLUSH_INTERVAL_S, Kind.WRITE, self.flush)),
            asyncio.create_task(self._every(COUNT_INTERVAL_S, Kind.READ, self._count_points)),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _every(self, interval_s: float, kind: Kind, call: Callable[[], None]) -> None:
        while True:
            await self._worker.run(kind, call, must_run=True)
            await asyncio.sleep(interval_s)

    def flush(self) -> None:
        """Write out what changed; a disk that refuses makes the process not ready, and is tried again."""
        try:
            self._store.flush()
        except Exception as error:  # noqa: BLE001 -- Edge raises bare exceptions; the log still holds every write
            if self._flush_failure is None:
                get_logger().error("flush_failed", error=str(error))
            self._flush_failure = f"cannot write to disk: {error}"
        else:
            self._flush_failure = None

    def _count_points(self) -> None:
        metrics.INDEX_POINTS.clear()
        for name, points in self._store.points_counts().items():
            metrics.INDEX_POINTS.labels(name).set(points)


async def _unknown_path(request: web.Request) -> web.Response:
    raise not_supported(f"{request.method} {request.path}")


def _timeout_s(request: web.Request) -> int | None:
    """Return how long the caller will wait, None if it does not say."""
    given = request.query.get("timeout")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and int(given) >= 1):
        raise ApiError(
            400, f"Format error in query: timeout must be a whole number of seconds, at least 1, got {given!r:.80}"
        )
    return int(given)


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
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"Format error in JSON body: {error}") from error


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _refusal(status: int, message: str) -> web.Response:
    body = orjson.dumps({"status": {"error": message}, "time": 0.0})
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)

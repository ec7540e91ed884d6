"""The HTTP application: the part of Qdrant's REST API that there is, over one store.

Answers have Qdrant's form, `{"result": ..., "status": "ok", "time": seconds}`, and refusals too,
`{"status": {"error": "..."}, "time": seconds}`, so that `qdrant-client` works unchanged.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import web

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.graph import GraphBuilder
from deploy.qdrant_edge.requests import ApiError, Json, not_supported
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Kind, Worker
from service import metrics
from service.health import Health
from service.http import JSON, Handler, Refused, Route, build_app, read_body
from service.logging import get_logger

QDRANT_VERSION: Final = "1.19.2"
"""The API that is spoken; `qdrant-client` compares it with its own version."""

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
STOP_TIMEOUT_S: Final = 5.0
FLUSH_INTERVAL_S: Final = 30.0
"""Between two flushes: each stops the readers for as long as the disk takes, and only shortens the next start."""

COUNT_INTERVAL_S: Final = 5.0
_OPEN_PATHS: Final = frozenset({"/", "/healthz", "/livez", "/readyz", "/live", "/ready", "/metrics"})

Names = Mapping[str, str]
"""The parts of a path: `name` of the collection or alias, `id`, `field`."""


class Call(NamedTuple):
    """One call of the API: which queue it waits in, and what runs in its turn with the JSON body or None."""

    method: str
    path: str
    kind: Kind
    run: Callable[[Store, Names, Json], Json]


def _to(call: Callable[[Collection, Json], Json]) -> Callable[[Store, Names, Json], Json]:
    return lambda store, names, body: call(store.collection(names["name"]), body)


def _write(kind: str) -> Callable[[Store, Names, Json], Json]:
    return _to(lambda collection, body: collection.write(kind, body))


_NAME: Final = "/collections/{name}"
_POINTS: Final = "/collections/{name}/points"

CALLS: Final = (
    # The router tries them in this order: first what is asked for most.
    Call("POST", f"{_POINTS}/query", Kind.READ, _to(Collection.query)),
    Call("PUT", _POINTS, Kind.WRITE, _write("upsert")),
    Call("GET", "/collections", Kind.READ, lambda store, names, body: store.describe()),
    Call("GET", "/aliases", Kind.READ, lambda store, names, body: store.aliases()),
    Call("POST", "/collections/aliases", Kind.WRITE, lambda store, names, body: store.update_aliases(body)),
    Call("GET", _NAME, Kind.READ, _to(lambda collection, body: collection.info())),
    Call("PUT", _NAME, Kind.WRITE, lambda store, names, body: store.create(names["name"], body)),
    Call("PATCH", _NAME, Kind.WRITE, lambda store, names, body: store.update(names["name"], body)),
    Call("DELETE", _NAME, Kind.WRITE, lambda store, names, body: store.delete(names["name"])),
    Call("GET", f"{_NAME}/exists", Kind.READ, lambda store, names, body: {"exists": store.exists(names["name"])}),
    Call("GET", f"{_NAME}/aliases", Kind.READ, lambda store, names, body: store.aliases(names["name"])),
    Call("PUT", f"{_NAME}/index", Kind.WRITE, _to(Collection.create_index)),
    Call(
        "DELETE",
        f"{_NAME}/index/{{field}}",
        Kind.WRITE,
        lambda store, names, body: store.collection(names["name"]).delete_index(names["field"]),
    ),
    Call("POST", f"{_NAME}/facet", Kind.READ, _to(Collection.facet)),
    Call("POST", f"{_POINTS}/delete", Kind.WRITE, _write("delete")),
    Call("POST", f"{_POINTS}/payload", Kind.WRITE, _write("set_payload")),
    Call("PUT", f"{_POINTS}/payload", Kind.WRITE, _write("overwrite_payload")),
    Call("POST", f"{_POINTS}/payload/delete", Kind.WRITE, _write("delete_payload")),
    Call("POST", f"{_POINTS}/payload/clear", Kind.WRITE, _write("clear_payload")),
    Call("PUT", f"{_POINTS}/vectors", Kind.WRITE, _write("update_vectors")),
    Call("POST", f"{_POINTS}/vectors/delete", Kind.WRITE, _write("delete_vectors")),
    Call("POST", f"{_POINTS}/batch", Kind.WRITE, _to(Collection.write_batch)),
    Call("POST", f"{_POINTS}/query/batch", Kind.READ, _to(Collection.query_batch)),
    Call("POST", f"{_POINTS}/query/groups", Kind.READ, _to(Collection.query_groups)),
    Call("POST", f"{_POINTS}/scroll", Kind.READ, _to(Collection.scroll)),
    Call("POST", f"{_POINTS}/count", Kind.READ, _to(Collection.count)),
    Call("POST", _POINTS, Kind.READ, _to(Collection.retrieve)),
    Call(
        "GET",
        f"{_POINTS}/{{id}}",
        Kind.READ,
        lambda store, names, body: store.collection(names["name"]).get(names["id"]),
    ),
)


class Api:
    """The routes bound to one store; if there is a key, all but the health paths ask for it."""

    def __init__(self, store: Store, worker: Worker, health: Health, *, api_key: str | None = None) -> None:
        self._store = store
        self._worker = worker
        self._health = health
        self._api_key = api_key
        self._flush_failure: str | None = None
        health.add_check("disk", lambda: self._flush_failure)

    def app(self) -> web.Application:
        """Return the application; it works while it is served."""
        routes = [Route(call.method, call.path, self._handler(call)) for call in CALLS]
        routes.append(Route("GET", "/", _root, always=True))
        routes += [Route("GET", path, self._qdrant_health, always=True) for path in ("/livez", "/healthz", "/readyz")]
        routes.append(Route("*", "/{path:.*}", _unknown_path))
        app = build_app(self._health, routes, render=_refusal, middlewares=[self._checked])
        app.cleanup_ctx.append(self._keeping_house)
        return app

    def _handler(self, call: Call) -> Handler:
        has_body = call.method in {"POST", "PUT", "PATCH"}

        async def handler(request: web.Request) -> web.Response:
            started = time.perf_counter()
            self._worker.admit(call.kind)
            timeout_s = _timeout_s(request)
            types = (request.content_type,)  # a client may call it what it likes
            body = await read_body(request, limit_bytes=MAX_BODY_BYTES, types=types) if has_body else b"null"
            result = await self._worker.run(
                call.kind, lambda: call.run(self._store, request.match_info, _parse(body)), timeout_s=timeout_s
            )
            if request.query.get("wait") != "true":
                result = _acknowledged(result)
            return _json({"result": result, "status": "ok", "time": time.perf_counter() - started})

        return handler

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for the key, and log what the engine could not do."""
        if not self._has_key(request):
            raise ApiError(401, "Must provide an API key or an Authorization bearer token")
        try:
            return await handler(request)
        except ApiError as error:
            if error.status == 500:
                get_logger().error("engine_failed", path=request.path, error=error.detail)
            raise

    def _has_key(self, request: web.Request) -> bool:
        if self._api_key is None or request.path in _OPEN_PATHS:
            return True
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = request.headers.get("api-key") or (bearer if scheme == "Bearer" else "")
        return hmac.compare_digest(given.encode(), self._api_key.encode())

    async def _qdrant_health(self, request: web.Request) -> web.Response:
        if request.path != "/readyz":
            return web.Response(text="healthz check passed")
        reasons = self._health.against_readiness()
        return web.Response(status=503 if reasons else 200, text="; ".join(reasons) or "all shards are ready")

    async def _keeping_house(self, app: web.Application) -> AsyncIterator[None]:
        del app
        tasks = [
            asyncio.create_task(self._worker.work()),
            asyncio.create_task(GraphBuilder(self._store, self._worker).work()),
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


async def _root(_request: web.Request) -> web.Response:
    title = f"Millrace embedded Qdrant (Qdrant Edge {version('qdrant-edge-py')}), not a Qdrant server"
    return _json({"title": title, "version": QDRANT_VERSION, "commit": None})


async def _unknown_path(request: web.Request) -> web.Response:
    raise not_supported(f"{request.method} {request.path}")


def _timeout_s(request: web.Request) -> int | None:
    given = request.query.get("timeout")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and int(given) >= 1):
        raise ApiError(
            400, f"Format error in query: timeout must be a whole number of seconds, at least 1, got {given!r:.80}"
        )
    return int(given)


def _acknowledged(result: Any) -> Any:
    """Word an update's result as Qdrant does for a caller that did not ask to wait."""
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
    return web.Response(body=orjson.dumps(value), content_type=JSON)


def _refusal(refused: Refused) -> web.Response:
    body = orjson.dumps({"status": {"error": refused.detail}, "time": 0.0})
    return web.Response(status=refused.status, body=body, content_type=JSON, headers=refused.headers)

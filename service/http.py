"""The HTTP edge that every process has: routes, refusals, limits, request metrics, health, and how it is served.

A handler takes what it needs from the request, returns the answer, and raises what is against it: `Refused`, an error
of `contracts.errors`, or anything else, which is a fault of ours and one log line. All refusals have one form, problem
details (RFC 9457). Bodies are unpacked here, not by aiohttp, which would do it without a bound.
"""

import asyncio
import difflib
import logging
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ConfigDict, ValidationError

from contracts import wire
from contracts.errors import ContractError, DependencyDown, Expired, Overloaded, TransientError
from service import metrics
from service.health import HEALTH_PATHS, Health
from service.logging import get_logger
from service.process import Shutdown, listen_error

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
"""When a caller may come again after a 503: most of its causes pass within a second."""

CLIENT_GONE: Final = 499
"""Counted, never sent: nobody is there to read it."""
LONGEST_ADDRESS: Final = 8190
"""Characters of path and parameters: what other servers and proxies take."""
LONGEST_LINE_BYTES: Final = 64 * 1024
"""What is read of a request's first line, so that the refusal of an address is ours; a longer one is aiohttp's."""
BODY_TIMEOUT_S: Final = 30.0
_NO_TYPE: Final = "application/octet-stream"  # aiohttp's word for an absent header
_PACKED: Final = frozenset({"gzip", "deflate"})
_GZIP_OR_ZLIB: Final = 47  # zlib: 15 bits of window, plus 32 to tell the two headers apart

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
M = TypeVar("M", bound=BaseModel)


class Problem(BaseModel):
    """Why a request was refused, as problem details (RFC 9457); nothing of it was done."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    """The phrase of the HTTP status."""
    status: int
    detail: str
    """A sentence for people, with what to do."""
    reason: str
    """A stable word for programs."""
    field: str | None = None
    """The dotted path of what is to blame, if something is."""


class Refused(Exception):
    """A whole request is refused and nothing of it done: why in a stable word and in a sentence with the fix.

    `field` is the dotted path of what is to blame; `headers` go into the answer.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail.encode(errors="replace").decode()  # it may repeat a header that is not UTF-8
        self.field = field
        self.headers = dict(headers or {})


def come_again(status: int, reason: str, detail: str, *, after_s: float = RETRY_AFTER_S) -> Refused:
    """Make a refusal that says when to come back."""
    return Refused(status, reason, detail, headers={"Retry-After": str(max(1, round(after_s)))})


def problem(refused: Refused) -> web.Response:
    """Make the answer that a refusal becomes everywhere but in the embedded store, which speaks Qdrant's form."""
    body = Problem(
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=refused.detail,
        reason=refused.reason,
        field=refused.field,
    )
    content = body.model_dump_json(exclude_none=True).encode()
    return web.Response(status=refused.status, body=content, content_type=PROBLEM, headers=refused.headers)


def json_answer(content: BaseModel) -> web.Response:
    """Answer with content that was validated when it was made."""
    return web.Response(body=content.model_dump_json().encode(), content_type=JSON)


@dataclass(frozen=True, slots=True)
class Route:
    """One path; it is documented if it `gives` something, and `always` answered, beyond `max_open` too.

    GET answers HEAD too. What it `takes` is the form of the body, for GET of the parameters.
    """

    method: str
    path: str
    handler: Handler
    summary: str = ""
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    always: bool = False


def build_app(
    health: Health,
    routes: Iterable[Route] = (),
    *,
    max_open: int | None = None,
    render: Callable[[Refused], web.Response] = problem,
    middlewares: Sequence[Any] = (),
) -> web.Application:
    """Make an application with its health paths; requests beyond `max_open` are refused before their body is read."""

    async def answer_health(request: web.Request) -> web.StreamResponse:
        status, content_type, body = health.render(request.path) or (404, JSON, b"{}")
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    every = [*(Route("GET", path, answer_health, always=True) for path in HEALTH_PATHS), *routes]
    edge = _Edge(render, max_open, always={route.path for route in every if route.always})
    app = web.Application(middlewares=[edge.answer, *middlewares])
    for route in every:
        if route.method == "GET":
            app.router.add_get(route.path, route.handler)
        else:
            app.router.add_route(route.method, route.path, route.handler)
    return app


@dataclass(slots=True)
class _Edge:
    render: Callable[[Refused], web.Response]
    max_open: int | None
    always: Collection[str]
    open: int = 0

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request, whatever becomes of it; count and time it by route."""
        began_s = time.perf_counter()
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        try:
            response = await (handler(request) if route in self.always else self._bounded(request, handler))
        except asyncio.CancelledError:
            metrics.REQUESTS.labels(route, str(CLIENT_GONE)).inc()
            raise
        except Exception as error:  # noqa: BLE001 - each has its answer; what is a fault of ours is logged
            is_gone = isinstance(error, ConnectionError) and request.transport is None
            response = web.Response(status=CLIENT_GONE) if is_gone else self.render(_refusal(request, error))
        response.headers.setdefault("Cache-Control", "no-store")
        metrics.REQUESTS.labels(route, str(response.status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - began_s)
        return response

    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.max_open is not None and self.open >= self.max_open:
            raise come_again(503, "busy", "too many requests are under way; send it again")
        if len(request.raw_path) > LONGEST_ADDRESS:
            told = f"the address has {len(request.raw_path)} characters, and {LONGEST_ADDRESS} are taken"
            raise Refused(414, "address_too_long", f"{told}; send what it asks for as the body of a POST")
        self.open += 1
        try:
            return await handler(request)
        finally:
            self.open -= 1


def _refusal(request: web.Request, error: Exception) -> Refused:
    """Say what an error means to the caller; a fault of ours is logged and says nothing of the inside."""
    match error:
        case Refused():
            return error
        case web.HTTPException():
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            reason = HTTPStatus(error.status).name.lower()
            return Refused(error.status, reason, f"{request.method} {request.path}: {error.reason}", headers=allowed)
        case web.RequestPayloadError():
            return Refused(400, "malformed_body", f"the body cannot be read: {error}")
        case ContractError():
            return Refused(400, error.reason, str(error), field=error.field)
        case Expired():
            return Refused(410, "expired", f"{error.message}; {error.fix}")
        case DependencyDown() | TransientError():
            detail = f"{error.message}; {error.fix}" if error.fix else error.message
            after_s = error.retry_after_s if isinstance(error, TransientError) else RETRY_AFTER_S
            reason = "busy" if isinstance(error, Overloaded) else "unavailable"
            return come_again(503, reason, detail, after_s=after_s)
        case _:
            get_logger().error("request_failed", path=request.path, error=repr(error), exc_info=error)
            return Refused(500, "internal", "something failed here; the log says what")


async def read_body(
    request: web.Request, *, limit_bytes: int, types: Collection[str] = (JSON,), timeout_s: float = BODY_TIMEOUT_S
) -> bytes:
    """Read and unpack a body of at most `limit_bytes`, as sent and as unpacked, or refuse: 400, 408, 413 or 415."""
    if request.content_type not in {*types, _NO_TYPE}:
        raise Refused(415, "content_type", f"send {JSON}, not {request.content_type}")
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in {"identity", *_PACKED}:
        raise Refused(415, "content_encoding", f"send gzip, deflate or identity, not {encoding}")
    too_large = Refused(413, "too_large", f"the body may have {limit_bytes} bytes, unpacked; send less at once")
    if (request.content_length or 0) > limit_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit_bytes:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, "too_slow", f"the body did not arrive within {timeout_s:g} s") from error
    unpacked = _unpacked(body, limit_bytes) if encoding in _PACKED else bytes(body)
    if len(unpacked) > limit_bytes:
        raise too_large
    return unpacked


def _unpacked(body: bytearray, limit_bytes: int) -> bytes:
    """Unpack a body; of one that is too large, a byte more than the limit."""
    unpacker = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
    try:
        unpacked = unpacker.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise Refused(400, "malformed_body", f"the body is not packed as its header says: {error}") from error
    if len(unpacked) <= limit_bytes and (not unpacker.eof or unpacker.unused_data):
        raise Refused(400, "malformed_body", "the packed body breaks off, or something follows it")
    return unpacked


async def read_model(request: web.Request, model: type[M], *, limit_bytes: int) -> M:
    """Read a body as a model, or refuse as `read_body` does, and by 422 with the field that is wrong."""
    return _validated(model, wire.parse(await read_body(request, limit_bytes=limit_bytes)))


def read_parameters(request: web.Request, model: type[M]) -> M:
    """Read query parameters as a model, or refuse by 422; a parameter that is given more than once is a list."""
    given = {name: request.query.getall(name) for name in request.query}
    return _validated(model, {name: values if len(values) > 1 else values[0] for name, values in given.items()})


def _validated(model: type[M], content: Any) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        wrong = wire.contract_error(error, tagged=False)
        nearest = _nearest(model, wrong.field) if wrong.reason == "unknown_field" and wrong.field else None
        detail = f"{wrong}; did you mean {nearest}?" if nearest else str(wrong)
        raise Refused(422, wrong.reason, detail, field=wrong.field) from error


_MEANT: Final = {"limit": "k", "size": "k", "per_page": "k", "query": "q"}
"""What other search services call it -> what we do, spelled quite otherwise."""


def _nearest(model: type[BaseModel], path: str) -> str | None:
    """Return the field of a form that was probably meant by one that it does not have."""
    name = path
    while "." in name and (parent := name.partition(".")[0]) in model.model_fields:
        within, name = model.model_fields[parent].annotation, name.partition(".")[2]
        if not (isinstance(within, type) and issubclass(within, BaseModel)):
            return None
        model = within
    names = [field.alias or known for known, field in model.model_fields.items()]
    if _MEANT.get(name) in names:
        return _MEANT[name]
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


ADMIN_FINISH_S: Final = 1.0


def bind_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket; a port in use is `DependencyDown`, an address that cannot be had `UsageError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise listen_error(error, host=host, port=port) from error


@asynccontextmanager
async def serving(
    app: web.Application, listener: socket.socket, *, finish_s: float, end_abandoned: bool = False
) -> AsyncIterator[None]:
    """Answer inside the block; then take nothing more, finish what is under way, and close the socket.

    With `end_abandoned` a client that goes away ends its handler, and so what that waits for.
    """
    logging.getLogger("aiohttp.server").addFilter(_is_worth_a_line)
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        handler_cancellation=end_abandoned,
        shutdown_timeout=finish_s,
        max_line_size=LONGEST_LINE_BYTES,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        host, port = listener.getsockname()[:2]
        get_logger().info("listening", host=host, port=port)
        yield
    finally:
        await runner.cleanup()
        listener.close()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leave out what is no HTTP: whoever scans the port would fill the log with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


@contextmanager
def admin_server(health: Health, host: str, port: int) -> Iterator[int]:
    """Answer health and metrics of a process that has no other server, inside the block; give the port that was taken.

    A thread with an event loop of its own does so: a process busy with a training step still answers its supervisor.
    """
    listener, stop = bind_socket(host, port), Shutdown()

    async def answer() -> None:
        async with serving(build_app(health), listener, finish_s=ADMIN_FINISH_S):
            await stop.wait_async()

    thread = threading.Thread(target=lambda: asyncio.run(answer()), name="admin", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.request()
        thread.join()
        stop.close()

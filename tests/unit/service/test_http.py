"""The HTTP edge: one form of refusal, bounded bodies, bounded requests, and a server that ends cleanly."""

import asyncio
import gzip
import http.client
import json
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY
from pydantic import BaseModel, ConfigDict

from contracts.errors import DependencyDown, InvariantError, MalformedMessage, TransientError, UsageError
from contracts.telemetry import Process
from service.health import Health
from service.http import (
    AdminServer,
    Refused,
    Route,
    bind_socket,
    build_app,
    come_again,
    json_answer,
    read_body,
    read_model,
    read_parameters,
    serving,
)
from tests.support.poll import eventually_async

LIMIT_BYTES = 1_000

Client = TestClient[Any, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Wish(BaseModel):
    """What the routes of these tests take."""

    model_config = ConfigDict(extra="forbid")

    name: str
    count: int = 1


async def echo(request: web.Request) -> web.StreamResponse:
    """Answer with the body as it was read."""
    return web.Response(body=await read_body(request, limit_bytes=LIMIT_BYTES, timeout_s=0.2))


async def wish(request: web.Request) -> web.StreamResponse:
    """Answer with the body as a model."""
    return json_answer(await read_model(request, Wish, limit_bytes=LIMIT_BYTES))


async def wish_by_parameters(request: web.Request) -> web.StreamResponse:
    """Answer with the parameters as a model."""
    return json_answer(read_parameters(request, Wish))


def failing(error: Exception) -> Handler:
    """Return a handler that fails so."""

    async def fail(_request: web.Request) -> web.StreamResponse:
        """Fail."""
        raise error

    return fail


@asynccontextmanager
async def asking(*routes: Route, health: Health | None = None, **options: Any) -> AsyncIterator[Client]:
    """Give a client of an application with these routes."""
    server = TestServer(build_app(health or Health(Process.SEARCH), routes, **options))
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client:
        yield client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Give a client of the routes above."""
    routes = (
        Route("POST", "/echo", echo),
        Route("POST", "/wish", wish),
        Route("GET", "/wish", wish_by_parameters),
    )
    async with asking(*routes) as client:
        yield client


async def refusal(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the body of a refusal, which has the one form that all have."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = await answer.json()
    assert (body["type"], body["status"]) == ("about:blank", answer.status)
    assert body["title"]
    assert body["detail"]
    assert set(body) <= {"type", "title", "status", "detail", "reason", "field"}
    return body


@pytest.mark.parametrize(
    ("error", "status", "reason", "header"),
    [
        (Refused(401, "no_key", "send it", headers={"WWW-Authenticate": "Bearer"}), 401, "no_key", "WWW-Authenticate"),
        (come_again(429, "rate_limited", "slower", after_s=7.2), 429, "rate_limited", "Retry-After"),
        (DependencyDown("Qdrant is away", fix="start it"), 503, "unavailable", "Retry-After"),
        (TransientError("not now", retry_after_s=0.2), 503, "unavailable", "Retry-After"),
        (MalformedMessage("malformed_json", "not JSON"), 400, "malformed_json", None),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405, "method_not_allowed", "Allow"),
        (web.RequestPayloadError("bad chunk"), 400, "malformed_body", None),
        (web.HTTPNotFound(), 404, "not_found", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_whatever_is_against_a_request_has_one_form(
    error: Exception, status: int, reason: str, header: str | None
) -> None:
    """Refusals, errors of ours and aiohttp's become problem details, with the header that says what to do."""
    async with asking(Route("GET", "/it", failing(error))) as client:
        answer = await client.get("/it")
        assert (answer.status, (await refusal(answer))["reason"]) == (status, reason)
        assert header is None or header in answer.headers


async def test_when_to_come_again_is_whole_seconds_and_at_least_one() -> None:
    """RFC 9110 knows no fractions, and 0 would ask for a busy loop."""
    waits = [come_again(503, "busy", "later", after_s=after_s).headers["Retry-After"] for after_s in (0.2, 1, 7.4)]
    assert waits == ["1", "1", "7"]


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("/etc/secret"), InvariantError("/etc/secret"), ConnectionRefusedError("/etc/secret")],
    ids=["bug", "ours", "a server behind us"],
)
async def test_a_fault_of_ours_is_one_line_and_says_nothing_of_the_inside(error: Exception) -> None:
    """The answer is 500 without the cause, which is in the log; the next request is answered."""
    async with asking(Route("GET", "/it", failing(error))) as client:
        with structlog.testing.capture_logs() as lines:
            answer = await client.get("/it")
        assert (answer.status, (await refusal(answer))["reason"]) == (500, "internal")
        assert "secret" not in await answer.text()
        assert (await client.get("/live")).status == 200
    assert [line["event"] for line in lines] == ["request_failed"]


async def test_a_field_to_blame_is_named() -> None:
    """`field` stands in the answer only if something is to blame."""
    async with asking(Route("GET", "/it", failing(Refused(422, "missing", "no k", field="k")))) as client:
        assert (await refusal(await client.get("/it")))["field"] == "k"
        assert "field" not in await refusal(await client.get("/nothing"))


async def test_a_refusal_can_speak_another_language() -> None:
    """An API that is another's keeps that one's form of refusal, for unknown paths too."""

    def render(refused: Refused) -> web.Response:
        """Answer as the other API does."""
        return web.json_response({"status": {"error": refused.detail}}, status=refused.status)

    async with asking(render=render) as client:
        answer = await client.get("/nothing")
        assert answer.status == 404
        assert "/nothing" in (await answer.json())["status"]["error"]


async def test_health_answers_get_and_head() -> None:
    """The three paths are there without being asked for; with a query they are the same."""
    health = Health(Process.SEARCH)
    health.add_check("pair", lambda: "nothing is served yet")
    async with asking(health=health) as client:
        assert (await client.get("/live?verbose=1")).status == 200
        ready = await client.head("/ready")
        assert (ready.status, await ready.read()) == (503, b"")
        assert (await client.get("/metrics")).content_type == "text/plain"


async def test_answers_are_not_kept_unless_they_say_so() -> None:
    """No cache in between answers for us."""

    async def kept(_request: web.Request) -> web.StreamResponse:
        """Answer what may be kept."""
        return web.Response(headers={"Cache-Control": "max-age=60"})

    async with asking(Route("GET", "/kept", kept)) as client:
        answers = [await client.get(path) for path in ("/kept", "/live", "/nothing")]
    assert [answer.headers["Cache-Control"] for answer in answers] == ["max-age=60", "no-store", "no-store"]


async def test_requests_are_counted_by_route(client: Client) -> None:
    """By the route as it is declared: whoever invents paths makes no series."""

    def counted(route: str, code: str) -> float:
        """Return how many answers there were so far."""
        labels = {"route": route, "code": code}
        return REGISTRY.get_sample_value("millrace_requests_total", labels) or 0.0

    known, unknown = counted("/wish", "200"), counted("unknown", "404")
    await client.get("/wish?name=x")
    await client.get("/one")
    await client.get("/other")
    assert (counted("/wish", "200"), counted("unknown", "404")) == (known + 1, unknown + 2)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("identity", bytes), ("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)],
    ids=["identity", "gzip", "capitals", "deflate"],
)
async def test_a_packed_body_is_unpacked(client: Client, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """Up to the limit, byte for byte; one byte more is 413, however small it was packed."""
    headers = {"Content-Encoding": encoding}
    most = await client.post("/echo", data=pack(b"x" * LIMIT_BYTES), headers=headers)
    assert (most.status, await most.read()) == (200, b"x" * LIMIT_BYTES)
    more = await client.post("/echo", data=pack(b"x" * (LIMIT_BYTES + 1)), headers=headers)
    assert (more.status, (await refusal(more))["reason"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"no gzip", {"Content-Encoding": "gzip"}, 400, "malformed_body"),
        (gzip.compress(b"{}")[:-4], {"Content-Encoding": "gzip"}, 400, "malformed_body"),
        (gzip.compress(b"{}") + b"more", {"Content-Encoding": "gzip"}, 400, "malformed_body"),
        (gzip.compress(b"x" * 10**7), {"Content-Encoding": "gzip"}, 413, "too_large"),
        (b"{}", {"Content-Encoding": "zstd"}, 415, "content_encoding"),
        (b"{}", {"Content-Type": "text/html"}, 415, "content_type"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "content_type"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(
    client: Client, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    """The status says whose mistake it is; nothing larger than the limit is ever unpacked."""
    answer = await client.post("/echo", data=body, headers=headers)
    assert (answer.status, (await refusal(answer))["reason"]) == (status, reason)


async def test_a_body_that_does_not_arrive_is_given_up(client: Client) -> None:
    """A sender that stops half-way gets 408 after the time it has, and holds no request."""
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()


async def test_a_caller_that_goes_away_is_nobodys_fault() -> None:
    """A connection that closes half-way through the body makes no log line and holds no request."""
    reading, ended = asyncio.Event(), asyncio.Event()

    async def read(request: web.Request) -> web.StreamResponse:
        """Read the body, and say when that begins and ends."""
        reading.set()
        try:
            return web.Response(body=await read_body(request, limit_bytes=LIMIT_BYTES))
        finally:
            ended.set()

    async with asking(Route("POST", "/read", read), max_open=1) as client:
        _, writer = await asyncio.open_connection(client.server.host, client.server.port)
        with structlog.testing.capture_logs() as lines:
            writer.write(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await asyncio.wait_for(reading.wait(), 10)
            writer.close()
            await asyncio.wait_for(ended.wait(), 10)
            assert (await client.post("/read", data=b"{}")).status == 200
    assert lines == []


async def test_a_declared_size_is_refused_before_the_body_comes(client: Client) -> None:
    """Not a byte of a body that is too large has to be sent."""
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()


@pytest.mark.parametrize(
    ("method", "given", "status", "reason", "field"),
    [
        ("POST", b'{"name": "x", "count": 2}', 200, None, None),
        ("POST", b"{", 400, "malformed_json", None),
        ("POST", b"", 400, "malformed_json", None),
        ("POST", b'{"name": NaN}', 400, "malformed_json", None),
        ("POST", b"[]", 422, "wrong_type", None),
        ("POST", b"{}", 422, "missing", "name"),
        ("POST", b'{"name": "x", "size": 1}', 422, "unknown_field", "size"),
        ("GET", b"name=x&count=2", 200, None, None),
        ("GET", b"", 422, "missing", "name"),
        ("GET", b"name=x&count=many", 422, "wrong_type", "count"),
        ("GET", b"name=x&name=y", 422, "wrong_type", "name"),
        ("GET", b"name=x&size=1", 422, "unknown_field", "size"),
    ],
)
async def test_what_a_model_does_not_take_is_named(
    client: Client, method: str, given: bytes, status: int, reason: str | None, field: str | None
) -> None:
    """400 if it cannot be read at all, 422 with the field if a value is wrong; the same for body and parameters."""
    if method == "POST":
        answer = await client.post("/wish", data=given, headers={"Content-Type": "application/json"})
    else:
        answer = await client.get(f"/wish?{given.decode()}")
    assert answer.status == status
    if reason is None:
        assert await answer.json() == {"name": "x", "count": 2}
        assert answer.headers["Content-Type"] == "application/json"
    else:
        body = await refusal(answer)
        assert (body["reason"], body.get("field")) == (reason, field)


class Gate:
    """A handler that waits until the test lets it go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.open = asyncio.Event()

    async def pass_through(self, _request: web.Request) -> web.StreamResponse:
        """Wait, then answer."""
        self.waiting += 1
        await self.open.wait()
        return web.Response(text="done")

    async def has(self, count: int) -> None:
        """Wait until so many requests are here."""

        async def here() -> bool:
            """Return whether they are."""
            return self.waiting == count

        await eventually_async(here, interval_s=0.01)


async def test_requests_beyond_those_that_may_be_under_way_are_refused_unread() -> None:
    """503 with Retry-After before the body is read; health is answered; an end makes room for the next."""
    gate = Gate()
    async with asking(Route("POST", "/slow", gate.pass_through), max_open=2) as client:
        under_way = [asyncio.create_task(client.post("/slow", data=b"{}")) for _ in range(2)]
        await gate.has(2)
        reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
        writer.write(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")  # and no body at all
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
        assert b" 503 " in head
        assert b"Retry-After: 1" in head
        assert (await client.get("/ready")).status == 200
        gate.open.set()
        assert [(await answer).status for answer in under_way] == [200, 200]
        assert (await client.post("/slow", data=b"{}")).status == 200
        assert gate.waiting == 3


async def test_a_request_that_fails_makes_room_too() -> None:
    """However a request ends, it is under way no more."""
    async with asking(Route("GET", "/it", failing(ZeroDivisionError())), max_open=1) as client:
        assert [(await client.get("/it")).status for _ in range(3)] == [500] * 3


async def test_a_route_may_be_answered_always() -> None:
    """A health path of another API is neither counted nor refused."""
    gate = Gate()

    async def alive(_request: web.Request) -> web.StreamResponse:
        """Answer."""
        return web.Response()

    async with asking(
        Route("GET", "/slow", gate.pass_through), Route("GET", "/livez", alive, always=True), max_open=1
    ) as client:
        under_way = asyncio.create_task(client.get("/slow"))
        await gate.has(1)
        assert (await client.get("/slow")).status == 503
        assert (await client.get("/livez")).status == 200
        gate.open.set()
        assert (await under_way).status == 200


async def test_a_middleware_speaks_inside_the_edge() -> None:
    """What it raises is rendered and counted as any other refusal."""

    @web.middleware
    async def nobody(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse everybody."""
        raise Refused(403, "nobody", f"nobody may have {request.path} of {handler}")

    async with asking(middlewares=[nobody]) as client:
        answer = await client.get("/live")
        assert (answer.status, (await refusal(answer))["reason"]) == (403, "nobody")


async def test_a_clean_end_answers_what_is_under_way_and_frees_the_port() -> None:
    """A request that came before the end is answered; afterwards nobody listens and the port is free at once."""
    gate = Gate()
    listener = bind_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with aiohttp.ClientSession() as session:
        server = serving(
            build_app(Health(Process.SEARCH), [Route("GET", "/slow", gate.pass_through)]), listener, finish_s=10
        )
        await server.__aenter__()
        under_way = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/slow"))
        await gate.has(1)
        ending = asyncio.create_task(server.__aexit__(None, None, None))

        async def refuses() -> bool:
            """Return whether nobody listens any more."""
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return True
            writer.close()
            return False

        await eventually_async(refuses)
        assert not ending.done()
        gate.open.set()
        assert await (await under_way).text() == "done"
        await ending
    bind_socket("127.0.0.1", port).close()


async def test_the_end_does_not_wait_for_ever() -> None:
    """A request that does not end is cut off after the time it has."""
    gate = Gate()
    listener = bind_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/slow"
    async with aiohttp.ClientSession() as session:
        async with serving(
            build_app(Health(Process.SEARCH), [Route("GET", "/slow", gate.pass_through)]), listener, finish_s=0.05
        ):
            under_way = asyncio.create_task(session.get(url))
            await gate.has(1)
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(under_way, 10)


def ask(server: AdminServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask a server over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_admin_server_answers_while_the_main_thread_is_busy() -> None:
    """Health over HTTP needs no turn of the process's own loop."""
    with AdminServer(Health(Process.TRAINER), "127.0.0.1", 0) as server:
        assert ask(server, "/ready")[0] == 200
        assert ask(server, "/ready", "HEAD") == (200, b"")
        status, body = ask(server, "/nothing")
        assert (status, json.loads(body)["reason"]) == (404, "not_found")


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    """After the end the port can be taken again, at once, although a connection was left open."""
    server = AdminServer(Health(Process.TRAINER), "127.0.0.1", 0).start()
    silent = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    silent.request("GET", "/live")
    silent.getresponse().read()
    server.close()
    server.close()
    silent.close()
    bind_socket("127.0.0.1", server.port).close()
    assert "admin" not in {thread.name for thread in threading.enumerate()}


def test_a_server_that_never_started_can_be_closed() -> None:
    """A failed start does not hang on its way out."""
    server = AdminServer(Health(Process.TRAINER), "127.0.0.1", 0)
    server.close()
    bind_socket("127.0.0.1", server.port).close()


def test_a_busy_port_is_one_clear_line() -> None:
    """The message names the port, the fix the setting; exit code 4."""
    with bind_socket("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(DependencyDown, match=f"port {port} is in use") as caught:
            AdminServer(Health(Process.TRAINER), "127.0.0.1", port)
    assert "MILLRACE_PORT" in caught.value.fix
    assert caught.value.exit_code == 4


def test_a_foreign_address_is_one_clear_line() -> None:
    """An address of another machine cannot be listened on."""
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        bind_socket("192.0.2.1", 0)

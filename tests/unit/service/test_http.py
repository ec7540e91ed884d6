"""The HTTP edge: one form of refusal, health, metrics by route, and a bound on requests under way."""

import asyncio

import pytest
import structlog
from aiohttp import web
from prometheus_client import REGISTRY

from contracts.errors import DependencyDown, InvariantError, MalformedMessage, TransientError
from contracts.telemetry import Process
from service.health import Health
from service.http import (
    Handler,
    Refused,
    Route,
    come_again,
)
from tests.support.http import Gate, asking, refusal


def failing(error: Exception) -> Handler:
    """Return a handler that fails so."""

    async def fail(_request: web.Request) -> web.StreamResponse:
        """Fail."""
        raise error

    return fail


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


async def test_requests_are_counted_by_route() -> None:
    """By the route as it is declared: whoever invents paths makes no series."""

    def counted(route: str, code: str) -> float:
        """Return how many answers there were so far."""
        labels = {"route": route, "code": code}
        return REGISTRY.get_sample_value("millrace_requests_total", labels) or 0.0

    async def answer(_request: web.Request) -> web.StreamResponse:
        """Answer."""
        return web.Response()

    known, unknown = counted("/wish/{name}", "200"), counted("unknown", "404")
    async with asking(Route("GET", "/wish/{name}", answer)) as client:
        for path in ("/wish/fridge", "/wish/lamp", "/one", "/other", "/third"):
            await client.get(path)
    assert (counted("/wish/{name}", "200"), counted("unknown", "404")) == (known + 2, unknown + 3)


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

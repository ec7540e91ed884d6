"""Servers that end cleanly: what is under way is answered, and the port is free at once."""

import asyncio
import http.client
import json
import logging
import threading

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from contracts.errors import DependencyDown, UsageError
from contracts.telemetry import Process
from service.health import Health
from service.http import (
    CLIENT_GONE,
    LONGEST_ADDRESS,
    PROBLEM,
    Route,
    admin_server,
    bind_socket,
    build_app,
    read_body,
    serving,
)
from tests.support.http import Gate
from tests.support.poll import eventually_async


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


async def test_who_hangs_up_while_sending_is_counted_and_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Phones do so all day: the log stays readable."""

    async def read(request: web.Request) -> web.StreamResponse:
        """Read the body."""
        return web.Response(body=await read_body(request, limit_bytes=100))

    def gone() -> float:
        """How often that was counted."""
        labels = {"route": "/sent-in-part", "code": str(CLIENT_GONE)}
        return REGISTRY.get_sample_value("millrace_requests_total", labels) or 0.0

    async def is_counted() -> bool:
        """Whether it was."""
        return gone() == 1

    listener = bind_socket("127.0.0.1", 0)
    app = build_app(Health(Process.SEARCH), [Route("POST", "/sent-in-part", read)])
    async with serving(app, listener, finish_s=1):
        _, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        writer.write(b'POST /sent-in-part HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"quer')
        await writer.drain()
        writer.close()
        await eventually_async(is_counted)
    assert [record for record in caplog.records if record.name == "aiohttp.server"] == []


async def test_what_is_no_http_is_answered_and_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever scans the port gets 400, and the log stays readable; aiohttp's other complaints pass."""
    listener = bind_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with serving(build_app(Health(Process.SEARCH)), listener, finish_s=1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /live?q=\xff HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        logging.getLogger("aiohttp.server").error("Unhandled exception", exc_info=ZeroDivisionError())
    assert [record.getMessage() for record in caplog.records] == ["Unhandled exception"]


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask a server over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def test_an_address_that_is_too_long_is_refused_as_everything_else_is() -> None:
    """What a body has room for does not fit into parameters; up to the limit it is answered."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        """Answer anything."""
        return web.Response(text="done")

    listener = bind_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/asked?q="
    app = build_app(Health(Process.SEARCH), [Route("GET", "/asked", answer)])
    async with serving(app, listener, finish_s=1), aiohttp.ClientSession() as session:
        assert await (await session.get(url + "x" * (LONGEST_ADDRESS - len("/asked?q=")))).text() == "done"
        refused = await session.get(url + "x" * LONGEST_ADDRESS)
        problem = await refused.json(content_type=PROBLEM)
    assert (refused.status, problem["status"], problem["reason"]) == (414, 414, "address_too_long")
    assert "as the body of a POST" in problem["detail"]


def test_the_admin_server_answers_while_the_main_thread_is_busy() -> None:
    """Health over HTTP needs no turn of the process's own loop."""
    with admin_server(Health(Process.TRAINER), "127.0.0.1", 0) as port:
        assert ask(port, "/ready")[0] == 200
        assert ask(port, "/ready", "HEAD") == (200, b"")
        status, body = ask(port, "/nothing")
        assert (status, json.loads(body)["reason"]) == (404, "not_found")


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    """After the end the port can be taken again, at once, although a connection was left open."""
    with admin_server(Health(Process.TRAINER), "127.0.0.1", 0) as port:
        silent = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        silent.request("GET", "/live")
        silent.getresponse().read()
    silent.close()
    bind_socket("127.0.0.1", port).close()
    assert "admin" not in {thread.name for thread in threading.enumerate()}


def test_a_failed_start_frees_the_port() -> None:
    """A process that cannot start does not hang on its way out, not even before the server answered."""
    with pytest.raises(ZeroDivisionError), admin_server(Health(Process.TRAINER), "127.0.0.1", 0) as port:
        raise ZeroDivisionError
    bind_socket("127.0.0.1", port).close()
    assert "admin" not in {thread.name for thread in threading.enumerate()}


def test_a_busy_port_is_one_clear_line() -> None:
    """The message names the port, the fix the setting; exit code 4."""
    with bind_socket("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with (
            pytest.raises(DependencyDown, match=f"port {port} is in use") as caught,
            admin_server(Health(Process.TRAINER), "127.0.0.1", port),
        ):
            pass
    assert "MILLRACE_PORT" in caught.value.fix
    assert caught.value.exit_code == 4


def test_a_foreign_address_is_one_clear_line() -> None:
    """An address of another machine cannot be listened on."""
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        bind_socket("192.0.2.1", 0)

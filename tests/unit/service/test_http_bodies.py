"""Bodies and parameters: bounded, unpacked, and refused by what is wrong with them."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict

from service.http import (
    Route,
    json_answer,
    read_body,
    read_model,
    read_parameters,
)
from tests.support.http import Client, asking, refusal

LIMIT_BYTES = 1_000


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
        (gzip.compress(b"{}", mtime=0)[:-4], {"Content-Encoding": "gzip"}, 400, "malformed_body"),
        (gzip.compress(b"{}", mtime=0) + b"more", {"Content-Encoding": "gzip"}, 400, "malformed_body"),
        (gzip.compress(b"x" * 10**7, mtime=0), {"Content-Encoding": "gzip"}, 413, "too_large"),
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

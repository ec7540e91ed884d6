"""What tests of the HTTP edge share: a client of any routes, the form of a refusal, and a handler that waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from contracts.telemetry import Process
from service.health import Health
from service.http import Route, build_app
from tests.support.poll import eventually_async

Client = TestClient[Any, Any]


@asynccontextmanager
async def asking(*routes: Route, health: Health | None = None, **options: Any) -> AsyncIterator[Client]:
    """Give a client of an application with these routes."""
    server = TestServer(build_app(health or Health(Process.SEARCH), routes, **options))
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client:
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

"""A small open store and the HTTP application over it."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from typing_extensions import override

from contracts.telemetry import Process
from deploy.qdrant_edge.api import STOP_TIMEOUT_S, Api
from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.requests import ApiError
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Worker
from service.health import Health
from service.http import bind_socket
from service.http import serving as http_serving

Http = ClientSession

CREATE: dict[str, Any] = {"vectors": {"product": {"size": 2, "distance": "Cosine"}}, "metadata": {"release": 1}}

PAYLOADS: dict[int, dict[str, Any]] = {
    1: {"brand": "Acme", "price": 100.0, "stock": 1, "flag": True, "tags": ["a", "b"], "at": "2026-01-01T00:00:00Z"},
    2: {"brand": "Bolt", "price": 200.0, "stock": 0, "flag": False, "tags": ["b"], "at": "2026-06-01T00:00:00Z"},
    3: {"brand": "Acme", "price": 300.0, "stock": 1, "note": None, "parts": [{"kind": "x", "n": 1}, {"kind": "y"}]},
    4: {"brand": "Core", "title": "quiet fridge"},
}


def point(identity: int, **payload: Any) -> dict[str, Any]:
    """Return a point as REST takes it, further from (1, 0) the larger its id."""
    angle = identity / 10
    return {"id": identity, "vector": {"product": [math.cos(angle), math.sin(angle)]}, "payload": payload}


@contextmanager
def refused(status: int, match: str | None = None) -> Iterator[None]:
    """Check that what runs inside is refused with a status, in a sentence that holds a pattern."""
    with pytest.raises(ApiError, match=match) as refusal:
        yield
    assert refusal.value.status == status, refusal.value


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store on disk."""
    opened = Store(tmp_path / "qdrant")
    yield opened
    opened.close()


@pytest.fixture
def collection(store: Store) -> Collection:
    """A collection of four points, two of their fields indexed."""
    return _shop(store)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    """The same, made once for all tests of a module that only read."""
    opened = Store(tmp_path_factory.mktemp("shop") / "qdrant")
    yield _shop(opened)
    opened.close()


def _shop(store: Store) -> Collection:
    """Make and fill the collection."""
    store.create("shop", CREATE)
    made = store.collection("shop")
    made.create_index({"field_name": "brand", "field_schema": "keyword"})
    made.create_index({"field_name": "price", "field_schema": {"type": "float"}})
    made.write("upsert", {"points": [point(identity, **payload) for identity, payload in PAYLOADS.items()]})
    return made


class HeldWorker(Worker):
    """A worker that begins nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()

    @override
    async def work(self) -> None:
        """Wait to be let go, then work."""
        await self.let_go.wait()
        await super().work()


@pytest.fixture
def api(store: Store) -> Api:
    """The application's owner, over an empty store, without a key."""
    return Api(store, Worker(), Health(Process.QDRANT))


@asynccontextmanager
async def serving(api: Api) -> AsyncIterator[Http]:
    """Serve the application as its process does, and give a client of it."""
    listener = bind_socket("127.0.0.1", 0)
    async with (
        http_serving(api.app(), listener, finish_s=STOP_TIMEOUT_S, end_abandoned=True),
        ClientSession(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
    ):
        yield client


@pytest.fixture
async def http(api: Api) -> AsyncIterator[Http]:
    """A client of the application."""
    async with serving(api) as client:
        yield client


@pytest.fixture
async def guarded_http(store: Store) -> AsyncIterator[Http]:
    """The same behind a key."""
    async with serving(Api(store, Worker(), Health(Process.QDRANT), api_key="sesame")) as client:
        yield client

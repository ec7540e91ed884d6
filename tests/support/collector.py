"""What tests of the collector share: events as a site sends them, a log that can fail, a memory, a client."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.test_utils import TestClient, TestServer

from contracts.errors import TransientError
from contracts.telemetry import Process
from service.health import Health
from streams.collector.access import Keys
from streams.collector.intake import OutgoingRecord
from streams.collector.web import MAX_OPEN_REQUESTS, Collector, Policy, Recollection, build

NOW_MS: Final = 1_795_196_600_000
SEARCH_TIME_MS: Final = NOW_MS - 30_000
WRITE = {"Authorization": "Bearer write"}
SECRET = {"Authorization": "Bearer secret"}
SHOP = "https://shop.example"
POLICY = Policy(Keys(b"write", b"secret"), b"person", origins=(SHOP,))


def click(event_id: str = "e1", **fields: Any) -> dict[str, Any]:
    """Return a click five seconds ago."""
    return {
        "type": "click",
        "event_id": event_id,
        "event_time": NOW_MS - 5_000,
        "session_id": "k3",
        "client_id": "c9",
        "search_id": "s1",
        "search_time": SEARCH_TIME_MS,
        "product_id": "P-1",
        "position": 1,
        **fields,
    }


def impression(event_id: str = "i1", **fields: Any) -> dict[str, Any]:
    """Return an impression of two products."""
    return {
        "type": "impression",
        "event_id": event_id,
        "event_time": SEARCH_TIME_MS,
        "session_id": "k3",
        "client_id": "c9",
        "search_id": "s1",
        "query": "quiet fridge for a bachelor",
        "slots": [{"product_id": "P-1", "position": 1}, {"product_id": "P-2", "position": 2}],
        **fields,
    }


def purchase(*search_ids: str | None, event_id: str = "b1", **fields: Any) -> dict[str, Any]:
    """Return an order with one line per search."""
    lines = [{"product_id": f"P-{number}", "quantity": 1} for number in range(len(search_ids))]
    for line, search_id in zip(lines, search_ids, strict=True):
        if search_id is not None:
            line |= {"search_id": search_id, "search_time": SEARCH_TIME_MS}
    return {
        "type": "purchase",
        "event_id": event_id,
        "event_time": NOW_MS - 1_000,
        "session_id": "k3",
        "client_id": "c9",
        "order_id": "O-7",
        "items": lines,
        **fields,
    }


def product(product_id: str = "P-1", **fields: Any) -> dict[str, Any]:
    """Return a product message."""
    return {"type": "product", "product_id": product_id, "version": 7, "title": "Quiet fridge", "price": 499, **fields}


class MemoryLog:
    """A record log in memory that can refuse to acknowledge."""

    def __init__(self) -> None:
        self.records: list[OutgoingRecord] = []
        self.acknowledges = True

    async def write(self, records: Sequence[OutgoingRecord]) -> None:
        """Keep the records, or fail."""
        if not self.acknowledges:
            raise TransientError("told to fail")
        self.records.extend(records)


class PlainMemory:
    """A memory that never forgets; `gone` makes it answer as when Redis is down."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.counts: dict[tuple[str, int], int] = {}
        self.gone = False

    async def recall(self, identities: Sequence[str], *, caller: str, item_count: int, window: int) -> Recollection:
        """Return what was seen and count the items."""
        if self.gone:
            return Recollection()
        self.counts[caller, window] = self.counts.get((caller, window), 0) + item_count
        return Recollection(frozenset(self.seen & set(identities)), self.counts[caller, window])

    async def remember(self, identities: Sequence[str]) -> None:
        """Mark events."""
        if not self.gone:
            self.seen.update(identities)


@dataclass
class Running:
    """A collector under test."""

    client: TestClient[Any, Any]
    log: MemoryLog
    memory: PlainMemory
    health: Health

    async def post(self, path: str, body: Any, **options: Any) -> aiohttp.ClientResponse:
        """Post JSON, with the write key unless told otherwise."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **options.pop("headers", WRITE)}
        return await self.client.post(path, data=io.BytesIO(content), headers=headers, **options)

    async def send(self, *events: Any, **options: Any) -> dict[str, Any]:
        """Post events and return the answer."""
        response = await self.post("/v1/events", {"events": list(events)}, **options)
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def start(policy: Policy, *, max_open: int = MAX_OPEN_REQUESTS) -> Running:
    """Start a collector."""
    log, memory, health = MemoryLog(), PlainMemory(), Health(Process.COLLECTOR)
    collector = Collector(policy, log, memory=memory, now_ms=lambda: NOW_MS)
    server = TestServer(build(collector, health, max_open=max_open))
    await server.start_server(auto_decompress=False)
    return Running(TestClient(server), log, memory, health)


def statuses(answer: dict[str, Any]) -> list[str]:
    """Return the status of each item."""
    return [result["status"] for result in answer["results"]]

"""A collector written by hand: the peer that ours is measured beside. It shares no code with Millrace.

Of a batch of events it checks the key, each event's form (type, id, time, its list's slots) and whether the event was
acknowledged before (in its own memory, of the last 100,000), stamps the time, writes each event to Kafka under its
search, and answers once all are acknowledged. It protects no person's id, corrects no device's clock, limits no
caller and serves no metrics.
"""

import asyncio
import hmac
import sys
import time
from typing import Final

import msgspec
from aiohttp import web
from aiokafka import AIOKafkaProducer

REMEMBERED: Final = 100_000


class Given(msgspec.Struct):
    """What the bench tells this process, as JSON in its one argument."""

    bootstrap: str
    topic: str
    key: str


class Slot(msgspec.Struct):
    """A slot of a list, a view or a purchase."""

    product_id: str
    position: int = 0
    price: float | None = None
    visible_ms: int | None = None


class Event(msgspec.Struct, omit_defaults=True):
    """Any event of the log."""

    type: str
    event_id: str
    event_time: int
    search_id: str
    schema_version: int = 1
    session_id: str | None = None
    client_id: str | None = None
    locale: str | None = None
    device: str | None = None
    surface: str | None = None
    search_time: int | None = None
    query: str | None = None
    slots: list[Slot] = []
    ranking: msgspec.Raw = msgspec.Raw(b"null")
    product_id: str | None = None
    dwell_ms: int | None = None
    quantity: int | None = None
    received_at: int = 0


class Batch(msgspec.Struct):
    """The body of a request, its events not yet looked at."""

    events: list[msgspec.Raw]


class LeanCollector:
    """Takes requests.

    Args:
        given: what it was told.
        producer: of acknowledged, idempotent writes.
    """

    def __init__(self, given: Given, producer: AIOKafkaProducer) -> None:
        self._topic = given.topic
        self._authorization = f"Bearer {given.key}".encode()
        self._producer = producer
        self._batch, self._event = msgspec.json.Decoder(Batch), msgspec.json.Decoder(Event)
        self._encoder = msgspec.json.Encoder()
        self._seen: dict[str, None] = {}

    async def take(self, request: web.Request) -> web.Response:
        """Answer one request, item by item."""
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            raise web.HTTPUnauthorized
        now_ms = time.time_ns() // 1_000_000
        results: list[dict[str, str | None]] = []
        written, acknowledged = [], []
        for raw in self._batch.decode(await request.read()).events:
            try:
                event = self._event.decode(raw)
            except msgspec.ValidationError as error:
                results.append({"event_id": None, "status": "rejected", "reason": str(error), "field": None})
                continue
            status = "duplicate" if event.event_id in self._seen else "accepted"
            results.append({"event_id": event.event_id, "status": status, "reason": None, "field": None})
            if status == "duplicate":
                continue
            event.received_at = now_ms
            value, key = self._encoder.encode(event), event.search_id.encode()
            acknowledged.append(await self._producer.send(self._topic, value, key=key))
            written.append(event.event_id)
        await asyncio.gather(*acknowledged)
        self._seen.update(dict.fromkeys(written))
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        counts = {"accepted": len(written), "rejected": sum(one["status"] == "rejected" for one in results)}
        return web.Response(body=self._encoder.encode({**counts, "results": results}), content_type="application/json")


async def run(given: Given) -> None:
    """Serve until killed; say the port once it listens."""
    producer = AIOKafkaProducer(
        bootstrap_servers=given.bootstrap, acks="all", enable_idempotence=True, max_batch_size=256 * 1024
    )
    await producer.start()
    app = web.Application(client_max_size=4 * 1024 * 1024)
    app.router.add_post("/v1/events", LeanCollector(given, producer).take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Given)))

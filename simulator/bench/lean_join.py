"""The peer of the stream bench: a join as one would write it by hand, on nothing but aiokafka and msgspec.

It imports nothing of ours, so nothing slow of ours is in it. It reads each event once into the one struct it needs,
keeps dictionaries, closes by watermark, writes whole batches, waits for their acknowledgement and then commits. On a
log without faults it writes what our join writes; what it leaves out is what our join does beside: pages and orders
that come twice, events that do not say when their search was, what is late or broken, persons, ledgers, restarts.
"""

import asyncio
import heapq
import os
import sys
import time
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2

CHUNK: Final = 4000
COMMIT_EVERY_S: Final = 1.0


class Given(msgspec.Struct):
    """What the bench tells this process, as JSON in its one argument."""

    bootstrap: str
    source: str
    target: str
    group: str
    partitions: int
    window_ms: int
    lateness_ms: int
    total: int


class Slot(msgspec.Struct, gc=False, omit_defaults=True):
    """A slot as it was served, then with what happened to it."""

    product_id: str
    position: int = 0
    sponsored: bool = msgspec.field(default_factory=bool)
    pinned: bool = msgspec.field(default_factory=bool)
    in_stock: bool = msgspec.field(default_factory=lambda: True)
    price: float | None = None
    visible_ms: int | None = None
    clicked: bool = msgspec.field(default_factory=bool)
    click_time: int | None = None
    dwell_ms: int | None = None
    cart_quantity: int = msgspec.field(default_factory=int)
    purchase_quantity: int = msgspec.field(default_factory=int)


class Event(msgspec.Struct, gc=False):
    """Any event of the log: lists, views, clicks, dwells and carts."""

    type: str
    event_id: str
    event_time: int
    session_id: str
    client_id: str
    search_id: str
    search_time: int = 0
    locale: str = ""
    device: str = ""
    surface: str = ""
    query: str = ""
    slots: list[Slot] = []
    ranking: msgspec.Raw = msgspec.Raw(b"{}")
    product_id: str = ""
    dwell_ms: int = 0
    quantity: int = 1


class Origin(msgspec.Struct, gc=False):
    """Where an event stood."""

    topic: str
    partition: int
    offset: int


class Joined(msgspec.Struct, gc=False):
    """What is written for a search."""

    schema_version: Literal[1]
    type: str
    search_id: str
    search_time: int
    closed_at: int
    session_id: str
    client_id: str
    locale: str
    device: str
    surface: str
    synthetic: bool
    query: str
    layout: str
    columns: int
    page: int
    ranking: msgspec.Raw
    slots: list[Slot]
    unlisted: int
    origins: list[Origin]


class LeanJoin:
    """The join of one partition."""

    def __init__(self, partition: int, *, window_ms: int, lateness_ms: int) -> None:
        self._partition = partition
        self._window_ms, self._lateness_ms = window_ms, lateness_ms
        self._watermark = 0
        self._open: dict[str, dict[str, tuple[int, Event]]] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._decode = msgspec.json.Decoder(Event).decode
        self._encode = msgspec.json.Encoder().encode
        self.next_offset = 0

    def hold_offset(self) -> int:
        """Say from where a restart would have to read."""
        oldest = next(iter(self._open.values()), None)
        return self.next_offset if oldest is None else min(offset for offset, _ in oldest.values())

    def take(self, record: Any, closed: list[tuple[bytes, bytes]]) -> None:
        """Take the next record and add to `closed` what it closes: key and value."""
        event, offset = self._decode(record.value), record.offset
        self.next_offset = offset + 1
        happened = min(event.event_time, record.timestamp)
        if happened - self._lateness_ms > self._watermark:
            self._watermark = happened - self._lateness_ms
            while self._deadlines and self._deadlines[0][0] < self._watermark:
                deadline, search_id = heapq.heappop(self._deadlines)
                self._close(deadline, self._open.pop(search_id), closed)
        deadline = (event.search_time or event.event_time) + self._window_ms
        if happened > deadline or deadline < self._watermark:
            return
        events = self._open.get(event.search_id)
        if events is None:
            events = self._open[event.search_id] = {}
            heapq.heappush(self._deadlines, (deadline, event.search_id))
        events.setdefault(event.event_id, (offset, event))

    def _close(self, deadline: int, events: dict[str, tuple[int, Event]], closed: list[tuple[bytes, bytes]]) -> None:
        shown = next((event for _, event in events.values() if event.type == "impression"), None)
        if shown is None:
            return
        by_product = {slot.product_id: slot for slot in shown.slots}
        unlisted = sum(not _note(event, by_product) for _, event in events.values() if event is not shown)
        joined = Joined(
            schema_version=1,
            type="joined_search",
            search_id=shown.search_id,
            search_time=shown.event_time,
            closed_at=deadline,
            session_id=shown.session_id,
            client_id=shown.client_id,
            locale=shown.locale,
            device=shown.device,
            surface=shown.surface,
            synthetic=False,
            query=shown.query,
            layout="list",
            columns=1,
            page=1,
            ranking=shown.ranking,
            slots=shown.slots,
            unlisted=unlisted,
            origins=[Origin("search-events", self._partition, offset) for offset, _ in events.values()],
        )
        closed.append((shown.session_id.encode(), self._encode(joined)))


def _note(event: Event, by_product: dict[str, Slot]) -> bool:
    if event.type == "view":
        for seen in event.slots:
            slot = by_product.get(seen.product_id)
            if slot is None:
                return False
            slot.visible_ms = max(slot.visible_ms or 0, seen.visible_ms or 0)
        return True
    slot = by_product.get(event.product_id)
    if slot is None:
        return False
    if event.type == "click":
        slot.clicked = True
        slot.click_time = min(slot.click_time or event.event_time, event.event_time)
    elif event.type == "dwell":
        slot.dwell_ms = max(slot.dwell_ms or 0, event.dwell_ms)
    else:
        slot.cart_quantity += event.quantity
    return True


@lru_cache(100_000)
def _partition_of(key: bytes, partitions: int) -> int:
    hashed: int = murmur2(key)
    return (hashed & 0x7FFFFFFF) % partitions


async def _write(producer: AIOKafkaProducer, given: Given, closed: list[tuple[bytes, bytes]]) -> None:
    """Write a chunk's searches, each to the partition of its key, and wait until all are acknowledged."""
    batches: dict[int, Any] = {}
    acknowledged = []
    for key, value in closed:
        number = _partition_of(key, given.partitions)
        batch = batches.get(number) or batches.setdefault(number, producer.create_batch())
        if batch.append(key=key, value=value, timestamp=None) is None:
            acknowledged.append(await producer.send_batch(batch, given.target, partition=number))
            batch = batches[number] = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
    for number, batch in batches.items():
        acknowledged.append(await producer.send_batch(batch, given.target, partition=number))
    await asyncio.gather(*acknowledged)


async def run(given: Given) -> dict[str, float]:
    """Join the log to its end and say what it took after the first chunk, when every connection is warm."""
    consumer = AIOKafkaConsumer(
        given.source,
        bootstrap_servers=given.bootstrap,
        group_id=given.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=given.bootstrap, acks="all", enable_idempotence=True, max_batch_size=900_000
    )
    await asyncio.gather(consumer.start(), producer.start())
    joins: dict[TopicPartition, LeanJoin] = {}
    seen, began, committed_s = 0, (0, 0.0, 0.0), time.monotonic()
    while seen < given.total:
        fetched = await consumer.getmany(timeout_ms=500, max_records=CHUNK)
        for tp, records in fetched.items():
            closed: list[tuple[bytes, bytes]] = []
            join = joins.get(tp) or joins.setdefault(
                tp, LeanJoin(tp.partition, window_ms=given.window_ms, lateness_ms=given.lateness_ms)
            )
            for record in records:
                join.take(record, closed)
            await _write(producer, given, closed)
            seen += len(records)
            if not began[0]:
                began = (seen, time.perf_counter(), time.process_time())
        if time.monotonic() - committed_s >= COMMIT_EVERY_S:
            await consumer.commit({tp: join.hold_offset() for tp, join in joins.items()})
            committed_s = time.monotonic()
    seconds, cpu_seconds = time.perf_counter() - began[1], time.process_time() - began[2]
    return {"events": given.total - began[0], "seconds": seconds, "cpu_seconds": cpu_seconds}


if __name__ == "__main__":
    import gc

    gc.set_threshold(50_000, 2, 1_000_000)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Given)))))
    sys.stdout.flush()
    os._exit(0)

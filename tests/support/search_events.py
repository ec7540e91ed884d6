"""Builders of `search-events` records: bytes as a shop would send them, with times relative to a fixed moment."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from contracts.joined import closed_watermark_of

T0 = 1_795_196_000_000
"""The moment that times in these tests count from, epoch milliseconds."""


@dataclass(frozen=True)
class Record:
    """A record as Kafka would hand it out."""

    offset: int
    timestamp: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


class WithHeaders(Protocol):
    """What carries headers, read or to be written."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Its headers."""


def is_mark(record: WithHeaders) -> bool:
    """Whether a record of `joined-searches` is a watermark record, and no list."""
    told = closed_watermark_of(record.headers)
    return told is not None and told.idle is not None


def at(time_ms: int) -> int:
    """Return a moment so many milliseconds after T0."""
    return T0 + time_ms


def impression(
    search_id: str = "s1", time_ms: int = 0, products: str = "abcdef", event_id: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Return an impression that shows one-letter products in order."""
    slots = [{"product_id": product, "position": position} for position, product in enumerate(products, start=1)]
    base = {
        "type": "impression",
        "event_id": event_id or f"i-{search_id}-{time_ms}",
        "event_time": at(time_ms),
        "session_id": "k1",
        "search_id": search_id,
        "query": "quiet fridge",
        "slots": slots,
    }
    return {**base, **fields}


def behaviour(
    kind: str, search_id: str | None, time_ms: int, search_time_ms: int | None, event_id: str | None, **fields: Any
) -> dict[str, Any]:
    """Return an event that follows an impression; `search_time_ms` None leaves the search's time out."""
    product = fields.get("product_id", "")
    base = {
        "type": kind,
        "event_id": event_id or f"{kind}-{search_id}-{product}-{time_ms}",
        "event_time": at(time_ms),
        "session_id": "k1",
    }
    named = {} if search_id is None else {"search_id": search_id}
    timed = {} if search_time_ms is None else {"search_time": at(search_time_ms)}
    return {**base, **named, **timed, **fields}


def click(
    product: str = "a",
    time_ms: int = 100,
    search_id: str = "s1",
    search_time_ms: int | None = 0,
    event_id: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a click."""
    return behaviour("click", search_id, time_ms, search_time_ms, event_id, product_id=product, **fields)


def dwell(
    product: str = "a",
    dwell_ms: int = 40_000,
    time_ms: int = 200,
    search_id: str = "s1",
    search_time_ms: int | None = 0,
    event_id: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a report of a stay."""
    return behaviour(
        "dwell", search_id, time_ms, search_time_ms, event_id, product_id=product, dwell_ms=dwell_ms, **fields
    )


def view(
    seen: dict[str, int],
    time_ms: int = 150,
    search_id: str = "s1",
    search_time_ms: int | None = 0,
    event_id: str | None = None,
) -> dict[str, Any]:
    """Return a viewport report: product -> visible milliseconds."""
    slots = [{"product_id": product, "visible_ms": visible_ms} for product, visible_ms in seen.items()]
    return behaviour("view", search_id, time_ms, search_time_ms, event_id, slots=slots)


def cart(
    product: str = "a",
    time_ms: int = 300,
    search_id: str | None = "s1",
    search_time_ms: int | None = 0,
    event_id: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a cart event."""
    return behaviour("cart", search_id, time_ms, search_time_ms, event_id, product_id=product, **fields)


def purchase(
    product: str = "a",
    time_ms: int = 400,
    search_id: str | None = "s1",
    search_time_ms: int | None = 0,
    event_id: str | None = None,
    quantity: int = 1,
) -> dict[str, Any]:
    """Return an order line."""
    line = {"product_id": product, "quantity": quantity}
    named = {} if search_id is None else {"search_id": search_id}
    timed = {} if search_time_ms is None else {"search_time": at(search_time_ms)}
    return {
        **behaviour("purchase", None, time_ms, None, event_id or f"purchase-{search_id}-{product}-{time_ms}"),
        "order_id": "O-1",
        "items": [{**line, **named, **timed}],
    }


def tick(time_ms: int) -> dict[str, Any]:
    """Return a tick."""
    return {"type": "tick", "event_time": at(time_ms)}


def moved(events: Sequence[dict[str, Any] | bytes], start_ms: int) -> list[dict[str, Any] | bytes]:
    """Return events with every time moved from T0 to another start, for a real clock."""
    return [event if isinstance(event, bytes) else _moved(event, start_ms - T0) for event in events]


def _moved(event: dict[str, Any], by_ms: int) -> dict[str, Any]:
    """Return one event moved in time, its order lines too."""
    times: dict[str, Any] = {name: event[name] + by_ms for name in ("event_time", "search_time") if name in event}
    lines = {"items": [_moved(line, by_ms) for line in event["items"]]} if "items" in event else {}
    return {**event, **times, **lines}


def encoded(event: dict[str, Any] | bytes) -> bytes:
    """Return an event as it stands on the wire; bytes stay as they are."""
    return event if isinstance(event, bytes) else json.dumps(event).encode()


def log(events: Sequence[dict[str, Any] | bytes], *, delay_ms: int = 0, first_offset: int = 0) -> list[Record]:
    """Return events as consecutive records, each appended so long after its own time; raw bytes right after T0."""
    return [
        Record(
            offset,
            (T0 if isinstance(event, bytes) else event.get("event_time", T0)) + delay_ms,
            encoded(event),
            b"key-%d" % offset,
        )
        for offset, event in enumerate(events, start=first_offset)
    ]

"""The shop's site: one event for each action of a shopper, sent in batches with the device's own time on it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import NAMESPACE_OID, uuid5

from service.machine import epoch_ms
from simulator.shop.posting import Delivery, Poster
from simulator.shop.shoppers import Action, Visit
from simulator.shop.world import ProductMessage

Event = dict[str, Any]
"""An event as docs/events.md describes it."""

EVENTS_PER_REQUEST: Final = 40
"""Well below the 64 KiB that a write key may send."""
FLUSH_S: Final = 0.1
"""Longest wait for a batch to fill."""
REQUESTS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Site:
    """What the shop's site talks to."""

    collector_url: str
    search_url: str
    write_key: str


def event_of(
    action: Action, visit: Visit, *, search_id: str, search_time: int, products: Mapping[str, ProductMessage]
) -> Event:
    """Make the event of an action.

    The id follows from the search and the action, so that a repeat is recognised as one. `event_time` is the
    device's clock: the true time plus its skew.

    Args:
        action: what was done.
        visit: by whom.
        search_id: of the list it was done on.
        search_time: echoed from the search's answer.
        products: by id, for prices.
    """
    search: Event = {"search_id": search_id, "search_time": search_time}
    return {
        "type": action.kind,
        "event_id": event_id(search_id, action.kind, action.position),
        "event_time": search_time + action.at_ms + visit.skew_ms,
        "schema_version": 1,
        "session_id": visit.session_id,
        "client_id": visit.client_id,
        "device": visit.device,
        "locale": "en-IN",
        "surface": "search",
        **_fields(action, search, products.get(action.product_id, {})),
    }


def event_id(search_id: str, kind: str, position: int) -> str:
    """Name what was done at a position of a list.

    >>> event_id("s-1", "click", 2) == event_id("s-1", "click", 2) != event_id("s-1", "click", 3)
    True
    """
    return str(uuid5(NAMESPACE_OID, f"{search_id}:{kind}:{position}"))


def _fields(action: Action, search: Event, product: ProductMessage) -> Event:
    """The fields that only this kind of event has; a product launched during the run has no known price."""
    search_id = search["search_id"]
    line: Event = {"product_id": action.product_id, "quantity": 1, **search}
    if product.get("price") is not None:
        line["price"] = product["price"]
    currency = product.get("currency", "INR")
    match action.kind:
        case "view":
            slots = [{"product_id": one, "position": place, "visible_ms": seen} for place, one, seen in action.visible]
            return {**search, "slots": slots}
        case "click":
            return {**search, "product_id": action.product_id, "position": action.position}
        case "dwell":
            click_id = event_id(search_id, "click", action.position)
            return {**search, "product_id": action.product_id, "click_id": click_id, "dwell_ms": action.dwell_ms}
        case "cart":
            return {**line, "currency": currency}
        case "purchase":
            order_id = f"O-{event_id(search_id, 'order', action.position)}"
            return {"order_id": order_id, "currency": currency, "items": [line]}


@dataclass(frozen=True, slots=True)
class Due:
    """An event on its way, and the error of the clock that will stamp it."""

    event: Event
    skew_ms: int


class Outbox:
    """Sends events in the background.

    Args:
        poster: of `/v1/events`.
        delivery: counts kept up to date while events are sent.
    """

    def __init__(self, poster: Poster, delivery: Delivery) -> None:
        self._poster = poster
        self._delivery = delivery
        self._waiting: asyncio.Queue[Due] = asyncio.Queue()
        self.sent = 0

    def put(self, due: Due) -> None:
        """Take an event over; from now on it is counted."""
        self.sent += 1
        self._waiting.put_nowait(due)

    async def run(self) -> None:
        """Send what is put in, until cancelled; cancel only after `drain`."""
        async with asyncio.TaskGroup() as senders:
            for _ in range(REQUESTS_AT_ONCE):
                senders.create_task(self._send_batches())

    async def drain(self) -> None:
        """Wait until every event put in has an outcome."""
        await self._waiting.join()

    async def _send_batches(self) -> None:
        while True:
            batch = await self._batch()
            try:
                self._delivery.add(await self._poster.post([due.event for due in batch], stamp=_stamp(batch)))
            finally:
                for _ in batch:
                    self._waiting.task_done()

    async def _batch(self) -> list[Due]:
        """Wait for an event, then a little for others."""
        batch = [await self._waiting.get()]
        deadline = asyncio.get_running_loop().time() + FLUSH_S
        while len(batch) < EVENTS_PER_REQUEST:
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._waiting.get())
            except TimeoutError:
                break
        return batch


def _stamp(batch: Sequence[Due]) -> Callable[[Event], Event]:
    """What puts the sending device's time on an event, whenever it is sent."""
    skews = {str(due.event["event_id"]): due.skew_ms for due in batch}
    return lambda event: {**event, "sent_at": epoch_ms() + skews[str(event["event_id"])]}

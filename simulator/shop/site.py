"""The shop's site: one event for each action of a shopper, sent with the device's own time on it; and its catalogue.

It posts as a careful site does: the same ids again after 429, 503 or a broken connection. Every item ends in exactly
one outcome: accepted, duplicate, rejected (with the collector's reason) or failed (nobody acknowledged it before
patience ran out), so nothing is lost without being counted.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import NAMESPACE_OID, uuid5

import httpx

from contracts.errors import CheckFailed
from contracts.http import IntakeAnswer
from service.machine import epoch_ms
from simulator.shop.shoppers import Action, Visit
from simulator.shop.world import ProductMessage

Item = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with items acknowledged so far, and all."""

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
TOO_LARGE: Final = 413
RETRIED: Final = frozenset({429, 500, 502, 503, 504})
PRODUCTS_PER_REQUEST: Final = 200
CATALOGUE_PATIENCE_S: Final = 120.0
USER_AGENT: Final = "Mozilla/5.0 (compatible; Millrace shop site)"
Event = dict[str, Any]
"""An event as docs/events.md describes it."""

EVENTS_PER_REQUEST: Final = 40
"""Well below the 64 KiB that a write key may send."""
FLUSH_S: Final = 0.1
"""Longest wait for a batch to fill."""
REQUESTS_AT_ONCE: Final = 4


@dataclass(slots=True)
class Delivery:
    """What became of the items handed over."""

    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why items were rejected or failed."""

    def add(self, other: "Delivery") -> None:
        """Add another delivery's counts to this one's."""
        self.accepted += other.accepted
        self.duplicate += other.duplicate
        self.rejected += other.rejected
        self.failed += other.failed
        self.reasons.update(other.reasons)

    @property
    def settled(self) -> int:
        """Items whose outcome is known."""
        return self.accepted + self.duplicate + self.rejected + self.failed


class Poster:
    """Posts to one route of the collector.

    Args:
        client: to post with.
        url: of the route.
        key: that it asks for.
        name: of the items in a request.
        patience_s: for which a request is tried again.
        stamp: applied to each item at every attempt (`sent_at` must be that of the attempt).
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        key: str,
        name: str,
        patience_s: float = 30.0,
        stamp: Callable[[Item], Item] = dict,
    ) -> None:
        self._client = client
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}", "User-Agent": USER_AGENT}
        self._name = name
        self._patience_s = patience_s
        self._stamp = stamp

    async def post(self, items: Sequence[Item]) -> Delivery:
        """Post items, at most one request's worth, until each has an outcome."""
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + self._patience_s, FIRST_PAUSE_S
        while True:
            body = {self._name: [self._stamp(item) for item in items]}
            answer = await self._attempt(body)
            if isinstance(answer, httpx.Response) and answer.status_code not in RETRIED:
                return await self._settle(answer, items)
            wait_s = max(pause_s, _retry_after_s(answer))
            if loop.time() + wait_s > deadline:
                return Delivery(failed=len(items), reasons=Counter({_why(answer): len(items)}))
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _attempt(self, body: dict[str, Any]) -> httpx.Response | httpx.HTTPError:
        try:
            return await self._client.post(self._url, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            return error

    async def _settle(self, answer: httpx.Response, items: Sequence[Item]) -> Delivery:
        """Count a final answer; a batch that was too large is posted in halves."""
        if answer.status_code == TOO_LARGE and len(items) > 1:
            half = len(items) // 2
            found = await self.post(items[:half])
            found.add(await self.post(items[half:]))
            return found
        if not answer.is_success:
            return Delivery(failed=len(items), reasons=Counter({_why(answer): len(items)}))
        try:
            return _counted(IntakeAnswer.model_validate_json(answer.content), len(items))
        except ValueError:
            return Delivery(failed=len(items), reasons=Counter(unreadable_answer=len(items)))


def _counted(answer: IntakeAnswer, sent: int) -> Delivery:
    """Count an answer item by item; items it does not mention have failed."""
    found = Counter(result.status for result in answer.results)
    missing = sent - len(answer.results)
    reasons = Counter(result.reason or "unknown" for result in answer.results if result.status == "rejected")
    if missing:
        reasons["unanswered"] += missing
    return Delivery(found["accepted"], found["duplicate"], found["rejected"], missing, reasons=reasons)


def _retry_after_s(answer: httpx.Response | httpx.HTTPError) -> float:
    text = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0


def _why(answer: httpx.Response | httpx.HTTPError) -> str:
    return f"http_{answer.status_code}" if isinstance(answer, httpx.Response) else type(answer).__name__


async def send_products(
    products: Sequence[ProductMessage],
    collector_url: str,
    *,
    secret_key: str,
    progress: Progress | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Delivery:
    """Send products to the collector in batches; return when all are acknowledged.

    Raises:
        CheckFailed: the collector refused or did not acknowledge some of them.
    """
    total = Delivery()
    async with httpx.AsyncClient(transport=transport, timeout=60.0) as client:
        poster = Poster(
            client, f"{collector_url}/v1/products", key=secret_key, name="products", patience_s=CATALOGUE_PATIENCE_S
        )
        for start in range(0, len(products), PRODUCTS_PER_REQUEST):
            total.add(await poster.post([dict(product) for product in products[start : start + PRODUCTS_PER_REQUEST]]))
            if progress is not None:
                progress(total.accepted + total.duplicate, len(products))
    if total.rejected or total.failed:
        why = ", ".join(f"{reason}: {count}" for reason, count in total.reasons.most_common(3))
        raise CheckFailed(
            f"{total.rejected} products were rejected and {total.failed} not acknowledged ({why})",
            fix="see the collector's log, and check MILLRACE_SECRET_KEY and the rows of products.jsonl",
        )
    return total


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

    The id follows from the search and the action, so that a repeat is recognised as one.
    """
    search: Event = {"search_id": search_id, "search_time": search_time}
    return {
        "type": action.kind,
        "event_id": event_id(search_id, action.kind, action.position),
        "event_time": search_time + action.at_ms,
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


class Outbox:
    """Sends events in the background."""

    def __init__(self, poster: Poster, delivery: Delivery) -> None:
        self._poster = poster
        self._delivery = delivery
        self._waiting: asyncio.Queue[Event] = asyncio.Queue()
        self.sent = 0

    def put(self, event: Event) -> None:
        """Take an event over; from now on it is counted."""
        self.sent += 1
        self._waiting.put_nowait(event)

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
                self._delivery.add(await self._poster.post(batch))
            finally:
                for _ in batch:
                    self._waiting.task_done()

    async def _batch(self) -> list[Event]:
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


def sent_now(event: Event) -> Event:
    """Put the sending device's time on an event."""
    return {**event, "sent_at": epoch_ms()}

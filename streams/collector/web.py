"""The collector over HTTP: who may come in `access` decides, what becomes of an item `intake`.

The way of a request: key, origin, body, rate, decisions, duplicates, Kafka, answer. An answer with `accepted` leaves
only after Kafka acknowledged; if it did not, the answer is 503 and nothing of the request counts as accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiohttp import web
from pydantic import BaseModel

from contracts import wire
from contracts.errors import TransientError
from contracts.events import person_id
from contracts.http import EventBatch, IntakeAnswer, PairBatch, ProductBatch
from service import metrics
from service.api_docs import documentation
from service.health import Health
from service.http import JSON, Handler, Refused, Route, build_app, come_again, json_answer, read_body
from service.machine import EpochClock, epoch_ms
from streams.collector import access, intake
from streams.collector.access import Holder, Keys, Limits, Network
from streams.collector.intake import Accepted, Arrival, Decision, Duplicate, OutgoingRecord, Rejected

MAX_OPEN_REQUESTS: Final = 512
BODY_TYPES: Final = (JSON, "text/plain")
"""text/plain is how sendBeacon spares itself a preflight."""
NOT_BUILT: Final = (("POST", "/ubi_events"), ("POST", "/ubi_queries"), ("GET", "/millrace.js"))
DESCRIPTION: Final = (
    "Takes shop events, catalogue changes and curated pairs. Every item has its own outcome, in the order of the "
    "request; `accepted` means that Kafka acknowledged it. The write key opens `/v1/events` alone, the secret key all."
)
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Encoding",
    "Access-Control-Max-Age": "86400",
}


class RecordLog(Protocol):
    """Where accepted records go."""

    async def write(self, records: Sequence[OutgoingRecord]) -> None:
        """Return once every record is acknowledged by all in-sync copies.

        Raises:
            TransientError: at least one was not, within the time that a caller is kept waiting; some may be there
                nevertheless.
        """
        ...


@dataclass(frozen=True, slots=True)
class Recollection:
    """What the memory knows of a request.

    Args:
        seen: what of it was acknowledged before.
        items_in_window: what the caller sent in the present window; None if the memory is gone.
    """

    seen: frozenset[str] = frozenset()
    items_in_window: int | None = None


class Memory(Protocol):
    """Best effort: whatever it forgets, the join finds again."""

    async def recall(self, identities: Sequence[str], *, caller: str, item_count: int, window: int) -> Recollection:
        """Return which events were seen, and count the caller's items in the numbered window; never fails."""
        ...

    async def remember(self, identities: Sequence[str]) -> None:
        """Mark events as acknowledged; never fails."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What a route takes.

    Args:
        name: of the list in the body.
        batch: form of the body.
        decide: what becomes of one item.
        secret_only: the secret key alone opens it.
        once: a repeat of an item must not count again.
    """

    name: str
    batch: type[BaseModel]
    decide: intake.Decide
    secret_only: bool = True
    once: bool = False


INTAKE: Final = {
    "/v1/events": Kind("events", EventBatch, intake.decide_event, secret_only=False, once=True),
    "/v1/products": Kind("products", ProductBatch, intake.decide_product),
    "/v1/pairs": Kind("pairs", PairBatch, intake.decide_pair),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How this deployment treats its callers.

    Args:
        keys: write and secret key.
        person_key: HMAC key for persons' ids.
        origins: pages that may call from a browser.
        trusted_proxies: networks whose word about a caller's address is taken.
        bots: parts of user agents that mark bots.
        limits: how much one request and one caller may send.
    """

    keys: Keys
    person_key: bytes = field(repr=False)
    origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    bots: Sequence[str] = field(default_factory=access.read_bot_list)
    limits: Limits = field(default_factory=Limits)


class Collector:
    """Takes requests.

    Args:
        policy: how callers are treated.
        log: where accepted records go.
        memory: what was seen, and how much a caller sent.
        now_ms: the collector's clock.
    """

    def __init__(self, policy: Policy, log: RecordLog, *, memory: Memory, now_ms: EpochClock = epoch_ms) -> None:
        self.policy = policy
        self._log = log
        self._memory = memory
        self._now_ms = now_ms

    async def take(self, request: web.Request, kind: Kind) -> IntakeAnswer:
        """Return the answer to one request for events, products or pairs.

        Raises:
            Refused: the whole request is.
        """
        received_at = self._now_ms()
        holder = self._admit(request, kind)
        items = await self._items(request, kind, holder)
        arrival = self._arrival(request, holder, received_at)
        first = [kind.decide(item, arrival) for item in items]
        identities = [one.identity for one in intake.accepted_of(first)] if kind.once else []
        seen = await self._recall(request, holder, identities, item_count=len(items), now_ms=received_at)
        decisions = intake.set_aside_duplicates(first, seen) if kind.once else list(first)
        await self._write(decisions, remember=kind.once)
        _count(decisions)
        return intake.answer(decisions)

    def _admit(self, request: web.Request, kind: Kind) -> Holder:
        """Return the key of a request that may come in."""
        access.check_origin(request.headers.get("Origin"), host=request.host, allowed=self.policy.origins)
        return access.authorise(
            self.policy.keys,
            authorization=request.headers.get("Authorization"),
            query_key=None if kind.secret_only else request.query.get("key"),
            secret_only=kind.secret_only,
        )

    async def _items(self, request: web.Request, kind: Kind, holder: Holder) -> list[Any]:
        """Return the items of the body, not yet looked at."""
        limits = self.policy.limits
        content = wire.parse_leniently(
            await read_body(request, limit_bytes=limits.body_bytes(holder), types=BODY_TYPES)
        )
        items = content.get(kind.name) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise Refused(400, "wrong_type", f'the body must be {{"{kind.name}": [...]}}')
        if len(items) > limits.items:
            text = f"{len(items)} {kind.name} in one request; send at most {limits.items}"
            raise Refused(413, "too_many_items", text)
        return items

    def _arrival(self, request: web.Request, holder: Holder, received_at: int) -> Arrival:
        """Return what the request says about its items; a shop's server speaks for its shoppers, not for itself."""
        from_browser = holder is Holder.WRITE
        return Arrival(
            received_at=received_at,
            person_key=self.policy.person_key,
            bot=from_browser and access.is_bot(request.headers.get("User-Agent", ""), self.policy.bots),
            untracked=from_browser and request.headers.get("Sec-GPC") == "1",
        )

    async def _recall(
        self, request: web.Request, holder: Holder, identities: Sequence[str], *, item_count: int, now_ms: int
    ) -> frozenset[str]:
        """Return which events were seen before.

        Raises:
            Refused: 429 if the caller sent too much.
        """
        limits = self.policy.limits
        address = access.caller_address(
            request.remote or "",
            forwarded_for=request.headers.getall("X-Forwarded-For", ()),
            forwarded=request.headers.getall("Forwarded", ()),
            trusted=self.policy.trusted_proxies,
        )
        caller = person_id(address, self.policy.person_key)[:16]  # no address is kept, even for seconds
        known = await self._memory.recall(
            identities, caller=f"{holder}:{caller}", item_count=item_count, window=now_ms // 1000 // limits.window_s
        )
        limit = limits.items_per_window(holder)
        wait_s = access.retry_after_s(known.items_in_window, limit=limit, window_s=limits.window_s, now_s=now_ms / 1000)
        if wait_s is not None:
            text = f"more than {limit} items in {limits.window_s} s from one address; send again in {wait_s} s"
            raise come_again(429, "rate_limited", text, after_s=wait_s)
        return known.seen

    async def _write(self, decisions: Sequence[Decision], *, remember: bool) -> None:
        """Return once Kafka has what was accepted.

        Raises:
            Refused: 503 if it has not; nothing is remembered then, so that the resend is no duplicate.
        """
        accepted = intake.accepted_of(decisions)
        if not accepted:
            return
        try:
            await self._log.write([record for one in accepted for record in one.records])
        except TransientError as error:
            text = "Kafka did not acknowledge; nothing was accepted, send the same again with the same ids"
            raise come_again(503, "not_acknowledged", text) from error
        if remember:
            await self._memory.remember([one.identity for one in accepted])


def _count(decisions: Sequence[Decision]) -> None:
    """Count what became of each item; what Kafka holds is counted in records, as the ledger does."""
    for decision in decisions:
        match decision:
            case Accepted(kind=kind, records=records, corrections=corrections):
                metrics.EVENTS_ACCEPTED.labels(kind).inc(len(records))
                for correction in corrections:
                    metrics.CORRECTIONS.labels(correction).inc()
            case Duplicate(kind=kind):
                metrics.EVENTS_DUPLICATE.labels(kind).inc()
            case Rejected(reason=reason):
                metrics.EVENTS_REJECTED.labels(reason).inc()


def build(collector: Collector, health: Health, *, max_open: int = MAX_OPEN_REQUESTS) -> web.Application:
    """Return the web application.

    Args:
        collector: answers the intake routes.
        health: answers `/live`, `/ready` and `/metrics`.
        max_open: how many requests may wait for Kafka.
    """
    origins = collector.policy.origins
    routes = [_intake_route(collector, path, kind) for path, kind in INTAKE.items()]
    others = [Route("OPTIONS", path, _preflight(origins)) for path in INTAKE]
    others += [Route(method, path, _not_built) for method, path in NOT_BUILT]
    documented = documentation(routes, title="Millrace collector", description=DESCRIPTION, bearer=True)
    app = build_app(health, [*routes, *others, *documented], max_open=max_open)

    async def add_cors(request: web.Request, response: web.StreamResponse) -> None:
        """Let pages on the list read our answers; never `*`, never credentials."""
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin")
        if origin is not None and origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin

    app.on_response_prepare.append(add_cors)
    return app


def _intake_route(collector: Collector, path: str, kind: Kind) -> Route:
    async def take(request: web.Request) -> web.StreamResponse:
        return json_answer(await collector.take(request, kind))

    summary = f"Takes {kind.name}, with {'the secret key' if kind.secret_only else 'either key'}."
    return Route("POST", path, take, takes=kind.batch, gives=IntakeAnswer, summary=summary)


def _preflight(origins: tuple[str, ...]) -> Handler:
    async def allow(request: web.Request) -> web.StreamResponse:
        access.check_origin(request.headers.get("Origin"), host=request.host, allowed=origins)
        return web.Response(status=204, headers=_PREFLIGHT)

    return allow


async def _not_built(request: web.Request) -> web.StreamResponse:
    raise Refused(501, "not_built", f"{request.path} is not built yet; send our own events to /v1/events")

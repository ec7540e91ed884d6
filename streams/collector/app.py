"""One request from beginning to end: who may come in `access` decides, what becomes of an item `intake`.

The way of a request: key, origin, body, rate, decisions, duplicates, Kafka, answer. An answer with `accepted` leaves
only after Kafka acknowledged; where it did not, the answer is 503 and nothing of the request counts as accepted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from contracts.http import IntakeAnswer
from service import metrics
from service.people import person_id
from streams.collector import access, intake
from streams.collector.access import Holder, Keys, Limits, Refused
from streams.collector.body import read_items
from streams.collector.decisions import (
    Accepted,
    Decision,
    Duplicate,
    Rejected,
    accepted_of,
    answer,
    set_aside_duplicates,
)
from streams.collector.intake import Facts
from streams.collector.ports import Memory, NotAcknowledged, RecordLog

MAX_OPEN_REQUESTS: Final = 512
RETRY_AFTER_S: Final = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """What a route takes.

    Args:
        name: of the list in the body.
        decide: what becomes of one item.
        secret_only: the secret key alone opens it.
        once: items carry an id that must not count twice.
    """

    name: str
    decide: intake.Decide
    secret_only: bool = True
    once: bool = False


EVENTS: Final = Kind("events", intake.decide_event, secret_only=False, once=True)
PRODUCTS: Final = Kind("products", intake.decide_product)
PAIRS: Final = Kind("pairs", intake.decide_pair)


@dataclass(frozen=True, slots=True)
class Policy:
    """How this deployment treats its callers.

    Args:
        keys: write and secret key.
        person_key: HMAC key for persons' ids.
        origins: pages that may call from a browser.
        bots: parts of user agents that mark bots.
        limits: how much one request and one caller may send.
    """

    keys: Keys
    person_key: bytes = field(repr=False)
    origins: tuple[str, ...] = ()
    bots: Sequence[str] = field(default_factory=access.read_bot_list)
    limits: Limits = field(default_factory=Limits)


class Collector:
    """Takes requests.

    Args:
        policy: how callers are treated.
        log: where accepted records go.
        memory: what was seen, and how much a caller sent.
        now_ms: the collector's clock, epoch milliseconds.
    """

    def __init__(
        self, policy: Policy, log: RecordLog, *, memory: Memory, now_ms: Callable[[], int] | None = None
    ) -> None:
        self._policy = policy
        self._log = log
        self._memory = memory
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._open_requests = 0

    @property
    def origins(self) -> tuple[str, ...]:
        """Pages that may call from a browser."""
        return self._policy.origins

    async def take(self, request: web.Request, kind: Kind) -> IntakeAnswer:
        """Return the answer to one request for events, products or pairs.

        Raises:
            Refused: the whole request is.
        """
        if self._open_requests >= MAX_OPEN_REQUESTS:
            raise _later(503, "busy", "too many requests are under way; send it again", RETRY_AFTER_S)
        self._open_requests += 1
        try:
            return await self._taken(request, kind)
        finally:
            self._open_requests -= 1

    async def _taken(self, request: web.Request, kind: Kind) -> IntakeAnswer:
        """Return the answer to one request."""
        received_at = self._now_ms()
        holder = self._admit(request, kind)
        items = await self._items(request, kind, holder)
        facts = self._facts(request, holder, received_at)
        first: list[Accepted | Rejected] = [kind.decide(part, facts) for part in items]
        ids = [one.item_id for one in accepted_of(first) if one.item_id is not None] if kind.once else []
        seen = await self._recall(request, holder, ids=ids, item_count=len(items), now_ms=received_at)
        decisions = set_aside_duplicates(first, seen) if kind.once else list(first)
        await self._write(decisions, remember=kind.once)
        _count(decisions)
        return answer(decisions)

    def _admit(self, request: web.Request, kind: Kind) -> Holder:
        """Return the key of a request that may come in."""
        access.check_origin(request.headers.get("Origin"), host=request.host, allowed=self._policy.origins)
        return access.authorise(
            self._policy.keys,
            authorization=request.headers.get("Authorization"),
            query_key=None if kind.secret_only else request.query.get("key"),
            secret_only=kind.secret_only,
        )

    async def _items(self, request: web.Request, kind: Kind, holder: Holder) -> list[Any]:
        """Return the items of the body."""
        limits = self._policy.limits
        return await read_items(request, kind.name, limit_bytes=limits.body_bytes(holder), limit_items=limits.items)

    def _facts(self, request: web.Request, holder: Holder, received_at: int) -> Facts:
        """Return what the request says about its events; a shop's server speaks for its shoppers, not for itself."""
        from_browser = holder is Holder.WRITE
        return Facts(
            received_at=received_at,
            person_key=self._policy.person_key,
            bot=from_browser and access.is_bot(request.headers.get("User-Agent", ""), self._policy.bots),
            untracked=from_browser and request.headers.get("Sec-GPC") == "1",
        )

    async def _recall(
        self, request: web.Request, holder: Holder, *, ids: Sequence[str], item_count: int, now_ms: int
    ) -> frozenset[str]:
        """Return which ids were seen before.

        Raises:
            Refused: 429 where the caller sent too much.
        """
        limits = self._policy.limits
        address = person_id(request.remote or "", self._policy.person_key)[:16]  # no address is kept, even for seconds
        known = await self._memory.recall(
            ids, caller=f"{holder}:{address}", item_count=item_count, window=now_ms // 1000 // limits.window_s
        )
        limit = limits.items_per_window(holder)
        wait_s = access.retry_after_s(known.items_in_window, limit=limit, window_s=limits.window_s, now_s=now_ms / 1000)
        if wait_s is not None:
            text = f"more than {limit} items in {limits.window_s} s from one address; send again in {wait_s} s"
            raise _later(429, "rate_limited", text, wait_s)
        return known.seen

    async def _write(self, decisions: Sequence[Decision], *, remember: bool) -> None:
        """Return once Kafka has what was accepted.

        Raises:
            Refused: 503 where it has not; nothing is remembered then, so that the resend is no duplicate.
        """
        accepted = accepted_of(decisions)
        if not accepted:
            return
        try:
            await self._log.write([record for one in accepted for record in one.records])
        except NotAcknowledged as error:
            text = "Kafka did not acknowledge; nothing was accepted, send the same again with the same ids"
            raise _later(503, "not_acknowledged", text, RETRY_AFTER_S) from error
        if remember:
            await self._memory.remember([one.item_id for one in accepted if one.item_id is not None])


def _later(status: int, reason: str, message: str, wait_s: int) -> Refused:
    """Return a refusal that says when to come back."""
    return Refused(status, reason, message, headers=(("Retry-After", str(wait_s)),))


def _count(decisions: Sequence[Decision]) -> None:
    """Count what became of each item; what Kafka holds is counted in records, as the ledger does."""
    for decision in decisions:
        match decision:
            case Accepted(kind=kind, records=records):
                metrics.EVENTS_ACCEPTED.labels(kind).inc(len(records))
            case Duplicate(kind=kind):
                metrics.EVENTS_DUPLICATE.labels(kind).inc()
            case Rejected(reason=reason):
                metrics.EVENTS_REJECTED.labels(reason).inc()

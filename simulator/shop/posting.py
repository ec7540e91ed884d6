"""Posting to the collector as a careful site does: the same ids again after 429, 503 or a broken connection.

Every item ends in exactly one outcome: accepted, duplicate, rejected (with the collector's reason) or failed (nobody
acknowledged it before patience ran out), so nothing is lost without being counted.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from contracts.errors import CheckFailed
from contracts.http import IntakeAnswer
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


@dataclass(slots=True)
class Delivery:
    """What became of the items handed over."""

    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    failed: int = 0
    retries: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why items were rejected or failed."""

    def add(self, other: "Delivery") -> None:
        """Add another delivery's counts to this one's."""
        self.accepted += other.accepted
        self.duplicate += other.duplicate
        self.rejected += other.rejected
        self.failed += other.failed
        self.retries += other.retries
        self.reasons.update(other.reasons)

    @property
    def settled(self) -> int:
        """Items whose outcome is known."""
        return self.accepted + self.duplicate + self.rejected + self.failed


class Poster:
    """Posts to one route of the collector.

    Args:
        client: the HTTP client.
        url: the route, e.g. `http://127.0.0.1:8080/v1/events`.
        key: write or secret key.
        name: what the body's list is called: `events` or `products`.
        patience_s: how long one batch is tried.
    """

    def __init__(self, client: httpx.AsyncClient, url: str, *, key: str, name: str, patience_s: float = 30.0) -> None:
        self._client = client
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}", "User-Agent": USER_AGENT}
        self._name = name
        self._patience_s = patience_s

    async def post(self, items: Sequence[Item], *, stamp: Callable[[Item], Item] | None = None) -> Delivery:
        """Post items until each has an outcome.

        Args:
            items: at most one request's worth.
            stamp: applied to each item at every attempt (`sent_at` must be that of the attempt).
        """
        loop = asyncio.get_running_loop()
        deadline, pause_s, retries = loop.time() + self._patience_s, FIRST_PAUSE_S, 0
        while True:
            body = {self._name: [stamp(item) for item in items] if stamp else list(items)}
            answer = await self._attempt(body)
            if isinstance(answer, httpx.Response) and answer.status_code not in RETRIED:
                found = await self._settle(answer, items, stamp)
                found.retries += retries
                return found
            wait_s = max(pause_s, _retry_after_s(answer))
            if loop.time() + wait_s > deadline:
                return Delivery(failed=len(items), retries=retries, reasons=Counter({_why(answer): len(items)}))
            await asyncio.sleep(wait_s)
            pause_s, retries = min(2 * pause_s, LONGEST_PAUSE_S), retries + 1

    async def _attempt(self, body: dict[str, Any]) -> httpx.Response | httpx.HTTPError:
        try:
            return await self._client.post(self._url, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            return error

    async def _settle(
        self, answer: httpx.Response, items: Sequence[Item], stamp: Callable[[Item], Item] | None
    ) -> Delivery:
        """Count a final answer; a batch that was too large is posted in halves."""
        if answer.status_code == TOO_LARGE and len(items) > 1:
            half = len(items) // 2
            found = await self.post(items[:half], stamp=stamp)
            found.add(await self.post(items[half:], stamp=stamp))
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

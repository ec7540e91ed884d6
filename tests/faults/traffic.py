"""Shoppers who search, look, click and buy, seeded: everything the join has to cope with, in a few records a second.

Most events arrive within the lateness. Some are repeated, late, after the window, without their impression or their
search's time, of a further page, synthetic, without consent, orders that come twice, or not events at all.
"""

import heapq
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

Json = dict[str, Any]


class Sent(NamedTuple):
    """One record as the site sends it."""

    key: bytes
    value: bytes


class Traffic:
    """An endless stream of searches.

    Args:
        seed: same seed and same questions, same answers.
        searches_per_s: how many lists are shown.
        window_ms: the join's window.
        lateness_ms: the disorder that the join waits for; most events keep well within it.
    """

    def __init__(self, seed: int, *, searches_per_s: float, window_ms: int, lateness_ms: int) -> None:
        self._random = random.Random(seed)
        self._gap_ms = 1000 / searches_per_s
        self._window_ms = window_ms
        self._lateness_ms = lateness_ms
        self._next_search_ms: float | None = None
        self._number = 0
        self._queue: list[tuple[int, int, Sent]] = []
        self._sequence = 0

    def until(self, now_ms: int, *, searching: bool = True) -> Iterator[Sent]:
        """Yield what is sent up to a moment; `searching` False lets the shoppers finish what they began."""
        self._next_search_ms = now_ms if self._next_search_ms is None else self._next_search_ms
        while searching and self._next_search_ms <= now_ms:
            self._search(int(self._next_search_ms))
            self._next_search_ms += self._gap_ms
        while self._queue and self._queue[0][0] <= now_ms:
            yield heapq.heappop(self._queue)[2]

    @property
    def waiting(self) -> int:
        """Records that are still to be sent."""
        return len(self._queue)

    def _search(self, at_ms: int) -> None:
        """Plan one search with everything that follows from it."""
        rng = self._random
        self._number += 1
        search_id = f"s{self._number:06d}"
        listed = [f"P-{number}" for number in rng.sample(range(1000), rng.randint(3, 20))]
        if rng.random() < 0.97:
            self._send(at_ms, self._impression(search_id, at_ms, listed))
            if rng.random() < 0.03:
                self._send(at_ms + 50, {**self._impression(search_id, at_ms, listed), "event_id": f"z-{search_id}"})
            if rng.random() < 0.05:
                further = [f"P-{number}" for number in rng.sample(range(1000, 1200), 5)]
                page = self._impression(search_id, at_ms, further, first=len(listed) + 1)
                self._send(at_ms, {**page, "event_id": f"p-{search_id}"})
                listed += further
        for event in self._visit(search_id, at_ms, listed):
            self._send(event["event_time"], event)
        if rng.random() < 0.03:
            self._garbage(at_ms)

    def _impression(self, search_id: str, at_ms: int, listed: list[str], *, first: int = 1) -> Json:
        """Return the list that was shown, or a page of it."""
        rng = self._random
        slots = [
            {
                "product_id": product,
                "position": position,
                "sponsored": rng.random() < 0.05,
                "pinned": rng.random() < 0.03,
                "in_stock": rng.random() > 0.05,
            }
            for position, product in enumerate(listed, start=first)
        ]
        ranking = {"ranker": "millrace", "query_release": 3, "product_release": 1, "arm": "live"}
        return {
            **self._envelope("impression", f"i-{search_id}", at_ms),
            "search_id": search_id,
            "query": f"query {self._number % 40}" if rng.random() < 0.97 else "  ",
            "slots": slots,
            **({"ranking": ranking} if rng.random() < 0.5 else {}),
            **({"synthetic": True} if rng.random() < 0.02 else {}),
            **({"consent": "denied"} if rng.random() < 0.02 else {}),
        }

    def _visit(self, search_id: str, at_ms: int, listed: list[str]) -> Iterator[Json]:
        """Yield what a shopper does with a list."""
        rng = self._random
        if rng.random() < 0.3:
            seen = [
                {"product_id": product, "visible_ms": rng.randint(0, 3000)} for product in listed[: rng.randint(1, 12)]
            ]
            yield self._event("view", search_id, at_ms, slots=seen)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            product = rng.choice(listed) if rng.random() < 0.97 else "P-unlisted"
            yield self._event("click", search_id, at_ms, product_id=product)
            if rng.random() < 0.6:
                stay_ms = rng.choice([1_000, 12_000, 45_000])
                yield self._event("dwell", search_id, at_ms, product_id=product, dwell_ms=stay_ms)
            if rng.random() < 0.2:
                yield self._event("cart", search_id, at_ms, product_id=product, quantity=rng.randint(1, 2))
            if rng.random() < 0.1:
                order = self._purchase(search_id, at_ms, product)
                yield order
                if rng.random() < 0.2:
                    yield {**order, "event_id": f"again-{order['event_id']}"}

    def _event(self, kind: str, search_id: str, at_ms: int, **fields: Any) -> Json:
        """Return one event of a search, somewhere in its window; a few after it, a few without the search's time."""
        self._sequence += 1
        offset_ms = self._random.randint(20, self._window_ms // 2)
        if self._random.random() < 0.02:
            offset_ms = self._window_ms + self._random.randint(1, 500)
        timed = {} if self._random.random() < 0.05 else {"search_time": at_ms}
        envelope = self._envelope(kind, f"{kind}-{self._sequence}", at_ms + offset_ms)
        return {**envelope, "search_id": search_id, **timed, **fields}

    def _purchase(self, search_id: str, at_ms: int, product: str) -> Json:
        """Return an order; a few of several lines, which the join refuses."""
        self._sequence += 1
        line = {"product_id": product, "quantity": 1, "search_id": search_id, "search_time": at_ms}
        lines = [line] if self._random.random() < 0.95 else [line, line]
        envelope = self._envelope("purchase", f"purchase-{self._sequence}", at_ms + self._window_ms // 2)
        return {**envelope, "order_id": f"O-{self._sequence}", "items": lines}

    def _envelope(self, kind: str, event_id: str, time_ms: int) -> Json:
        """Return what every event carries."""
        return {
            "schema_version": 1,
            "type": kind,
            "event_id": event_id,
            "event_time": time_ms,
            "session_id": f"k{self._number % 200}",
        }

    def _garbage(self, at_ms: int) -> None:
        """Plan something that cannot be joined."""
        self._sequence += 1
        far_ahead = self._event("click", f"f-{self._sequence}", at_ms, product_id="P-1")
        bad: list[bytes] = [
            b'{"type":"click", oops',
            b'{"event_time":1795196006756}',
            json.dumps({**far_ahead, "event_time": at_ms + 864_000_000}).encode(),
            json.dumps({**self._envelope("cart", f"c-{self._sequence}", at_ms), "product_id": "P-1"}).encode(),
        ]
        self._plan(at_ms, Sent(f"g-{self._sequence}".encode(), self._random.choice(bad)))

    def _send(self, time_ms: int, event: Json) -> None:
        """Plan the sending of an event: soon, sometimes twice, sometimes when its search is long over."""
        delay_ms = self._random.randint(0, self._lateness_ms // 2)
        if self._random.random() < 0.02:
            delay_ms = 2 * (self._window_ms + self._lateness_ms)
        named = event["items"][0] if event["type"] == "purchase" else event
        sent = Sent(named["search_id"].encode(), json.dumps(event).encode())
        self._plan(time_ms + delay_ms, sent)
        if self._random.random() < 0.04:
            self._plan(time_ms + delay_ms + self._random.randint(0, self._lateness_ms // 4), sent)

    def _plan(self, at_ms: int, sent: Sent) -> None:
        """Put a record into the queue of what is to be sent."""
        self._sequence += 1
        heapq.heappush(self._queue, (at_ms, self._sequence, sent))

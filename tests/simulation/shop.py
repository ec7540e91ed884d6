"""A day of a small shop, seeded: what its site sends to `search-events`, when, and in which disorder."""

import json
import random
from typing import Any, Final, NamedTuple

DAY_MS: Final = 86_400_000
Json = dict[str, Any]


class Sent(NamedTuple):
    """A record on its way; those of one moment keep their order."""

    at_ms: int
    """When Kafka gets it."""
    number: int
    key: bytes
    value: bytes


class Shop:
    """Shoppers who come, search a few times, look, click, and buy at once or hours later.

    Args:
        rng: decides everything.
        begin_ms: when the day begins.
        window_ms: the join's window.
        lateness_ms: the disorder that the join waits for.
        explored: whether lists tell by whom they were ranked, and are exchanged and jittered.
    """

    def __init__(
        self, rng: random.Random, *, begin_ms: int, window_ms: int, lateness_ms: int, visits: int, explored: bool
    ) -> None:
        self._rng = rng
        self._begin_ms, self._window_ms, self._lateness_ms = begin_ms, window_ms, lateness_ms
        self._visits, self._explored = visits, explored
        self._session = ""
        self._client: str | None = None
        self._ahead_ms = 0
        """How far the clock of the shopper's device is ahead."""
        self._sent: list[Sent] = []
        self._number = 0

    def day(self) -> list[Sent]:
        """Return all that is sent, in the order in which it arrives."""
        for number in range(self._visits):
            self._session, self._client = f"k{number}", self._rng.choice([None, f"c{self._rng.randrange(8)}"])
            self._ahead_ms = self._rng.choice((0, 0, 0, 0, 0, -60_000, 3_000, 200_000))
            at_ms = self._begin_ms + self._rng.randrange(DAY_MS) + self._ahead_ms
            for _ in range(self._rng.choice((1, 2, 2, 3, 5))):
                self._search(at_ms)
                at_ms += int(self._rng.expovariate(1 / 60_000)) + 500
            if self._rng.random() < 0.1:
                self._send(at_ms, self._order(at_ms, self._product(), None, None))
        return sorted(self._sent)

    def _search(self, at_ms: int) -> None:
        """Let a shopper search, and do what follows."""
        rng = self._rng
        self._number += 1
        search_id = f"s{self._number}"
        listed = [f"P-{number}" for number in rng.sample(range(60), rng.randint(2, 10))]
        shown = self._impression(search_id, at_ms, listed)
        if rng.random() < 0.95:
            self._send(at_ms, shown)
            if rng.random() < 0.05:
                self._send(at_ms + 40, {**shown, "event_id": f"again-{search_id}"})
        if rng.random() < 0.25:
            seen = [{"product_id": one, "visible_ms": rng.randint(0, 4000)} for one in listed[:5]]
            self._send_event("view", search_id, at_ms, slots=seen)
        for _ in range(rng.choice((0, 1, 1, 2))):
            product = rng.choice(listed)
            self._send_event("click", search_id, at_ms, product_id=product)
            if rng.random() < 0.4:
                stay_ms = rng.choice((1_000, 12_000, 45_000))
                self._send_event("dwell", search_id, at_ms, product_id=product, dwell_ms=stay_ms)
            if rng.random() < 0.2:
                self._send_event("cart", search_id, at_ms, product_id=product, quantity=1)
            for chance, named in ((0.2, True), (0.15, False)):
                if rng.random() < chance:
                    self._buy_later(search_id, at_ms, product, is_named=named)
        if rng.random() < 0.02:
            self._garbage(at_ms)

    def _buy_later(self, search_id: str, at_ms: int, product: str, *, is_named: bool) -> None:
        """Put into the cart or buy, mostly when the list is closed; without naming the list if it is not known."""
        rng = self._rng
        bought_ms = at_ms + rng.choice((60_000, self._window_ms + 1, 2 * self._window_ms, 10_000_000, 30_000_000))
        about = (search_id, at_ms) if is_named else (None, None)
        if rng.random() < 0.4:
            envelope = self._envelope("cart", f"later-{self._next()}", bought_ms)
            named = {"search_id": about[0], "search_time": about[1]} if is_named else {}
            self._send(bought_ms, {**envelope, "product_id": product, "quantity": 1, **named})
            bought_ms += rng.randrange(600_000)
        if rng.random() < 0.8:
            order = self._order(bought_ms, product, *about)
            self._send(bought_ms, order)
            if rng.random() < 0.2:
                self._send(bought_ms + 500, {**order, "event_id": f"again-{order['event_id']}"})

    def _impression(self, search_id: str, at_ms: int, listed: list[str]) -> Json:
        """Return the list that is shown."""
        rng = self._rng
        slots = [
            {"product_id": one, "position": place, "sponsored": rng.random() < 0.05, "in_stock": rng.random() > 0.05}
            for place, one in enumerate(listed, start=1)
        ]
        shown = {
            **self._envelope("impression", f"i-{search_id}", at_ms),
            "search_id": search_id,
            "query": f"query {rng.randrange(12)}" if rng.random() < 0.97 else " ",
            "slots": slots,
            **({"synthetic": True} if rng.random() < 0.03 else {}),
            **({"consent": "denied"} if rng.random() < 0.03 else {}),
        }
        arm, policy = rng.choice((("live", "none"), ("live", "swap"), ("anchor", "jitter")))
        exploration = {"policy": policy if self._explored else "none", "seed": rng.randrange(99)}
        ranking = {"ranker": "millrace", "query_release": rng.choice((0, 4)), "product_release": 1, "arm": arm}
        return {**shown, "ranking": {**ranking, "exploration": exploration}} if rng.random() < 0.8 else shown

    def _send_event(self, kind: str, search_id: str, at_ms: int, **fields: Any) -> None:
        """Send an event of a list, within its window but for a few; a few do not say when the list was shown."""
        happened_ms = at_ms + self._rng.randint(20, self._window_ms if self._rng.random() < 0.1 else 60_000)
        timed = {} if self._rng.random() < 0.06 else {"search_time": at_ms}
        envelope = self._envelope(kind, f"{kind}-{self._next()}", happened_ms)
        self._send(happened_ms, {**envelope, "search_id": search_id, **timed, **fields})

    def _order(self, at_ms: int, product: str, search_id: str | None, search_time: int | None) -> Json:
        """Return an order; a few have two lines, which the join refuses."""
        line = {"product_id": product, "quantity": 1}
        named = {} if search_id is None else {"search_id": search_id, "search_time": search_time}
        lines = [{**line, **named}] * (1 if self._rng.random() < 0.97 else 2)
        number = self._next()
        return {**self._envelope("purchase", f"purchase-{number}", at_ms), "order_id": f"O-{number}", "items": lines}

    def _envelope(self, kind: str, event_id: str, at_ms: int) -> Json:
        """Return what every event carries."""
        client = {} if self._client is None else {"client_id": self._client}
        named = {"session_id": self._session, **client}
        return {"schema_version": 1, "type": kind, "event_id": event_id, "event_time": at_ms, **named}

    def _garbage(self, at_ms: int) -> None:
        """Send what cannot be joined."""
        ahead = {**self._envelope("click", f"ahead-{self._next()}", at_ms + 864_000_000)}
        ahead |= {"search_id": "s1", "product_id": "P-1"}
        bad = (b'{"type":"click", oops', b'{"event_time":1795196006756}', json.dumps(ahead).encode())
        self._sent.append(Sent(at_ms, self._next(), b"g", self._rng.choice(bad)))

    def _send(self, at_ms: int, event: Json) -> None:
        """Send an event: in time, sometimes twice, a few when their list is long over."""
        rng = self._rng
        delay_ms = rng.randrange(self._lateness_ms * 8 // 10)
        if rng.random() < 0.03:
            delay_ms = rng.choice((self._lateness_ms * 2, self._window_ms, 3 * self._window_ms))
        named = event["items"][0] if event["type"] == "purchase" else event
        key, value = (named.get("search_id") or self._session).encode(), json.dumps(event).encode()
        for again in range(1 if rng.random() > 0.04 else 2):
            self._sent.append(
                Sent(at_ms - self._ahead_ms + delay_ms + again * rng.randrange(3_000), self._next(), key, value)
            )

    def _product(self) -> str:
        """Return a product."""
        return f"P-{self._rng.randrange(60)}"

    def _next(self) -> int:
        """Return a number that nothing else has."""
        self._number += 1
        return self._number

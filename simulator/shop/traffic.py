"""Traffic: many shoppers at once, each deciding as `shoppers` says, through the public HTTP routes only.

The visits of a run are fixed beforehand (seed, rate and length give their number and their starts); what they do
depends only on the lists that search returns.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import httpx

from contracts.http import SearchAnswer
from service.machine import epoch_ms
from simulator.shop.shoppers import RESULTS, Action, ShopperOptions, Shoppers, Visit
from simulator.shop.site import USER_AGENT, Delivery, Outbox, Poster, Site, event_of, sent_now
from simulator.shop.world import Query, World

OPEN_SEARCHES: Final = 32
"""Searches under way at once; shoppers beyond wait, as at a slow site."""
RECENT: Final = 1_000
"""How many search latencies are kept for the live view."""
SEARCH_TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 1.0
"""How long after the end of a run visits may still begin that a slow machine has put off."""


@dataclass(slots=True)
class Totals:
    """Running totals of a run; read them at any time.

    After the run `sent` equals `delivery.settled`.
    """

    visits: int = 0
    visits_skipped: int = 0
    """Visits that never began because the machine was too slow."""
    searches: int = 0
    search_errors: int = 0
    last_error: str = ""
    actions: Counter[str] = field(default_factory=Counter)
    """Events by type."""
    sent: int = 0
    delivery: Delivery = field(default_factory=Delivery)
    search_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def clicks(self) -> int:
        """Clicks made."""
        return self.actions["click"]

    @property
    def events_accepted(self) -> int:
        """Events that the collector acknowledged."""
        return self.delivery.accepted


class Traffic:
    """One run of shoppers."""

    def __init__(
        self,
        world: World,
        site: Site,
        *,
        seed: int,
        rate_per_s: float,
        seconds: float,
        options: ShopperOptions | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._world = world
        self._site = site
        self._shoppers = Shoppers(world, seed, options=options)
        self._starts = arrivals_s(seed, rate_per_s=rate_per_s, seconds=seconds)
        self._seconds = seconds
        self._transport = transport
        self._open = asyncio.Semaphore(OPEN_SEARCHES)
        self.totals = Totals()

    async def run(self) -> Totals:
        """Run all visits, deliver all their events, and return the totals."""
        async with httpx.AsyncClient(transport=self._transport, timeout=SEARCH_TIMEOUT_S) as client:
            url = f"{self._site.collector_url}/v1/events"
            poster = Poster(client, url, key=self._site.write_key, name="events", stamp=sent_now)
            outbox = Outbox(poster, self.totals.delivery)
            async with asyncio.TaskGroup() as running:
                sending = running.create_task(outbox.run())
                await self._visits(client, outbox)
                await outbox.drain()
                sending.cancel()
        return self.totals

    async def _visits(self, client: httpx.AsyncClient, outbox: Outbox) -> None:
        """Begin each visit at its time; return when all have ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as visits:
            for number, start_s in enumerate(self._starts):
                await asyncio.sleep(began + start_s - loop.time())
                if loop.time() - began > self._seconds + PATIENCE_S:
                    self.totals.visits_skipped = len(self._starts) - number
                    return
                visits.create_task(self._visit(client, outbox, number))

    async def _visit(self, client: httpx.AsyncClient, outbox: Outbox, number: int) -> None:
        """Search, react, and search again as long as the shopper wants."""
        visit = self._shoppers.visit(number)
        self.totals.visits += 1
        query: Query | None = visit.first
        step = 0
        async with asyncio.TaskGroup() as reports:
            while query is not None:
                answer = await self._search(client, visit, query)
                if answer is None:
                    return
                returned = [result.product_id for result in answer.results]
                reaction = self._shoppers.react(visit, step, query=query, returned=returned)
                reports.create_task(self._report(outbox, visit, answer, reaction.actions))
                query, step = reaction.follow_up, step + 1
                if query is not None:
                    await self._until(answer.search_time, _reading_ms(reaction.actions))

    async def _search(self, client: httpx.AsyncClient, visit: Visit, query: Query) -> SearchAnswer | None:
        """Ask for a list as the site does; None if search failed, which is counted."""
        body = {
            "query": query.query,
            "k": RESULTS,
            "session_id": visit.session_id,
            "client_id": visit.client_id,
        }
        async with self._open:
            began_s = time.perf_counter()
            try:
                response = await client.post(
                    f"{self._site.search_url}/v1/search", json=body, headers={"User-Agent": USER_AGENT}
                )
                response.raise_for_status()
                answer = SearchAnswer.model_validate_json(response.content)
            except (httpx.HTTPError, ValueError) as error:
                self.totals.search_errors += 1
                self.totals.last_error = f"{type(error).__name__}: {error}".strip()
                return None
        self.totals.searches += 1
        self.totals.search_ms.append((time.perf_counter() - began_s) * 1000)
        return answer

    async def _report(self, outbox: Outbox, visit: Visit, answer: SearchAnswer, actions: Sequence[Action]) -> None:
        """Hand each action's event to the outbox when it is due."""
        for action in actions:
            await self._until(answer.search_time, action.at_ms)
            event = event_of(
                action,
                visit,
                search_id=answer.search_id,
                search_time=answer.search_time,
                products=self._world.by_product_id,
            )
            self.totals.actions[action.kind] += 1
            outbox.put(event)
            self.totals.sent = outbox.sent

    async def _until(self, search_time: int, offset_ms: int) -> None:
        """Sleep until a moment counted from the impression; never longer than the offset, whatever the clocks say."""
        pause_ms = max(0, min(offset_ms, search_time + offset_ms - epoch_ms()))
        await asyncio.sleep(pause_ms / 1000)


def arrivals_s(seed: int, *, rate_per_s: float, seconds: float) -> list[float]:
    """Draw when visits begin, in seconds from the start: as they come, independently of one another.

    >>> arrivals_s(1, rate_per_s=2.0, seconds=10.0) == arrivals_s(1, rate_per_s=2.0, seconds=10.0)
    True
    """
    rng, moments, moment = Random(f"arrivals:{seed}"), [], 0.0
    while (moment := moment + rng.expovariate(rate_per_s)) < seconds:
        moments.append(moment)
    return moments


def _reading_ms(actions: Sequence[Action]) -> int:
    """How long the shopper is busy with a list before typing again."""
    return max((action.at_ms for action in actions if action.kind in {"view", "click", "dwell"}), default=0)

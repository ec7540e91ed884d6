"""Probes that run beside the shoppers: which release answers now, and how soon a launched product is found."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from contracts.errors import DependencyDown
from service.logging import get_logger
from simulator.demo.trail import ClickTrail
from simulator.shop.ask import ask
from simulator.shop.loading import launch_products, send_products
from simulator.shop.sender import now_ms
from simulator.shop.world import World

ANSWER_EVERY_S: Final = 0.25
FIND_EVERY_S: Final = 0.1
GIVE_UP_S: Final = 60.0


async def watch_answers(client: httpx.AsyncClient, search_url: str, *, query: str, trail: ClickTrail) -> None:
    """Ask a cheap query over and over and note which release answers, until cancelled."""
    while True:
        try:
            trail.note_answer((await ask(client, search_url, query=query, k=1)).query_release)
        except DependencyDown as exc:
            get_logger().warning("probe unanswered", error=exc.message)
        await asyncio.sleep(ANSWER_EVERY_S)


class LaunchProbe:
    """Launches products one by one and searches for each until it is found.

    Args:
        world: whose catalogue they join.
        collector_url: where products are sent.
        search_url: where they are searched for.
        secret_key: for `/v1/products`.
        seed: decides what is launched.
    """

    def __init__(self, world: World, collector_url: str, search_url: str, *, secret_key: str, seed: int) -> None:
        self._world = world
        self._collector_url = collector_url
        self._search_url = search_url
        self._secret_key = secret_key
        self._seed = seed
        self.found_s: list[float] = []
        self.launched = 0
        self.never_found: list[str] = []

    async def run(self, client: httpx.AsyncClient, *, count: int, seconds: float) -> None:
        """Launch `count` products evenly over `seconds`; return when each was found or given up."""
        async with asyncio.TaskGroup() as searches:
            for number in range(count):
                (product,) = launch_products(self._world, seed=self._seed + number, count=1, now_ms=now_ms())
                searches.create_task(self._launch(client, product))
                await asyncio.sleep(seconds / count)

    async def _launch(self, client: httpx.AsyncClient, product: dict[str, Any]) -> None:
        began = time.monotonic()
        self.launched += 1
        await send_products([product], self._collector_url, secret_key=self._secret_key)
        while time.monotonic() - began < GIVE_UP_S:
            if await self._is_found(client, product):
                self.found_s.append(time.monotonic() - began)
                return
            await asyncio.sleep(FIND_EVERY_S)
        self.never_found.append(product["product_id"])

    async def _is_found(self, client: httpx.AsyncClient, product: Mapping[str, Any]) -> bool:
        """Return whether search lists the product; a search that fails has not found it."""
        try:
            answer = await ask(client, self._search_url, query=product["title"], k=10)
        except DependencyDown as exc:
            get_logger().warning("probe unanswered", error=exc.message)
            return False
        return product["product_id"] in [result.product_id for result in answer.results]


def cheapest_probe_query(queries: Sequence[str]) -> str:
    """Return the query whose answer is asked for over and over: the shortest, then alphabetically the first."""
    return min(queries, key=lambda query: (len(query), query))

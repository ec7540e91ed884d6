"""Products that are launched while shoppers shop, each searched for until it is found."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

import httpx

from contracts.errors import DependencyDown
from service.logging import get_logger
from service.machine import epoch_ms
from simulator.demo.measurement import ask
from simulator.shop.posting import send_products
from simulator.shop.world import World

FIND_EVERY_S: Final = 0.1
GIVE_UP_S: Final = 60.0
_SYLLABLES: Final = ("zor", "bla", "quix", "yth", "vom", "kra", "jep", "tul", "wexi", "ondu", "fyr", "gux")


def launch_products(world: World, *, seed: int, count: int, now_ms: int) -> tuple[dict[str, Any], ...]:
    """Make products that are new to a world, with titles that nothing else resembles: a search for one finds it.

    Args:
        world: whose catalogue they join; their ids are not in it.
        seed: decides ids, names and kinds.
        count: how many.
        now_ms: launch time and version.
    """
    rng = Random(f"launches:{seed}:{now_ms}")
    kinds = sorted({str(product["category"][-1]) for product in world.products if product.get("category")})
    ids = (f"L-{now_ms}-{seed}-{number:03d}" for number in range(count))
    return tuple(_launch(rng, product_id, kinds or ["Electronics"], now_ms) for product_id in ids)


def _launch(rng: Random, product_id: str, kinds: Sequence[str], now_ms: int) -> dict[str, Any]:
    name = "".join(rng.sample(_SYLLABLES, 3)).capitalize()
    model, kind = f"{rng.randrange(1000, 9999)}", rng.choice(kinds)
    return {
        "type": "product",
        "schema_version": 1,
        "product_id": product_id,
        "version": now_ms,
        "title": f"{name} {model} first edition, {kind.lower()}",
        "description": f"The {name} {model} is launched today.",
        "category": [kind],
        "brand": name,
        "attributes": {"model": model},
        "price": 9990.0,
        "currency": "INR",
        "in_stock": True,
        "launched_at": now_ms,
        "priority": 0.0,
        "parent_id": f"{product_id}-V",
        "seller_id": "S-1",
        "locale": "en-IN",
        "url": f"https://shop.example/p/{product_id}",
    }


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
                (product,) = launch_products(self._world, seed=self._seed + number, count=1, now_ms=epoch_ms())
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
        try:
            answer = await ask(client, self._search_url, query=product["title"], k=10)
        except DependencyDown as error:
            get_logger().warning("probe_unanswered", error=error.message)
            return False
        return product["product_id"] in [result.product_id for result in answer.results]

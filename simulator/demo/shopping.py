"""The two minutes in which shoppers shop: traffic, launches, questions and the live view, side by side."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import httpx
from rich.console import Console

from contracts.errors import DependencyDown
from service.logging import get_logger
from service.settings import Settings
from simulator.demo.freshness import ClickFreshness, LaunchProbe, ReleaseLog, cheapest_query, quantiles, watch_answers
from simulator.demo.measurement import evaluate, sample_gain
from simulator.demo.report import LiveView
from simulator.evaluation import QueryScore
from simulator.shop.shoppers import ShopperOptions
from simulator.shop.site import Site
from simulator.shop.traffic import Totals, Traffic
from simulator.shop.world import World

RATE_PER_S: Final = 14.0
"""Visits begun per second: what two cores carry beside the servers; a visit is one search or more."""
LAUNCHES: Final = 12
SAMPLE: Final = 48
"""Unseen queries asked now and then for the live view; the closing figures ask all of them."""
REFRESH_S: Final = 0.5
SAMPLE_EVERY_S: Final = 20.0


class Shopping:
    """Shoppers at work."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        urls: Mapping[str, str],
        *,
        seed: int,
        seconds: int,
        clicks: float | None,
        console: Console,
    ) -> None:
        (write_key,) = settings.require("write_key")
        site = Site(urls["collector"], urls["search"], write_key)
        self._traffic = Traffic(
            world,
            site,
            seed=seed,
            rate_per_s=RATE_PER_S,
            seconds=float(seconds),
            options=ShopperOptions(compressed=True, clicks=clicks),
        )
        self._sample = replace(world, queries=world.of_split("test")[:SAMPLE])
        self._cheap_query = cheapest_query([query.query for query in world.of_split("train")])
        self._search_url = urls["search"]
        self._seconds = seconds
        self._console = console
        self._began = 0.0
        self._first: tuple[QueryScore, ...] = ()
        self._quality = "not measured yet"

    @property
    def totals(self) -> Totals:
        """What the shoppers did."""
        return self._traffic.totals

    async def run(
        self, client: httpx.AsyncClient, *, clicks: ClickFreshness, launches: LaunchProbe, releases: ReleaseLog
    ) -> None:
        """Let shoppers shop for the time asked for; return when all their events are delivered."""
        self._first = await self._ask_sample()
        self._began = time.monotonic()
        view = LiveView(self._console, lambda: self._progress(clicks, launches, releases))
        with view:
            watchers = [
                asyncio.create_task(watch_answers(client, self._search_url, query=self._cheap_query, clicks=clicks)),
                asyncio.create_task(self._sample_now_and_then()),
                asyncio.create_task(_refresh(view)),
            ]
            try:
                async with asyncio.TaskGroup() as work:
                    work.create_task(self._traffic.run())
                    work.create_task(launches.run(client, count=LAUNCHES, seconds=0.9 * self._seconds))
            finally:
                await _cancel(watchers)

    async def wait_until(
        self, condition: Callable[[], bool], client: httpx.AsyncClient, *, clicks: ClickFreshness, timeout_s: float
    ) -> None:
        """Go on asking which release answers until a condition holds or the time is over."""
        watcher = asyncio.create_task(watch_answers(client, self._search_url, query=self._cheap_query, clicks=clicks))
        deadline = time.monotonic() + timeout_s
        try:
            while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 - threads of others change it
                await asyncio.sleep(REFRESH_S)
        finally:
            await _cancel([watcher])

    async def _ask_sample(self) -> tuple[QueryScore, ...]:
        return await evaluate(self._sample, self._search_url, split="test")

    async def _sample_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            try:
                self._quality = sample_gain(self._first, await self._ask_sample())
            except DependencyDown as error:
                get_logger().warning("sample_unanswered", error=error.message)

    def _progress(self, clicks: ClickFreshness, launches: LaunchProbe, releases: ReleaseLog) -> dict[str, Any]:
        passed, totals = time.monotonic() - self._began, self.totals
        return {
            "clock": f"{passed:.0f} of {self._seconds} s",
            "searches": totals.searches,
            "clicks": totals.clicks,
            "events": totals.events_accepted,
            "events_per_s": totals.events_accepted / max(passed, 1.0),
            "lists": clicks.lists_seen,
            "query_releases": releases.query_releases_served(),
            "product_releases": releases.product_releases_served(),
            "in force": releases.in_force(),
            "click to search": _median(clicks.learned_s()),
            "product to search": _median(launches.found_s),
            "quality so far": self._quality,
        }


async def _refresh(view: LiveView) -> None:
    while True:
        view.refresh()
        await asyncio.sleep(REFRESH_S)


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    """Cancel background tasks; one that had failed raises its error here."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


def _median(values: list[float]) -> str:
    middle = quantiles(values)["p50"]
    return "not measured yet" if middle is None else f"{middle:.1f} s (median of {len(values)})"

"""The two minutes in which shoppers shop: traffic, probes and the live view, side by side."""

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
from simulator.demo.freshness import quantiles
from simulator.demo.live import LiveView
from simulator.demo.measure import sample_gain
from simulator.demo.options import LAUNCHES, RATE_PER_S, SAMPLE, DemoOptions
from simulator.demo.probes import LaunchProbe, cheapest_probe_query, watch_answers
from simulator.demo.state import ReleaseLog
from simulator.demo.trail import ClickTrail
from simulator.evaluation import QueryScore
from simulator.shop.ask import evaluate
from simulator.shop.shoppers import ShopperOptions
from simulator.shop.traffic import Site, Totals, Traffic
from simulator.shop.world import World

REFRESH_S: Final = 0.5
SAMPLE_EVERY_S: Final = 20.0


class Shopping:
    """Shoppers at work.

    Args:
        world: what they want.
        settings: of the deployment.
        urls: process name -> base URL.
        options: of the demo.
        console: where the live view goes.
    """

    def __init__(
        self, world: World, settings: Settings, urls: Mapping[str, str], *, options: DemoOptions, console: Console
    ) -> None:
        (write_key,) = settings.require("write_key")
        site = Site(urls["collector"], urls["search"], write_key)
        self._traffic = Traffic(
            world,
            site,
            seed=options.seed,
            rate_per_s=RATE_PER_S,
            seconds=float(options.seconds),
            options=ShopperOptions(compressed=True),
        )
        self._sample = replace(world, queries=world.of_split("test")[:SAMPLE])
        self._probe_query = cheapest_probe_query([query.query for query in world.of_split("train")])
        self._search_url = urls["search"]
        self._options = options
        self._console = console
        self._began = 0.0
        self._first: tuple[QueryScore, ...] = ()
        self._quality = "not measured yet"

    @property
    def totals(self) -> Totals:
        """What the shoppers did."""
        return self._traffic.totals

    async def run(
        self, client: httpx.AsyncClient, *, trail: ClickTrail, launches: LaunchProbe, releases: ReleaseLog
    ) -> None:
        """Let shoppers shop for the time asked for; return when all their events are delivered."""
        self._first = await self._ask_sample()
        self._began = time.monotonic()
        view = LiveView(self._console, lambda: self._progress(trail, launches, releases))
        with view:
            watchers = [
                asyncio.create_task(watch_answers(client, self._search_url, query=self._probe_query, trail=trail)),
                asyncio.create_task(self._sample_now_and_then()),
                asyncio.create_task(_refresh(view)),
            ]
            try:
                async with asyncio.TaskGroup() as work:
                    work.create_task(self._traffic.run())
                    work.create_task(launches.run(client, count=LAUNCHES, seconds=0.9 * self._options.seconds))
            finally:
                await _cancel(watchers)

    async def wait_until(
        self, condition: Callable[[], bool], client: httpx.AsyncClient, *, trail: ClickTrail, timeout_s: float
    ) -> None:
        """Go on asking which release answers until a condition holds or the time is over."""
        watcher = asyncio.create_task(watch_answers(client, self._search_url, query=self._probe_query, trail=trail))
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
            except DependencyDown as exc:
                get_logger().warning("sample unanswered", error=exc.message)

    def _progress(self, trail: ClickTrail, launches: LaunchProbe, releases: ReleaseLog) -> dict[str, Any]:
        """Return what the live view shows now."""
        passed, totals = time.monotonic() - self._began, self.totals
        return {
            "clock": f"{passed:.0f} of {self._options.seconds} s",
            "searches": totals.searches,
            "clicks": totals.clicks,
            "events": totals.events_accepted,
            "events_per_s": totals.events_accepted / max(passed, 1.0),
            "pairs": trail.pairs_seen,
            "query_releases": releases.query_releases_served(),
            "product_releases": releases.product_releases_served(),
            "in force": releases.in_force(),
            "click to search": _median(trail.click_to_search_s(releases.manifests)),
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

"""The demo on a deployment that runs: load, measure, shop, wait for the last release, measure again, show.

The demo is a client like any shop: it talks to the collector and the search API, and looks at Kafka as the page does.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from contracts.errors import CheckFailed
from contracts.topics import MODELS
from deploy.local.supervisor import LocalMillrace
from indexer.adapters.qdrant import connect
from millrace.output import out
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from service.follow import TopicFollower
from simulator.demo.freshness import ClickFreshness, ReleaseLog, measured
from simulator.demo.launches import LaunchProbe
from simulator.demo.measurement import Measurement
from simulator.demo.report import closing_screen, figures_of, shortfalls
from simulator.demo.shopping import Shopping
from simulator.shop.posting import send_products
from simulator.shop.world import World

INDEX_STALL_S: Final = 120.0
"""A slow machine may take its time over the catalogue; an indexer that adds nothing for so long is stuck."""
RELEASE_TIMEOUT_S: Final = 120.0
SETTLE_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The arguments of `millrace demo`.

    Args:
        world: folder of another world; None for the built-in one.
        seed: of the world and its shoppers.
        seconds: how long shoppers shop.
        keep: serve on without a terminal as well.
        json_file: where the closing figures go.
    """

    world: Path | None = None
    seed: int = 1
    seconds: int = 120
    keep: bool = False
    json_file: Path | None = None


class Demo:
    """One demo against a running deployment.

    Args:
        options: what was asked for.
        world: the shop.
        running: the deployment.
        console: where progress goes.
    """

    def __init__(self, options: DemoOptions, world: World, running: LocalMillrace, console: Console) -> None:
        self._options = options
        self._world = world
        self._settings = running.settings
        self._urls: Mapping[str, str] = running.urls
        self._console = console
        self._releases = ReleaseLog()
        self._clicks = ClickFreshness(running.settings, self._releases)
        (self._secret_key,) = running.settings.require("secret_key")
        collector_url, search_url, seed = self._urls["collector"], self._urls["search"], 1000 * options.seed
        self._launches = LaunchProbe(world, collector_url, search_url, secret_key=self._secret_key, seed=seed)

    async def run(self) -> None:
        """Run every phase and print the closing screen."""
        await self._load()
        measurement = Measurement(self._world, self._urls["search"])
        self._say("measuring the untrained system")
        await measurement.before()
        follower = TopicFollower(self._settings, MODELS, self._releases.apply)
        follower.start()
        self._clicks.start()
        with Observer(self._settings) as observer:
            shopping = Shopping(
                self._world,
                self._settings,
                self._urls,
                seed=self._options.seed,
                seconds=self._options.seconds,
                console=self._console,
            )
            async with httpx.AsyncClient(timeout=30.0) as client:
                await shopping.run(client, clicks=self._clicks, launches=self._launches, releases=self._releases)
                for line in shortfalls(shopping.totals, self._launches.never_found):
                    self._say(line)
                await self._settle(client, shopping)
            self._say("measuring the trained system")
            await measurement.after()
            ledger = await self._settled_ledger(observer)
        self._clicks.stop()
        follower.stop()
        if failure := self._clicks.failure or follower.failure:
            raise failure
        figures = self._figures(measurement, shopping, ledger)
        self._show(figures, measurement)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    async def _load(self) -> None:
        """Send the catalogue and wait until every product of it is in the index."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        total = len(self._world.products)
        with Progress(*columns, console=self._console) as bars:
            sent, indexed = (
                bars.add_task("catalogue sent", total=total),
                bars.add_task("products searchable", total=total),
            )
            await send_products(
                self._world.products,
                self._urls["collector"],
                secret_key=self._secret_key,
                progress=lambda done, _: bars.update(sent, completed=done),
            )
            await self._until_indexed(total, lambda done: bars.update(indexed, completed=done))

    async def _until_indexed(self, total: int, progress: Callable[[int], None]) -> None:
        store = connect(self._settings, timeout_s=30)
        most, risen_s = 0, time.monotonic()
        try:
            while (done := (await asyncio.to_thread(store.count, self._settings.alias())).count) < total:
                if done > most:
                    most, risen_s = done, time.monotonic()
                if time.monotonic() - risen_s > INDEX_STALL_S:
                    fix = f"read {self._settings.data_dir}/logs/indexer.log"
                    raise CheckFailed(
                        f"{done} of {total} products are searchable and none was added for {INDEX_STALL_S:g} s", fix=fix
                    )
                progress(done)
                await asyncio.sleep(POLL_S)
            progress(total)
        finally:
            store.close()

    async def _settle(self, client: httpx.AsyncClient, shopping: Shopping) -> None:
        """Wait until what the shoppers did is in force: a product release, and a release trained on the last click."""
        self._say("waiting for the last clicks to be learned")
        await shopping.wait_until(
            lambda: self._releases.product_releases_served() >= 1,
            client,
            clicks=self._clicks,
            timeout_s=RELEASE_TIMEOUT_S,
        )
        if self._releases.product_releases_served() == 0:
            fix = f"read the logs of trainer and indexer in {self._settings.data_dir}/logs"
            raise CheckFailed(f"no product release came into force within {RELEASE_TIMEOUT_S:g} s", fix=fix)
        await shopping.wait_until(self._clicks.all_learned, client, clicks=self._clicks, timeout_s=SETTLE_TIMEOUT_S)

    async def _settled_ledger(self, observer: Observer) -> dict[str, Any]:
        """The ledgers once nothing is pending any more, or as they are after the settling time."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        await asyncio.to_thread(observer.wait_caught_up, 30.0)
        while True:
            report = ledger_report(await asyncio.to_thread(observer.look))
            pending = [report[ledger]["pending"] for ledger in ("events", "searches")]
            if pending == [0, 0] or time.monotonic() > deadline:
                return report
            await asyncio.sleep(POLL_S)

    def _figures(self, measurement: Measurement, shopping: Shopping, ledger: dict[str, Any]) -> dict[str, Any]:
        releases, seed = self._releases, self._options.seed
        return figures_of(
            seed=seed,
            seconds=self._options.seconds,
            world=self._world.name,
            quality=measurement.quality(seed=seed),
            totals=shopping.totals,
            ledger=ledger,
            releases={"query": releases.query_releases_served(), "product": releases.product_releases_served()},
            freshness={
                "click_to_search": measured(self._clicks.learned_s(), of=self._clicks.clicks_with_pairs()),
                "product_to_search": measured(self._launches.found_s, of=self._launches.launched),
            },
        )

    def _show(self, figures: dict[str, Any], measurement: Measurement) -> None:
        if self._options.json_file:
            self._options.json_file.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
        links = {
            "the page": self._urls["page"] + "/",
            "search API": self._urls["search"] + "/docs",
            "Qdrant (any client)": self._urls["qdrant"],
            "lag, ledgers": f"MILLRACE_DATA_DIR={_short(self._settings.data_dir)} .venv/bin/millrace status",
            "logs": f"{_short(self._settings.data_dir)}/logs/",
            "documentation": "README.md, docs/quickstart.md",
        }
        examples = measurement.examples(seed=self._options.seed)
        out().print(closing_screen(figures, examples, links))


def _short(path: Path) -> str:
    """A path as short as it can be written from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

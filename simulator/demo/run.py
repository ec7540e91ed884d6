"""The demo: on a deployment of its own, load, measure, shop, wait for the last release, measure again, show.

The demo is a client like any shop: it talks to the collector and the search API, and looks at Kafka as the page does.
It begins where nothing was learned yet and ends cleanly by any signal.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
from rich.console import Console

from contracts.errors import CheckFailed, MillraceError, UsageError
from contracts.topics import MODELS
from deploy.local.state import is_running
from deploy.local.supervisor import LocalMillrace
from deploy.local.up import SIGNALS, stopping_on_signals
from indexer.qdrant import connect
from millrace.output import messages, out, progress_bars
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from service.follow import TopicFollower
from service.machine import write_atomically
from service.settings import Settings, load_settings
from simulator.demo.freshness import ClickFreshness, LaunchProbe, ReleaseLog, measured
from simulator.demo.measurement import Measurement
from simulator.demo.report import closing_screen, figures_of, shortfalls
from simulator.demo.shopping import Shopping
from simulator.shop.builtin import world_of
from simulator.shop.site import send_products
from simulator.shop.world import World

COMPRESSED: Final[dict[str, Any]] = {
    "join_window_s": 3.0,
    "lateness_s": 1.0,
    "product_release_interval_s": 45.0,
}
"""Shoppers report within 2 s in the demo, so a search may close after 3 s; product releases come within the minute."""
INDEX_STALL_S: Final = 120.0
"""A slow machine may take its time over the catalogue; an indexer that adds nothing for so long is stuck."""
RELEASE_TIMEOUT_S: Final = 120.0
SETTLE_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The arguments of `millrace demo`."""

    world: Path | None = None
    seed: int = 1
    seconds: int = 120
    clicks: float | None = None
    keep: bool = False
    json_file: Path | None = None


class Demo:
    """One demo against a running deployment."""

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
        follower = TopicFollower(self._settings, MODELS, self._releases.table.apply)
        follower.start()
        self._clicks.start()
        with Observer(self._settings) as observer:
            shopping = Shopping(
                self._world,
                self._settings,
                self._urls,
                seed=self._options.seed,
                seconds=self._options.seconds,
                clicks=self._options.clicks,
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
        self._console.print(text)

    async def _load(self) -> None:
        """Send the catalogue and wait until every product of it is in the index."""
        total = len(self._world.products)
        with progress_bars() as tell:
            await send_products(
                self._world.products,
                self._urls["collector"],
                secret_key=self._secret_key,
                progress=lambda done, of: tell("catalogue sent", done, of),
            )
            await self._until_indexed(total, lambda done: tell("products searchable", done, total))

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
                "click_to_search": measured(self._clicks.learned_s(), of=self._clicks.clicks_that_count()),
                "product_to_search": measured(self._launches.found_s, of=self._launches.launched),
            },
        )

    def _show(self, figures: dict[str, Any], measurement: Measurement) -> None:
        if self._options.json_file:
            write_atomically(self._options.json_file, orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
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


def run_demo(options: DemoOptions) -> None:
    """Run the demo and show its closing screen.

    Raises:
        UsageError: a demo already runs here, or the world's folder is wrong.
        DependencyDown: something that is needed is missing.
        CheckFailed: the chain did not do its work in time.
    """
    console = messages()
    _require_writable(options.json_file)
    began = time.monotonic()
    console.print(f"building the shop's world (seed {options.seed})" if options.world is None else "reading the world")
    world = world_of(options.world, options.seed)
    overrides = fresh_deployment(load_settings())
    ended = False
    with stopping_on_signals(), LocalMillrace(overrides, on_progress=_progress_printer(console, began)) as running:
        ended = asyncio.run(until_signalled(Demo(options, world, running, console).run()))
        if ended and (options.keep or (out().is_terminal and console.is_terminal)):
            _serve_until_stopped(console)
            console.print("stopping")
    if not ended:
        raise MillraceError("the demo was stopped before its end", fix="`make demo` begins anew")


async def until_signalled(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end or until a signal asks for the stop; return whether it came to its end."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return True


def _require_writable(file: Path | None) -> None:
    """Refuse a place for the figures that could not be written, before minutes of work.

    Raises:
        UsageError: its folder does not exist or may not be written, or something is there that is no file.
    """
    if file is not None and ((file.exists() and not file.is_file()) or not os.access(file.parent, os.W_OK)):
        raise UsageError(f"--json {file} cannot be written", fix="name a file in a folder that exists")


def fresh_deployment(settings: Settings) -> dict[str, Any]:
    """Settle the settings of a deployment in which nothing has been learned yet.

    The demo has a data folder of its own, emptied at each start; if the settings name servers, topics and collections
    get a prefix of their own.

    Raises:
        UsageError: a demo runs in that folder now.
    """
    folder = settings.data_dir / "demo"
    if is_running(folder):
        raise UsageError(
            "a demo is running already", fix="stop it with Ctrl-C, or set MILLRACE_DATA_DIR for a second one"
        )
    shutil.rmtree(folder, ignore_errors=True)
    overrides: dict[str, Any] = {**COMPRESSED, "data_dir": folder}
    if settings.kafka_bootstrap or settings.qdrant_url:
        overrides["topic_prefix"] = f"demo-{int(time.time())}-"
    return overrides


def _progress_printer(console: Console, began: float) -> Callable[[str, str, str], None]:
    def show(name: str, state: str, detail: str) -> None:
        if state in ("ready", "external", "failed", "backing_off"):
            console.print(f"{time.monotonic() - began:6.1f} s  {name} {state} {detail}".rstrip())

    return show


def _serve_until_stopped(console: Console) -> None:
    console.print("\nserving until Ctrl-C", style="bold")
    with stopping_on_signals():
        while True:
            time.sleep(3600)

"""Freshness measured from outside, as a shopper would notice it.

Click to search: from a click to the first answer that came from a release which learned from that click: the click's
list lies below the release's offset in its partition of `training-searches`. Product to search: from launching a
product to the first answer that lists it; each is searched for until it is found.
"""

import asyncio
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import httpx
from kafka import KafkaConsumer, TopicPartition

from contracts.errors import DependencyDown, MillraceError
from contracts.releases import ReleaseManifest, Serving
from contracts.structs import TRAINING_SEARCH
from contracts.topics import TRAINING_SEARCHES
from service.kafka import consumer_config, translate_kafka_errors
from service.logging import get_logger
from service.machine import epoch_ms
from service.models import ModelsTable
from service.settings import Settings
from simulator.demo.measurement import ask
from simulator.shop.site import send_products
from simulator.shop.world import World

POLL_MS: Final = 250
ANSWER_EVERY_S: Final = 0.25
FIND_EVERY_S: Final = 0.1
GIVE_UP_S: Final = 60.0
_SYLLABLES: Final = ("zor", "bla", "quix", "yth", "vom", "kra", "jep", "tul", "wexi", "ondu", "fyr", "gux")


@dataclass(frozen=True, slots=True)
class ListPlace:
    """Where the list of one click is in `training-searches`, and when the click happened (epoch ms)."""

    partition: int
    offset: int
    click_time: int


def click_to_search_s(
    clicks: Iterable[ListPlace], answers: Mapping[int, int], manifests: Mapping[int, ReleaseManifest]
) -> list[float]:
    """Measure the seconds from each click to the first answer of a release trained on it.

    Clicks that no answering release has covered yet are left out; compare the length with the number of clicks.
    """
    seen = sorted((at_ms, release) for release, at_ms in answers.items() if release in manifests)
    timeline = [(at_ms, manifests[release].offsets) for at_ms, release in seen]
    return [waited for click in clicks if (waited := _waited_s(click, timeline)) is not None]


def _waited_s(click: ListPlace, timeline: list[tuple[int, dict[str, int]]]) -> float | None:
    for at_ms, offsets in timeline:
        if offsets.get(f"{TRAINING_SEARCHES}/{click.partition}", 0) > click.offset:
            return max(0.0, (at_ms - click.click_time) / 1000)
    return None


def quantiles(values: Iterable[float]) -> dict[str, float | None]:
    """Take p50 and p99 (nearest rank), None without values.

    >>> quantiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p99': 3.0}
    """
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None}
    return {name: ordered[math.ceil(q * len(ordered)) - 1] for name, q in (("p50", 0.5), ("p99", 0.99))}


def measured(values: Sequence[float], *, of: int) -> dict[str, float | int | None]:
    """Take p50 and p99; say how many were measured and how many given up, which would have been the slowest.

    >>> measured([3.0, 1.0], of=3)
    {'p50': 1.0, 'p99': 3.0, 'measured': 2, 'missing': 1}
    """
    return {**quantiles(values), "measured": len(values), "missing": max(0, of - len(values))}


class ReleaseLog:
    """Every query release published during the demo, the tombstoned ones included, and every switch of `serving`."""

    def __init__(self) -> None:
        self.table = ModelsTable(on_change=self._note, bytes_of=())
        self.manifests: dict[int, ReleaseManifest] = {}
        self.serving: list[Serving] = []

    def _note(self) -> None:
        """Keep what is new; readers hold what was, because nothing is changed in place."""
        view = self.table.look()
        found = {one.release: one for one in view.manifests.values() if one.kind == "query"}
        if found.keys() - self.manifests.keys():
            self.manifests = {**self.manifests, **found}
        if view.serving is not None and view.serving not in self.serving[-1:]:
            self.serving = [*self.serving, view.serving]

    def in_force(self) -> str:
        """Say which releases are in force."""
        if not self.serving:
            return "nothing yet"
        last = self.serving[-1]
        return f"query release {last.query_release} on product release {last.product_release}"

    def product_releases_served(self) -> int:
        """Count the product releases that went through the whole index and came into force."""
        return len({entry.product_release for entry in self.serving} - {0})

    def query_releases_served(self) -> int:
        """Count the query releases that came into force."""
        return len({entry.query_release for entry in self.serving} - {0})


class ClickFreshness:
    """Reads `training-searches` beside the trainer and keeps every click that something is learned from.

    Ask it at any time; start and stop it once. What ended it by itself is kept in `failure`.
    """

    def __init__(self, settings: Settings, releases: ReleaseLog) -> None:
        self._settings = settings
        self._releases = releases
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="click-freshness", daemon=True)
        self._places: dict[tuple[str, str], ListPlace] = {}
        self.lists_seen = 0
        self.first_answers: dict[int, int] = {}
        """Query release -> the moment (epoch ms) at which it was first seen to answer."""
        self.failure: MillraceError | None = None

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; harmless when it was never started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def note_answer(self, query_release: int) -> None:
        """Note that search has just answered with this release; only its first answer counts."""
        self.first_answers.setdefault(query_release, epoch_ms())

    def note_list(self, value: bytes, partition: int, offset: int) -> None:
        """Take one record of `training-searches`; a list that comes twice counts where it came first.

        Raises:
            MalformedMessage: it is no training search.
        """
        search = TRAINING_SEARCH.decode(value)
        self.lists_seen += 1
        for slot in search.slots:
            if slot.value and slot.click_time is not None:
                place = ListPlace(partition, offset, slot.click_time)
                self._places.setdefault((search.search_id, slot.product_id), place)

    def clicks_that_count(self) -> int:
        """Count the clicks that something is learned from."""
        return len(self._places)

    def learned_s(self) -> list[float]:
        """Measure click to search for the clicks that an answering release has learned from so far."""
        return click_to_search_s(list(self._places.values()), dict(self.first_answers), self._releases.manifests)

    def all_learned(self) -> bool:
        """Whether search has answered with a release that learned from the last click."""
        return len(self.learned_s()) >= self.clicks_that_count()

    def _run(self) -> None:
        try:
            with translate_kafka_errors(self._settings), KafkaConsumer(**consumer_config(self._settings)) as consumer:
                self._read(consumer)
        except MillraceError as error:
            get_logger().error("click_freshness_lost", error=error.message, fix=error.fix)
            self.failure = error

    def _read(self, consumer: KafkaConsumer) -> None:
        name = self._settings.topic(TRAINING_SEARCHES)
        numbers = consumer.partitions_for_topic(name)
        if not numbers:
            raise DependencyDown(f"Kafka does not know the topic {name}", fix="a restart of any service creates it")
        consumer.assign([TopicPartition(name, number) for number in sorted(numbers)])
        while not self._stop.is_set():
            for partition, records in consumer.poll(timeout_ms=POLL_MS).items():
                for record in records:
                    self.note_list(record.value, partition.partition, record.offset)


async def watch_answers(client: httpx.AsyncClient, search_url: str, *, query: str, clicks: ClickFreshness) -> None:
    """Ask a cheap query over and over and note which release answers, until cancelled."""
    while True:
        try:
            clicks.note_answer((await ask(client, search_url, query=query, k=1)).query_release)
        except DependencyDown as error:
            get_logger().warning("probe_unanswered", error=error.message)
        await asyncio.sleep(ANSWER_EVERY_S)


def cheapest_query(queries: Sequence[str]) -> str:
    """Choose the query that is asked over and over: the shortest, then alphabetically the first."""
    return min(queries, key=lambda query: (len(query), query))


def launch_products(world: World, *, seed: int, count: int, now_ms: int) -> tuple[dict[str, Any], ...]:
    """Make products that are new to a world, with titles that nothing else resembles: a search for one finds it."""
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
    """Launches products one by one and searches for each until it is found."""

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

"""Launches are unmistakable, and each is searched for until it is found; a missed answer does not end a demo."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from contracts.catalog import CATALOG_CHANGE
from contracts.errors import DependencyDown
from contracts.wire import validate
from simulator.demo import freshness
from simulator.demo.freshness import LaunchProbe, launch_products
from simulator.shop.world import World

WORLD = World(({"product_id": "P-1", "category": ["Fridges"]},), (), {}, name="tiny")


class Index:
    """A search service that lists a product only at the n-th question about it.

    Args:
        answers: what becomes of the questions about one product: True finds it, None fails.
    """

    def __init__(self, answers: Sequence[bool | None]) -> None:
        self.answers = answers
        self.sent: dict[str, str] = {}
        self.asked: dict[str, int] = {}

    async def send(self, products: list[dict[str, Any]], _collector_url: str, *, secret_key: str) -> None:
        """Take products."""
        assert secret_key == "secret"
        self.sent |= {product["title"]: product["product_id"] for product in products}

    async def ask(self, _client: httpx.AsyncClient, _url: str, *, query: str, k: int) -> Any:
        """Answer, or fail."""
        assert k > 0
        number = self.asked[query] = self.asked.get(query, 0) + 1
        found = self.answers[min(number, len(self.answers)) - 1]
        if found is None:
            raise DependencyDown("search did not answer")
        return SimpleNamespace(query_release=number, results=[SimpleNamespace(product_id=self.sent[query])] * found)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once, while the clock goes on a second at each look."""
    clock = itertools.count(1_795_196_000_000, 1_000)
    monkeypatch.setattr(freshness, "epoch_ms", lambda: next(clock))
    monkeypatch.setattr(freshness, "FIND_EVERY_S", 0.0)


async def launch(index: Index, monkeypatch: pytest.MonkeyPatch, *, count: int = 3) -> LaunchProbe:
    """Launch products into an index and return the probe when all are found or given up."""
    monkeypatch.setattr(freshness, "send_products", index.send)
    monkeypatch.setattr(freshness, "ask", index.ask)
    probe = LaunchProbe(WORLD, "http://collector", "http://search", secret_key="secret", seed=1000)
    async with httpx.AsyncClient() as client:
        await probe.run(client, count=count, seconds=0.0)
    return probe


async def test_each_product_is_searched_for_until_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that the third answer lists has its time; all launched products differ."""
    index = Index([False, False, True])
    probe = await launch(index, monkeypatch)
    assert (probe.launched, len(probe.found_s), probe.never_found) == (3, 3, [])
    assert len(set(index.sent.values())) == 3
    assert set(index.asked.values()) == {3}


async def test_a_missed_answer_is_no_find_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search that fails in between is asked again."""
    probe = await launch(Index([None, True]), monkeypatch)
    assert len(probe.found_s) == 3


async def test_what_is_never_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product given up has no time, and is not forgotten."""
    monkeypatch.setattr(freshness, "GIVE_UP_S", 0.02)
    index = Index([False])
    probe = await launch(index, monkeypatch, count=1)
    assert (probe.found_s, probe.never_found) == ([], list(index.sent.values()))


def test_launches_are_new_valid_and_unmistakable(built_in: World) -> None:
    """Launched products keep the contract, have ids and names of their own, and repeat for a seed."""
    launched = launch_products(built_in, seed=1, count=20, now_ms=1_795_200_000_000)
    brands = {product["brand"] for product in built_in.products}
    for product in launched:
        validate(product, CATALOG_CHANGE)
        assert product["brand"] not in brands
        assert product["version"] == product["launched_at"] == 1_795_200_000_000
    assert len({product["product_id"] for product in launched} - set(built_in.by_product_id)) == 20
    assert len({product["title"] for product in launched}) == 20
    assert launch_products(built_in, seed=1, count=20, now_ms=1_795_200_000_000) == launched
    assert launch_products(built_in, seed=2, count=20, now_ms=1_795_200_000_000) != launched


def test_launches_of_several_seeds_in_one_millisecond_are_different_products(built_in: World) -> None:
    """An id belongs to one seed, time and number: two launches never overwrite each other."""
    launches = [
        launched["product_id"]
        for seed in range(12)
        for now_ms in (1_795_200_000_000, 1_795_200_000_001)
        for launched in launch_products(built_in, seed=seed, count=12, now_ms=now_ms)
    ]
    assert len(set(launches)) == len(launches) == 288

"""Probes outlive a missed answer: one failed search does not end a demo."""

import asyncio
import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from contracts.errors import DependencyDown
from service.settings import Settings
from simulator.demo import probes
from simulator.demo.probes import LaunchProbe, cheapest_probe_query, watch_answers
from simulator.demo.trail import ClickTrail
from simulator.shop.world import World
from tests.support.poll import eventually_async

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
    monkeypatch.setattr(probes, "now_ms", lambda: next(clock))
    monkeypatch.setattr(probes, "FIND_EVERY_S", 0.0)
    monkeypatch.setattr(probes, "ANSWER_EVERY_S", 0.0)


async def launch(index: Index, monkeypatch: pytest.MonkeyPatch, *, count: int = 3) -> LaunchProbe:
    """Launch products into an index and return the probe when all are found or given up."""
    monkeypatch.setattr(probes, "send_products", index.send)
    monkeypatch.setattr(probes, "ask", index.ask)
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
    monkeypatch.setattr(probes, "GIVE_UP_S", 0.02)
    index = Index([False])
    probe = await launch(index, monkeypatch, count=1)
    assert (probe.found_s, probe.never_found) == ([], list(index.sent.values()))


async def test_answers_are_noted_until_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every release that answers is noted; a missed answer is passed over."""
    index = Index([False, None, False])
    index.sent["cheap"] = "P-1"
    monkeypatch.setattr(probes, "ask", index.ask)
    trail = ClickTrail(Settings(kafka_bootstrap="127.0.0.1:1"))
    async with httpx.AsyncClient() as client:
        watching = asyncio.create_task(watch_answers(client, "http://search", query="cheap", trail=trail))

        async def third_answered() -> bool:
            """Return whether the answer after the missed one was noted."""
            return 3 in trail.answers.seen

        await eventually_async(third_answered)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
    assert {1, 3} <= set(trail.answers.seen)
    assert 2 not in trail.answers.seen


def test_the_cheapest_query_is_chosen_by_a_rule() -> None:
    """The shortest, then the first by alphabet, whatever the order."""
    assert cheapest_probe_query(["washing machine", "tv", "ac"]) == "ac"

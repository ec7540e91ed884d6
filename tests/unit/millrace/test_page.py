"""The page's HTTP side: what it serves, before and after the first look, and to whom."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from contracts.telemetry import Process
from millrace.page import ASSETS, Sampler, build, export
from service.health import Health
from service.settings import Settings
from tests.support.deployment import busy_snapshot

Client = TestClient[Any, Any]


@pytest.fixture
def sampler() -> Sampler:
    """Give a sampler that has not looked yet."""
    return Sampler(Settings(kafka_bootstrap="broker:9092"))


@pytest.fixture
async def client(sampler: Sampler) -> AsyncIterator[Client]:
    """Give a browser in front of the page of that sampler."""
    health = Health(Process.PAGE)
    health.add_check("view", sampler.not_ready)
    health.add_liveness_check("sampler", sampler.not_live)
    async with TestClient(TestServer(build(health, sampler))) as browser:
        yield browser


def saw(sampler: Sampler, view: dict[str, Any]) -> None:
    """Let the sampler have looked."""
    sampler.latest, sampler._unknown = view, None


async def text(answer: ClientResponse) -> str:
    """Return the body of a good answer."""
    assert answer.status == 200
    return await answer.text()


async def test_the_page_and_all_that_it_names_are_served(client: Client) -> None:
    """Every local file that the HTML names is one of the assets, with its type."""
    html = await text(await client.get("/"))
    named = set(re.findall(r'(?:src|href)="(/[^"]*)"', html))
    assert named == set(ASSETS) - {"/"}
    types = {path: (await client.get(path)).content_type for path in named}
    assert types == {"/page.js": "text/javascript", "/page.css": "text/css"}


async def test_the_page_asks_nobody_else(client: Client) -> None:
    """No script, style, font or image comes from another host."""
    for path in ASSETS:
        found = re.findall(r"https?://[^\s\"')]+", await text(await client.get(path)))
        assert set(found) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("path", [*ASSETS, "/api/snapshot", "/nothing"])
async def test_answers_forbid_foreign_content(path: str, client: Client) -> None:
    """Scripts of others, frames, guessed types and stored copies are forbidden."""
    headers = (await client.get(path)).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")


async def test_the_page_needs_nothing_that_its_policy_forbids(client: Client) -> None:
    """No inline script, style or event handler stands in the HTML."""
    html = await text(await client.get("/"))
    assert not re.search(r"<script>|<style|style=|\son[a-z]+=", html)


async def test_before_the_first_look_there_is_a_reason(client: Client) -> None:
    """503 with the reason in JSON, so that the page can show it."""
    answer = await client.get("/api/snapshot")
    assert answer.status == 503
    assert (await answer.json())["detail"] == "no look taken yet"


async def test_after_a_look_the_snapshot_is_served(client: Client, sampler: Sampler) -> None:
    """Exactly what was seen, with nothing against it."""
    saw(sampler, busy_snapshot())
    answer = await client.get("/api/snapshot")
    assert answer.status == 200
    assert await answer.json() == {**busy_snapshot(), "trouble": None}


async def test_an_old_look_is_served_with_its_trouble(client: Client, sampler: Sampler) -> None:
    """Kafka went away: the last numbers stay, and the page says that they are old."""
    saw(sampler, busy_snapshot())
    sampler._unknown = "Kafka does not answer"
    answer = await client.get("/api/snapshot")
    assert (answer.status, (await answer.json())["trouble"]) == (200, "Kafka does not answer")


async def test_readiness_follows_the_view_and_life_does_not(client: Client, sampler: Sampler) -> None:
    """Without a look the page is alive but not ready, with the reason; a restart would not help."""
    before = await client.get("/ready")
    assert (before.status, (await before.json())["reasons"]) == (503, ["view: no look taken yet"])
    assert (await client.get("/live")).status == 200
    saw(sampler, busy_snapshot())
    assert (await client.get("/ready")).status == 200


async def test_metrics_hold_the_lag(client: Client) -> None:
    """What a Prometheus server scrapes is what the page shows."""
    export(busy_snapshot())
    metrics = await text(await client.get("/metrics"))
    labels = 'group="trainer",partition="2",topic="preference-pairs"'
    assert f"millrace_consumer_lag_records{{{labels}}} 10.0" in metrics


async def test_metrics_hold_what_became_of_each_arm(client: Client) -> None:
    """Sums over all partitions, by arm and surface; rates are for boards to make."""
    export(busy_snapshot())
    metrics = await text(await client.get("/metrics"))
    for arm in ("live", "anchor"):
        assert f'millrace_arm_sums{{arm="{arm}",surface="search",what="searches"}} 400.0' in metrics


@pytest.mark.parametrize("path", ["/static/page.js", "/page.html", "/../app.py", "/api/", "/readyz"])
async def test_nothing_else_is_served(path: str, client: Client) -> None:
    """No other file can be fetched."""
    assert (await client.get(path)).status == 404


async def test_nothing_can_be_written(client: Client) -> None:
    """The page only looks."""
    assert (await client.post("/api/snapshot", data=b"")).status == 405

"""How much the collector takes: bodies, items, rates, and requests under way."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from service.settings import Settings
from streams.collector.access import Limits
from tests.support.collector import (
    POLICY,
    SECRET,
    WRITE,
    Running,
    click,
    start,
    statuses,
)


async def test_a_large_body_is_refused_with_the_limit(strict: Running) -> None:
    """Above the limit is 413 and the message says how much may be sent; declared and streamed sizes alike."""
    body = orjson.dumps({"events": [click(extra="x" * 3_000)]})
    response = await strict.post("/v1/events", body)
    assert response.status == 413
    assert "2000 bytes" in (await response.json())["detail"]

    async def pieces() -> AsyncIterator[bytes]:
        """Send the body in two pieces, its length unsaid."""
        yield body[:1_500]
        yield body[1_500:]

    streamed = await strict.client.post(
        "/v1/events", data=pieces(), headers={**WRITE, "Content-Type": "application/json"}
    )
    assert streamed.status == 413
    assert strict.log.records == []


async def test_a_secret_key_may_send_larger_bodies(strict: Running) -> None:
    """The limit of the write key does not bind a server."""
    response = await strict.post("/v1/events", {"events": [click(extra="x" * 3_000)]}, headers=SECRET)
    assert response.status == 200


async def test_a_compressed_body_is_read_and_its_real_size_counts(strict: Running) -> None:
    """A gzip body is accepted; a small body that unpacks to a large one is refused; garbage is 400."""
    packed = {**WRITE, "Content-Encoding": "gzip"}
    good = await strict.post("/v1/events", gzip.compress(orjson.dumps({"events": [click()]})), headers=packed)
    assert statuses(await good.json()) == ["accepted"]
    bomb = gzip.compress(b'{"events": ["' + b"x" * 1_000_000 + b'"]}')
    assert len(bomb) < 2_000
    assert (await strict.post("/v1/events", bomb, headers=packed)).status == 413
    for broken in (b"no gzip", gzip.compress(b'{"events": []}')[:-4], gzip.compress(b'{"events": []}') + b"more"):
        assert (await strict.post("/v1/events", broken, headers=packed)).status == 400
    assert (await strict.post("/v1/events", b"x", headers={**WRITE, "Content-Encoding": "zstd"})).status == 415


async def test_too_many_items_are_refused_with_the_limit(strict: Running) -> None:
    """More items than one request may hold is 413."""
    response = await strict.post("/v1/events", {"events": [1, 2, 3, 4]})
    assert response.status == 413
    assert "at most 3" in (await response.json())["detail"]


async def test_a_caller_that_sends_too_much_is_told_when_to_return(strict: Running) -> None:
    """Above the rate is 429 with Retry-After, per key, and nothing is written."""
    for number in range(5):
        await strict.send(click(str(number)))
    response = await strict.post("/v1/events", {"events": [click("more")]})
    assert response.status == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 10
    assert len(strict.log.records) == 5
    assert (await strict.post("/v1/events", {"events": [click("more")]}, headers=SECRET)).status == 200


async def test_requests_beyond_what_may_wait_are_sent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Kafka hangs, open requests are bounded: the next one is 503 at once."""
    running = await start(POLICY, max_open=1)
    under_way, release = asyncio.Event(), asyncio.Event()

    async def hang(_records: object) -> None:
        """Wait until the test lets go."""
        under_way.set()
        await release.wait()

    monkeypatch.setattr(running.log, "write", hang)
    first = asyncio.create_task(running.post("/v1/events", {"events": [click("a")]}))
    await under_way.wait()
    second = await running.post("/v1/events", {"events": [click("b")]})
    release.set()
    assert (second.status, (await second.json())["reason"]) == (503, "busy")
    assert (await first).status == 200
    await running.client.close()


@pytest.mark.parametrize(("proxies", "statuses"), [("127.0.0.0/8", [200, 200, 429]), ("", [200, 429, 429])])
async def test_behind_a_load_balancer_each_caller_has_a_rate_of_its_own(proxies: str, statuses: list[int]) -> None:
    """The balancer's word about the caller is taken only if its own address is one of the trusted proxies'."""
    policy = replace(
        POLICY,
        limits=Limits(write_items_per_window=1),
        trusted_proxies=Settings(trusted_proxies=proxies).trusted_proxy_list(),
    )
    running = await start(policy)
    callers = ["203.0.113.9", "6.6.6.6, 203.0.113.10", "203.0.113.9"]
    answers = [
        await running.post("/v1/events", {"events": [click(str(n))]}, headers={**WRITE, "X-Forwarded-For": caller})
        for n, caller in enumerate(callers)
    ]
    assert [answer.status for answer in answers] == statuses
    await running.client.close()

"""What the collector does when Redis does not answer."""

import asyncio
from typing import Any

import redis.asyncio
import structlog

from service.redis import async_redis_client
from service.settings import Settings
from streams.collector.redis_memory import PAUSE_S, RedisMemory
from streams.collector.web import Recollection
from tests.support.ports import free_port


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class CountingClient:
    """Stands before a client and counts the attempts."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.attempts = 0

    def pipeline(self, **options: Any) -> Any:
        """Begin an attempt."""
        self.attempts += 1
        return self.client.pipeline(**options)

    async def aclose(self) -> None:
        """Close the client."""
        await self.client.aclose()


async def recall(memory: RedisMemory) -> Recollection:
    """Ask once."""
    return await memory.recall(["e1"], caller="write:x", item_count=1, window=7)


async def test_an_outage_is_one_line_and_redis_is_asked_once_a_second() -> None:
    """With Redis gone nothing is known, nothing is limited, and requests do not each wait for it."""
    clock = HandClock()
    client = CountingClient(async_redis_client(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")))
    memory = RedisMemory(client, prefix="", monotonic_s=clock)  # type: ignore[arg-type] # counts, then passes on
    with structlog.testing.capture_logs() as lines:
        assert await recall(memory) == Recollection()
        await memory.remember(["e1"])
        assert await recall(memory) == Recollection()
        assert client.attempts == 1
        clock.now_s += PAUSE_S
        assert await recall(memory) == Recollection()
        assert client.attempts == 2
    assert [(line["event"], line["dependency"]) for line in lines] == [("dependency_down", "redis")]
    assert not memory.is_up
    await memory.close()


async def test_a_redis_that_hangs_is_given_up_quickly() -> None:
    """A server that accepts and says nothing counts as gone."""
    connections: list[asyncio.StreamWriter] = []

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Accept and keep silent."""
        connections.append(writer)

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    memory = RedisMemory(async_redis_client(Settings(redis_url=f"redis://127.0.0.1:{port}/0")), prefix="")
    assert await asyncio.wait_for(recall(memory), timeout=30) == Recollection()
    assert connections
    assert not memory.is_up
    await memory.close()
    server.close()
    for writer in connections:
        writer.close()

"""How the search service ends: those who asked are answered before what they need is closed."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from typing_extensions import override

import indexer.search.__main__ as app
from service.process import Shutdown
from service.settings import Settings
from tests.support.poll import eventually_async
from tests.support.ports import free_port
from tests.support.search_fakes import Search


async def test_a_search_under_way_at_the_stop_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finishes first; encoder, store and impressions are closed after it."""
    search, closed = Search(), list[str]()
    search.store.gate = asyncio.Event()

    class Started(app.Starting):
        """A service that is ready, over stand-ins."""

        @override
        async def run(self, _settings: Settings, _shutdown: Shutdown, stack: AsyncExitStack) -> Any:
            """Open what is closed at the end."""
            stack.callback(closed.append, "store")
            self._service, self._reason = search.service, None
            return SimpleNamespace(not_ready=lambda: None, follower=SimpleNamespace(failure=None))

    monkeypatch.setattr(app, "Starting", Started)
    settings = Settings(
        kafka_bootstrap="broker:9092", qdrant_url="http://qdrant:6333", person_key="p", port=free_port()
    )
    shutdown = Shutdown()
    serving = asyncio.create_task(app.serve(settings, shutdown))
    url = f"http://127.0.0.1:{settings.port}"
    async with aiohttp.ClientSession() as session:

        async def ready() -> bool:
            """Return whether the service says that it is ready."""
            try:
                async with session.get(f"{url}/ready") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually_async(ready)
        under_way = asyncio.create_task(session.get(f"{url}/v1/search?q=x"))
        await search.store.was_asked.wait()
        shutdown.request()

        async def stopping() -> bool:
            """Return whether nobody is let in any more."""
            return not await ready()

        await eventually_async(stopping)
        assert closed == []
        search.store.gate.set()
        assert (await under_way).status == 200
    await serving
    assert closed == ["store"]
    shutdown.close()

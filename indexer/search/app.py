"""The search service put together: what it follows, asks and writes, and how it starts, says how it is, and ends."""

import asyncio
import math
from contextlib import AsyncExitStack
from typing import Final

from contracts.errors import DependencyDown
from contracts.telemetry import Process
from indexer.qdrant import connect
from indexer.search.encoding import QueryEncoder
from indexer.search.impressions import ImpressionWriter
from indexer.search.retrieval import QdrantRetrieval, async_connect
from indexer.search.service import DEADLINE_S, SearchService
from indexer.search.serving import ServingPairs
from indexer.search.web import build
from indexer.store import ProductStore
from service.health import Health
from service.http import bind_socket, serving
from service.kafka import ensure_topics
from service.logging import get_logger
from service.process import Shutdown
from service.settings import Settings
from towers.encoder import load_encoder

WATCH_S: Final = 0.5
FINISH_S: Final = 5.0
METADATA_TIMEOUT_S: Final = 2


async def serve(settings: Settings, shutdown: Shutdown, *, deadline_s: float = DEADLINE_S) -> None:
    """Answer searches until asked to stop.

    Args:
        settings: of the deployment.
        shutdown: ends it.
        deadline_s: how long the vector store may take for one answer.

    Raises:
        MillraceError: it cannot start, or `models` cannot be followed any more.
    """
    settings.require("kafka_bootstrap", "qdrant_url", "person_key")
    health = Health(Process.SEARCH)
    listener = bind_socket(settings.host, settings.listen_port(Process.SEARCH))
    starting = Starting(deadline_s)
    health.add_check("start", starting.not_ready)
    async with AsyncExitStack() as stack, serving(build(starting.service, health), listener, finish_s=FINISH_S):
        try:
            pairs = await starting.run(settings, shutdown, stack)
        except DependencyDown as error:
            if not shutdown.is_set():
                raise
            get_logger().info("stopped_while_waiting", error=error.message)
            return
        health.add_check("pair", pairs.not_ready)
        stopping = asyncio.create_task(shutdown.wait_async())
        while not stopping.done() and pairs.follower.failure is None:
            await asyncio.wait({stopping}, timeout=WATCH_S)
        stopping.cancel()
        if pairs.follower.failure is not None:
            raise pairs.follower.failure


class Starting:
    """The service while it starts: says what it waits for.

    Args:
        deadline_s: how long the vector store may take for one answer.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._reason: str | None = "starting"
        self._service: SearchService | None = None

    def not_ready(self) -> str | None:
        """Return what it waits for, as a readiness check."""
        return self._reason

    def service(self) -> SearchService:
        """Return the service.

        Raises:
            DependencyDown: it has not started yet.
        """
        if self._service is None:
            raise DependencyDown(f"search is starting: {self._reason}")
        return self._service

    async def run(self, settings: Settings, shutdown: Shutdown, stack: AsyncExitStack) -> ServingPairs:
        """Open everything, each closed by the stack, and return what follows the pair in force."""
        (person_key,) = settings.require("person_key")
        self._reason = "waiting for Kafka"
        await asyncio.to_thread(ensure_topics, settings, wait=shutdown.wait)
        impressions = await asyncio.to_thread(ImpressionWriter, settings)
        impressions.start()
        stack.push_async_callback(asyncio.to_thread, impressions.close)
        self._reason = "loading the base encoder"
        encoder = await asyncio.to_thread(load_encoder, settings.base_model)
        store = ProductStore(connect(settings, timeout_s=METADATA_TIMEOUT_S))
        stack.callback(store.close)
        pairs = ServingPairs(settings, encoder, store.metadata)
        stack.push_async_callback(asyncio.to_thread, pairs.stop)
        pairs.start()
        queries = QueryEncoder(encoder)
        stack.callback(queries.close)
        client = async_connect(settings, timeout_s=math.ceil(self._deadline_s) + 1)
        stack.push_async_callback(client.close)
        self._service = SearchService(
            lambda: pairs.current,
            queries,
            retrieval=QdrantRetrieval(client),
            impressions=impressions,
            person_key=person_key.encode(),
            deadline_s=self._deadline_s,
        )
        self._reason = None
        return pairs

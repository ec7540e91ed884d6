"""Puts the search service together and serves it until asked to stop."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from typing_extensions import override

from contracts.telemetry import Process
from indexer.search.answering import Searcher
from indexer.search.encoding import QueryEncoder
from indexer.search.impressions import ImpressionWriter
from indexer.search.keeper import PairKeeper
from indexer.search.retrieval import connect
from indexer.search.routes import build_app
from service.health import Health, bind_socket
from service.kafka import ensure_topics
from service.logging import get_logger
from service.process import Shutdown
from service.settings import Settings
from towers.encoder import load_encoder

DEADLINE_S: Final = 1.0
STOP_S: Final = 5


class Server(uvicorn.Server):
    """uvicorn, but the process's own handling of signals stays in force."""

    @contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Serve search until asked to stop.

    Raises:
        UsageError: a setting is missing or wrong.
        DependencyDown: Kafka does not answer, the port is taken, or the base model is nowhere to be had.
    """
    _, _, person_key = settings.require("kafka_bootstrap", "qdrant_url", "person_key")
    socket = bind_socket(settings.host, settings.listen_port(Process.SEARCH))
    health = Health(Process.SEARCH)
    await asyncio.to_thread(ensure_topics, settings, wait=shutdown.wait)
    encoder = QueryEncoder(await asyncio.to_thread(load_encoder, settings.base_model))
    keeper, retrieval = PairKeeper(settings, encoder), connect(settings, deadline_s=DEADLINE_S)
    health.add_check("pair", keeper.not_ready)
    impressions = ImpressionWriter(settings)
    searcher = Searcher(
        lambda: keeper.pair,
        encoder,
        retrieval,
        write=impressions.write,
        person_key=person_key.encode(),
        deadline_s=DEADLINE_S,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    config = uvicorn.Config(
        build_app(searcher, health), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=STOP_S
    )
    server = Server(config)
    await impressions.start()
    keeper.start()
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    get_logger().info("search_started", url=f"http://{settings.host}:{socket.getsockname()[1]}/docs")
    try:
        await asyncio.wait([serving, asyncio.create_task(shutdown.wait_async())], return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        await serving
        await impressions.stop()
        await retrieval.close()
        await asyncio.to_thread(keeper.stop)

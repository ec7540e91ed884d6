"""Process `qdrant`: the embedded Qdrant, for machines where no Qdrant server is given.

What was acknowledged with `wait=true` is in the log of its shard and survives the end of the process, however it ends;
a loss of power may take the last half minute (`api.FLUSH_INTERVAL_S`): the truth is in Kafka, not here.
"""

import socket

from aiohttp import web

from contracts.telemetry import Process
from deploy.qdrant_edge.api import Api
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Worker
from service.health import Health
from service.http_server import bind_socket
from service.logging import get_logger
from service.process import Shutdown, run
from service.settings import Settings


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Answer until asked to stop, then close every shard.

    Raises:
        DependencyDown: the port or the data folder is in use.
    """
    listening = bind_socket(settings.host, settings.listen_port(Process.QDRANT))
    try:
        store = Store(settings.data_dir / "qdrant")
        try:
            key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
            await _answer(Api(store, Worker(), Health(Process.QDRANT), api_key=key), listening, shutdown)
        finally:
            store.close()
    finally:
        listening.close()


async def _answer(api: Api, listening: socket.socket, shutdown: Shutdown) -> None:
    runner = api.runner()
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        host, port = listening.getsockname()[:2]
        get_logger().info("embedded_qdrant_answers", url=f"http://{host}:{port}")
        await shutdown.wait_async()
    finally:
        await runner.cleanup()


def main() -> None:
    """Run the process."""
    run(Process.QDRANT, serve)


if __name__ == "__main__":
    main()

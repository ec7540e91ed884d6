"""Process `qdrant`: the embedded Qdrant, for machines where no Qdrant server is given.

What was acknowledged with `wait=true` is in the log of its shard and survives the end of the process, however it ends;
a loss of power may take the last half minute (`api.FLUSH_INTERVAL_S`): the truth is in Kafka, not here.
"""

from contextlib import closing

from contracts.telemetry import Process
from deploy.qdrant_edge.api import STOP_TIMEOUT_S, Api
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Worker
from service.health import Health
from service.http import bind_socket, serving
from service.process import Shutdown, run
from service.settings import Settings


async def serve(settings: Settings, shutdown: Shutdown) -> None:
    """Answer until asked to stop, then close every shard."""
    with (
        bind_socket(settings.host, settings.listen_port(Process.QDRANT)) as listener,
        closing(Store(settings.data_dir / "qdrant")) as store,
    ):
        key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
        app = Api(store, Worker(), Health(Process.QDRANT), api_key=key).app()
        async with serving(app, listener, finish_s=STOP_TIMEOUT_S, end_abandoned=True):
            await shutdown.wait_async()


if __name__ == "__main__":
    run(Process.QDRANT, serve)

"""A Faust app on the batch transport, and its topics of chunks."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import faust
import mode
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from typing_extensions import override

from service.kafka import aiokafka_consumer_config, aiokafka_producer_config
from service.settings import Settings
from streams.transport.consumer import BatchConsumer, BatchStream, Untouched
from streams.transport.output import BATCH_BYTES, BatchProducer, EndOnLostOutput, Output

BATCH_SIZE: Final = 4000
"""Records per chunk: on a real cluster the wait for an acknowledgement rules, so chunks are long."""
CHUNKS_BUFFERED: Final = 8
FETCH_WAIT_MS: Final = 500
PARTITION_FETCH_BYTES: Final = 4 * 1024 * 1024
"""A fetch that fills a chunk; the clients' 1 MiB would halve it."""
SEND_TIMEOUT_MS: Final = 60_000
"""How long a send may take before the process gives up: longer than a broker's restart."""
COMMIT_INTERVAL_S: Final = 1.0
MAX_POLL_INTERVAL_S: Final = 300.0


class Owner(Protocol):
    """Whoever keeps state of the partitions that an app is assigned."""

    async def take_over(self, assigned: set[TP]) -> Mapping[TP, int]:
        """Have the state of these partitions and of no others; return the offset from which each is read."""

    async def settle(self) -> None:
        """Write down what is not written yet: partitions are about to go, or the process ends."""


class BatchTransport(driver.Transport):
    """Faust's Kafka driver with our consumer and producer."""

    Consumer = BatchConsumer
    Producer = BatchProducer


class BatchApp(faust.App):
    """One agent's app: a consumer group of its own, chunks instead of records, a crash instead of a lost record.

    Args:
        settings: the settings in force.
        agent: `join`, `pairs`, ...: names the group.
        owner: keeps the state of the partitions.
        batch_size: most records in a chunk.
        options: further Faust settings, for tests.
    """

    def __init__(
        self, settings: Settings, agent: str, *, owner: Owner, batch_size: int = BATCH_SIZE, **options: Any
    ) -> None:
        self.owner = owner
        self.batch_size = batch_size
        self.batch_topics: set[str] = set()
        self.consumer_config = consumer_arguments(settings, agent)
        self.producer_config = producer_arguments(settings)
        defaults: dict[str, Any] = {
            "broker": "kafka://" + ";kafka://".join(self.consumer_config["bootstrap_servers"]),
            "broker_session_timeout": settings.session_timeout_s,
            "broker_request_timeout": max(90.0, settings.session_timeout_s),
            "broker_max_poll_records": 4 * batch_size,
            "broker_max_poll_interval": MAX_POLL_INTERVAL_S,
            "broker_commit_interval": COMMIT_INTERVAL_S,
            "consumer_auto_offset_reset": "earliest",
            "stream_wait_empty": True,
            "topic_disable_leader": True,
            "topic_allow_declare": False,
            "web_enabled": False,
            "Stream": BatchStream,
            "agent_supervisor": mode.CrashingSupervisor,
        }
        super().__init__(settings.group(agent), **{**defaults, **options})

    @override
    def on_init(self) -> None:
        super().on_init()
        self.sensors.add(EndOnLostOutput())

    def batch_topic(self, name: str) -> Any:
        """Return a topic whose events are chunks."""
        topic: Any = self.topic(name, key_serializer="raw", value_serializer=Untouched())
        topic.maxsize = CHUNKS_BUFFERED  # `app.topic(maxsize=)` is silently ignored in 0.15.3
        self.batch_topics.add(name)
        return topic

    def output(self) -> Output:
        """Return what agents write through; only once the app has started."""
        producer: Any = self.producer
        return Output(producer.client)

    @override
    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    @override
    def _new_producer_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_producer, self)

    @override
    def _create_directories(self) -> None:
        """There are no tables, so there is nothing to create."""


def consumer_arguments(settings: Settings, agent: str) -> dict[str, Any]:
    """Return the arguments of the group's consumer; a worker with a name takes its place back after a restart."""
    config = aiokafka_consumer_config(settings, agent)
    instance = None if settings.worker_id is None else f"{settings.worker_id}-{agent}"
    return {
        **config,
        "group_instance_id": instance,
        "fetch_max_wait_ms": FETCH_WAIT_MS,
        "max_partition_fetch_bytes": PARTITION_FETCH_BYTES,
    }


def producer_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a producer behind an `Output`, which makes the batches: none waits for more."""
    return {
        **aiokafka_producer_config(settings),
        "max_batch_size": 2 * BATCH_BYTES,
        "request_timeout_ms": SEND_TIMEOUT_MS,
    }

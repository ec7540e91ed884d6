"""`python -m streams.collector`: checks the settings, connects, listens, and ends cleanly."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Final

from contracts.telemetry import Process
from service.health import Health
from service.http import bind_socket, serving
from service.kafka import ensure_topics
from service.process import Shutdown, run
from service.redis import async_redis_client
from service.settings import Settings
from streams.collector.access import Keys
from streams.collector.kafka_writer import ACK_TIMEOUT_S, KafkaWriter
from streams.collector.redis_memory import RedisMemory
from streams.collector.web import Collector, Policy, build

FINISH_S: Final = 10.0
"""How long open requests may take after a stop; with the flush it stays below the supervisor's 20 s."""


def main(settings: Settings, shutdown: Shutdown) -> Coroutine[None, None, None]:
    """Check what a person set, make sure of the topics, and return the server.

    Raises:
        UsageError: a key is missing, or both are the same.
    """
    policy = read_policy(settings)
    settings.require("kafka_bootstrap", "redis_url")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the writer says once what aiokafka says per retry
    ensure_topics(settings, wait=shutdown.wait)
    return serve(settings, shutdown, policy=policy)


def read_policy(settings: Settings) -> Policy:
    """Return how callers are treated.

    Raises:
        UsageError: a key is missing, or both are the same.
    """
    write, secret, person = (key.encode() for key in settings.require("write_key", "secret_key", "person_key"))
    keys = Keys(write, secret)
    return Policy(keys, person, origins=settings.cors_origin_list(), trusted_proxies=settings.trusted_proxy_list())


async def serve(
    settings: Settings, shutdown: Shutdown, *, policy: Policy, ack_timeout_s: float = ACK_TIMEOUT_S
) -> None:
    """Listen until a stop is asked for; then finish what is open and flush.

    Args:
        settings: the settings in force.
        shutdown: asks for the stop.
        policy: how callers are treated.
        ack_timeout_s: how long a caller is kept waiting for Kafka.

    Raises:
        MillraceError: Kafka refuses to be written to for good.
    """
    async with AsyncExitStack() as stack:
        port = settings.listen_port(Process.COLLECTOR)
        listener = stack.enter_context(bind_socket(settings.host, port))
        memory = RedisMemory(async_redis_client(settings), prefix=settings.topic_prefix)
        stack.push_async_callback(memory.close)
        await stack.enter_async_context(memory.probed())
        writer = KafkaWriter(settings, ack_timeout_s=ack_timeout_s)
        stack.push_async_callback(writer.stop)
        await writer.start()
        health = Health(Process.COLLECTOR)
        health.add_check("kafka", writer.not_ready)
        health.show("redis", lambda: "up" if memory.is_up else "down")
        app = build(Collector(policy, writer, memory=memory), health)
        await stack.enter_async_context(serving(app, listener, finish_s=FINISH_S))
        await _until_stopped(shutdown, writer)


async def _until_stopped(shutdown: Shutdown, writer: KafkaWriter) -> None:
    """Wait for a stop, or for the end of all writing.

    Raises:
        MillraceError: Kafka refuses to be written to for good.
    """
    stopped = asyncio.create_task(shutdown.wait_async())
    failed = asyncio.create_task(writer.failed())
    try:
        await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
    finally:
        stopped.cancel()
        failed.cancel()
        await asyncio.gather(stopped, failed, return_exceptions=True)


if __name__ == "__main__":
    run(Process.COLLECTOR, main)

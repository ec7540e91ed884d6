"""The stream worker: the agents that the settings name, each a Faust app of its own, in one event loop."""

import asyncio
import gc
import logging
from collections.abc import Sequence
from typing import Any, Final

from contracts.errors import InvariantError, MillraceError
from contracts.telemetry import Process
from service import metrics
from service.health import Health
from service.http_server import AdminServer
from service.kafka import ensure_topics, expected_kafka_error
from service.process import Shutdown
from service.settings import Settings
from streams.agents.partition_agent import PartitionAgent
from streams.join.agent import JoinAgent
from streams.pairs.agent import PairsAgent

AGENTS: Final[dict[str, type[PartitionAgent[Any, Any]]]] = {"join": JoinAgent, "pairs": PairsAgent}
WATCH_S: Final = 0.1
STOP_TIMEOUT_S: Final = 12.0
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Records come and go by the thousand without cycles: fewer young collections are worth a fifth of the throughput."""
SPOKEN_FOR: Final = ("aiokafka", "faust", "mode", "streams.transport")
"""Loggers of Faust's services, ours among them: their failures end this process with one line, not with theirs too."""


async def run_worker(settings: Settings, shutdown: Shutdown) -> None:
    """Run the agents until a stop is asked for.

    Raises:
        MillraceError: an agent cannot go on; the process must end so that nothing uncommitted is passed over.
    """
    _quieten_libraries()
    await asyncio.to_thread(ensure_topics, settings, wait=shutdown.wait)
    if shutdown.is_set():
        return
    metrics.DEPENDENCY_UP.labels("kafka").set(1)
    tune_interpreter()
    agents = [AGENTS[name](settings) for name in settings.agent_names()]
    health = Health(Process.STREAMS)
    for agent in agents:
        health.add_check(agent.name, agent.not_ready)
        health.add_liveness_check(agent.name, agent.stuck)
    with AdminServer(health, settings.host, settings.listen_port(Process.STREAMS)):
        try:
            await _run_agents(agents, settings, shutdown)
        finally:
            await _stop_agents(agents)


async def _run_agents(agents: Sequence[PartitionAgent[Any, Any]], settings: Settings, shutdown: Shutdown) -> None:
    """Start the agents and watch them."""
    await asyncio.gather(*(agent.app.start() for agent in agents))
    gc.freeze()
    stop = asyncio.create_task(shutdown.wait_async())
    try:
        while not stop.done():
            for agent in agents:
                _raise_crash(agent, settings)
            await asyncio.wait([stop], timeout=WATCH_S)
    finally:
        stop.cancel()


async def _stop_agents(agents: Sequence[PartitionAgent[Any, Any]]) -> None:
    """Let the running chunks end and commit; where Kafka does not answer there is nothing to wait for."""
    stops = [asyncio.create_task(agent.app.stop()) for agent in agents]
    _, unfinished = await asyncio.wait(stops, timeout=STOP_TIMEOUT_S)
    for stop in unfinished:
        stop.cancel()


def _raise_crash(agent: PartitionAgent[Any, Any], settings: Settings) -> None:
    """Raise what an agent crashed with, as an operator would want to read it."""
    if not agent.app.crashed:
        return
    reason = agent.app.crash_reason
    if isinstance(reason, MillraceError):
        raise reason
    expected = None if reason is None else expected_kafka_error(reason, settings)
    if expected is not None:
        raise expected from reason
    raise InvariantError(
        f"agent {agent.name} crashed: {reason!r}", fix="report it with this line; nothing was committed past it"
    ) from reason


def tune_interpreter() -> None:
    """Set Python up for millions of short-lived objects."""
    gc.set_threshold(*GC_THRESHOLDS)


def _quieten_libraries() -> None:
    """Leave it to us to say what ended the process."""
    for name in SPOKEN_FOR:
        logging.getLogger(name).setLevel(logging.CRITICAL)

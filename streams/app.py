"""The stream worker: the agents that the settings name, each a Faust app of its own, in one event loop."""

import asyncio
import gc
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from contracts.errors import DependencyDown, InvariantError, MillraceError
from contracts.telemetry import Process
from service.health import Dependency, Health
from service.http import admin_server
from service.kafka import ensure_topics, expected_kafka_error, topic_ids
from service.logging import get_logger
from service.process import Shutdown
from service.settings import Settings, env_name
from streams.agents.partition_agent import PartitionAgent
from streams.agents.spec import AgentSpec
from streams.registry import all_topics, chosen_agents

WATCH_S: Final = 0.1
KAFKA_ASKED_EVERY_S: Final = 2.0
KAFKA_ANSWERS_WITHIN_S: Final = 5.0
STOP_TIMEOUT_S: Final = 12.0
GC_THRESHOLDS: Final = (50_000, 2, 1_000_000)
"""Records come and go by the thousand without cycles: fewer young collections are worth a fifth of the throughput.

Full collections never come: with half a million searches open each would stop the worker for seconds and free nothing.
"""
SILENCED: Final = ("aiokafka", "faust", "mode", "streams.transport")
"""Loggers of Faust's services, ours among them: their failures end this process with one line, not with theirs too."""

Agent = PartitionAgent[Any, Any]


async def run_worker(settings: Settings, shutdown: Shutdown) -> None:
    """Run the agents until a stop is asked for.

    Raises:
        MillraceError: an agent cannot go on; the process must end so that nothing uncommitted is passed over.
    """
    specs = _runnable(chosen_agents(settings.agents), settings)
    for name in SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    await asyncio.to_thread(ensure_topics, settings, all_topics(), wait=shutdown.wait)
    if shutdown.is_set():
        return
    topics = {topic for spec in specs for topic in (spec.source, spec.progress_topic)}
    ids = await asyncio.to_thread(topic_ids, settings, topics)
    tune_interpreter()
    agents = [
        agent_class(spec)(spec, settings, source_id=ids.get(spec.source), progress_id=ids.get(spec.progress_topic))
        for spec in specs
    ]
    kafka = Dependency(Process.KAFKA, meaning="nothing is joined or paired; no event is lost")
    health = Health(Process.STREAMS)
    health.add_check("kafka", kafka.not_ready)
    for agent in agents:
        health.add_check(agent.name, agent.not_ready)
        health.add_liveness_check(agent.name, agent.stuck)
        for name, read in agent.shown().items():
            health.show(name, read)
    with admin_server(health, settings.host, settings.listen_port(Process.STREAMS)):
        try:
            await _run_agents(agents, settings, shutdown, kafka)
        except MillraceError:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what stopping cuts off is no second failure
            raise
        finally:
            await _stop_agents(agents)


def _runnable(specs: Sequence[AgentSpec[Any]], settings: Settings) -> list[AgentSpec[Any]]:
    """Return the agents whose settings are there.

    Raises:
        UsageError: one that is asked for by name lacks a setting.
    """
    found = []
    for spec in specs:
        missing = [name for name in spec.needs if getattr(settings, name) is None]
        if missing and settings.agents:
            settings.require(*missing)
        if missing:
            names = ", ".join(map(env_name, missing))
            get_logger().info("agent_left_out", agent=spec.name, reason=f"{names} is not set",
                              fix=f"set {names}: until then its topics are not read")  # fmt: skip
        else:
            found.append(spec)
    return found


def agent_class(spec: AgentSpec[Any]) -> Callable[..., Agent]:
    """Return the class that runs an agent; only now is Faust imported."""
    module, _, name = spec.agent.partition(":")
    found: Callable[..., Agent] = getattr(importlib.import_module(module), name)
    return found


async def _run_agents(agents: Sequence[Agent], settings: Settings, shutdown: Shutdown, kafka: Dependency) -> None:
    """Start the agents and watch them, and Kafka; what ends one of them ends this."""
    await asyncio.gather(*(agent.app.start() for agent in agents))
    gc.freeze()
    stop = asyncio.create_task(shutdown.wait_async())
    asking = asyncio.create_task(_watch_kafka(agents[0], kafka))
    try:
        while not stop.done():
            for agent in agents:
                _raise_crash(agent, settings)
            if asking.done():
                asking.result()
            await asyncio.wait([stop], timeout=WATCH_S)
    finally:
        stop.cancel()
        asking.cancel()


async def _watch_kafka(agent: Agent, kafka: Dependency) -> None:
    """Note whether Kafka answers: the clients of Faust try on in silence."""
    no_answer = DependencyDown("Kafka does not answer", fix="look at the brokers and the network to them")
    while True:
        problem: MillraceError | None = no_answer
        try:
            async with asyncio.timeout(KAFKA_ANSWERS_WITHIN_S):
                if await agent.output.producer.client.force_metadata_update():
                    problem = None
        except OSError:  # a timeout is one
            pass
        except Exception as error:
            problem = expected_kafka_error(error, agent.settings)
            if problem is None:
                raise
        if problem is None:
            kafka.answered()
        else:
            kafka.failed(problem)
        await asyncio.sleep(KAFKA_ASKED_EVERY_S)


async def _stop_agents(agents: Sequence[Agent]) -> None:
    """Let the running chunks end and commit; if Kafka does not answer there is nothing to wait for."""
    stops = [asyncio.create_task(agent.app.stop()) for agent in agents]
    _, unfinished = await asyncio.wait(stops, timeout=STOP_TIMEOUT_S)
    for stop in unfinished:
        stop.cancel()


def _raise_crash(agent: Agent, settings: Settings) -> None:
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

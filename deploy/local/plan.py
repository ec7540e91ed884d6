"""What one machine will run: ports, addresses, keys and the command of each process, decided before anything starts.

A server that the settings name is used; what they do not name, and the chosen processes need, is started here.
"""

import hashlib
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contracts.errors import UsageError
from contracts.telemetry import DEFAULT_PORTS, Process
from deploy.local import kafka, redis
from deploy.local.child import Launch, Probe
from deploy.local.jars import REPOSITORY
from deploy.local.ports import choose_port
from deploy.local.probes import http_problem
from deploy.local.processes import KAFKA, QDRANT, REDIS, SERVERS, Table, base_name, http_url, port_of
from deploy.local.state import KEYS, LOG_FOLDER, read_env
from service.settings import ENV_PREFIX, Settings, env_name

BROKERS: Final = (1, 3)
SERVER_SETTING: Final = {KAFKA: "kafka_bootstrap", REDIS: "redis_url", QDRANT: "qdrant_url"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run.

    Args:
        settings: complete: servers, keys, where the page finds the others.
        names: each after what it needs.
        ports: of each name that listens.
        urls: of each name that is spoken to.
        external: servers that the settings name.
        nodes: the Kafka nodes to start.
        table: the processes there are.
    """

    settings: Settings
    names: tuple[str, ...]
    ports: dict[str, int]
    urls: dict[str, str]
    external: frozenset[str]
    nodes: tuple[kafka.Node, ...]
    table: Table

    @property
    def data_dir(self) -> Path:
        """The folder of this deployment."""
        return self.settings.data_dir

    def log_path(self, name: str) -> Path:
        """Return where a process's output goes."""
        return self.data_dir / LOG_FOLDER / f"{name}.log"

    def needs_topics(self) -> bool:
        """Return whether any of our processes will speak to Kafka."""
        return any(KAFKA in self.table[base_name(name)].needs for name in self.names if base_name(name) in self.table)


def make_plan(settings: Settings, names: Sequence[str], table: Table, *, brokers: int = 1) -> Plan:
    """Decide what will run.

    Args:
        settings: as given; `data_dir` exists and is absolute.
        names: as `processes.resolve` orders them.
        table: the processes there are.
        brokers: how many Kafka nodes to start, 1 or 3.

    Raises:
        UsageError: a port or a number of brokers that makes no sense here.
        DependencyDown: no port is free.
    """
    if settings.port is not None:
        fix = "unset MILLRACE_PORT here; `millrace status` shows the port of each"
        raise UsageError("MILLRACE_PORT names the port of one process, and here are many", fix=fix)
    if brokers not in BROKERS:
        raise UsageError(f"{brokers} Kafka brokers cannot be started here", fix="choose 1 or 3")
    external = frozenset(name for name in names if name in SERVERS and getattr(settings, SERVER_SETTING[name]))
    ports = _choose_ports([name for name in names if name not in external], settings.host)
    nodes = _nodes(settings, ports, brokers) if KAFKA in ports else ()
    urls = _urls(settings, names, ports, nodes)
    complete = _complete(settings, urls, ports, table)
    for name in external:
        if (port := port_of(urls[name].split(",")[0])) is not None:
            ports[name] = port
    return Plan(complete, tuple(names), ports, urls, external, nodes, table)


def _choose_ports(names: Sequence[str], host: str) -> dict[str, int]:
    """Return a free port for each name."""
    ports: dict[str, int] = {}
    for name in names:
        listens_on = "127.0.0.1" if name in {KAFKA, REDIS} else host
        ports[name] = choose_port(DEFAULT_PORTS[Process(base_name(name))], ports.values(), host=listens_on)
    return ports


def _nodes(settings: Settings, ports: Mapping[str, int], brokers: int) -> tuple[kafka.Node, ...]:
    """Return the Kafka nodes; the first has Kafka's port."""
    taken = list(ports.values())
    nodes = []
    for number in range(1, brokers + 1):
        port = ports[KAFKA] if number == 1 else choose_port(ports[KAFKA] + 2 * (number - 1), taken)
        taken.append(port)
        controller_port = choose_port(port + 1, taken)
        taken.append(controller_port)
        nodes.append(kafka.Node(number, port, controller_port, settings.data_dir / KAFKA / f"node-{number}"))
    return tuple(nodes)


def _urls(
    settings: Settings, names: Sequence[str], ports: Mapping[str, int], nodes: Sequence[kafka.Node]
) -> dict[str, str]:
    """Return the address of each name as its clients write it."""
    urls = {}
    for name in names:
        given = getattr(settings, SERVER_SETTING[name]) if name in SERVERS else None
        started = {KAFKA: kafka.bootstrap(nodes), REDIS: redis.redis_url(ports.get(name, 0))}
        urls[name] = given or started.get(name) or http_url(settings.host, ports[name])
    return urls


def _complete(settings: Settings, urls: Mapping[str, str], ports: Mapping[str, int], table: Table) -> Settings:
    """Return the settings with servers, keys and the page's targets filled in."""
    filled: dict[str, Any] = {SERVER_SETTING[name]: urls[name] for name in SERVERS if name in urls}
    kept = read_env(settings.data_dir)
    for key in KEYS:
        given = getattr(settings, key)
        filled[key] = given or kept.get(env_name(key)) or secrets.token_urlsafe(32)
    if not settings.scrape:
        filled["scrape"] = ",".join(f"{name}={urls[name]}" for name in ports if base_name(name) in table)
    return Settings.model_validate({**settings.model_dump(), **filled})


def launches(plan: Plan) -> list[Launch]:
    """Return how each name that is started here is run; Kafka's nodes must have been prepared.

    Raises:
        DependencyDown: Java, Kafka's jars or redis-server are missing.
    """
    ours = [name for name in plan.names if name not in plan.external and base_name(name) in plan.table]
    return [*_kafka_launches(plan), *_redis_launch(plan), *(_process_launch(plan, name) for name in ours)]


def _kafka_launches(plan: Plan) -> list[Launch]:
    """Return how the Kafka nodes are run: `kafka`, and `kafka-2` and `kafka-3` where there are three."""
    if not plan.nodes:
        return []
    java, brokers = kafka.require_java(), len(plan.nodes)
    names = [KAFKA if node.number == 1 else f"{KAFKA}-{node.number}" for node in plan.nodes]
    return [
        Launch(
            name=name,
            argv=kafka.broker_argv(node, brokers=brokers, java=java),
            environ=_outer_environ(),
            log_path=plan.log_path(name),
            probe=_kafka_probe(plan.settings, node, brokers),
            port=node.port,
            cwd=node.folder,
            explain=kafka.last_error,
        )
        for name, node in zip(names, plan.nodes, strict=True)
    ]


def _kafka_probe(settings: Settings, node: kafka.Node, brokers: int) -> Probe:
    """Return the question to one node: do you answer, and do you see the others?"""
    asked = settings.model_copy(update={"kafka_bootstrap": kafka.bootstrap([node])})
    return lambda: kafka.kafka_problem(asked, brokers=brokers)


def _redis_launch(plan: Plan) -> list[Launch]:
    """Return how Redis is run, where it is started here."""
    if REDIS not in plan.ports or REDIS in plan.external:
        return []
    folder = plan.data_dir / REDIS
    folder.mkdir(parents=True, exist_ok=True)
    return [
        Launch(
            name=REDIS,
            argv=redis.redis_argv(plan.ports[REDIS]),
            environ=_outer_environ(),
            log_path=plan.log_path(REDIS),
            probe=lambda: redis.redis_problem(plan.settings),
            port=plan.ports[REDIS],
            cwd=folder,
        )
    ]


def _process_launch(plan: Plan, name: str) -> Launch:
    """Return how one of our processes is run."""
    spec = plan.table[base_name(name)]
    own = {"MILLRACE_PORT": str(plan.ports[name])}
    if spec.static_member:
        own["MILLRACE_WORKER_ID"] = _worker_id(plan, name)
    url = plan.urls[name] + spec.ready_path
    return Launch(
        name=name,
        argv=spec.argv(),
        environ={**_outer_environ(), **plan.settings.as_environ(), **own},
        log_path=plan.log_path(name),
        probe=lambda: http_problem(url),
        needs=spec.needs,
        port=plan.ports[name],
    )


def _worker_id(plan: Plan, name: str) -> str:
    """Return a worker's name: unique on the cluster, and the same after a restart."""
    if KAFKA not in plan.external:
        return name
    place = hashlib.sha256(f"{socket.gethostname()}:{plan.data_dir}".encode()).hexdigest()[:8]
    return f"{name}-{place}"


def _outer_environ() -> dict[str, str]:
    """Return this environment without our settings, made so that only our own modules are found under our names."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    paths = [str(REPOSITORY), *filter(None, [outer.get("PYTHONPATH")])]
    return {**outer, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}

"""What one machine will run: ports, addresses, keys and the command of each process, decided before anything starts.

A server that the settings name is used; any other that the chosen processes need is started here.
"""

import hashlib
import os
import random
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from contracts.errors import DependencyDown, UsageError
from contracts.telemetry import DEFAULT_PORTS, Process
from deploy.local.processes import (
    KAFKA,
    QDRANT,
    REDIS,
    SERVERS,
    Table,
    base_name,
    child_environ,
    http_problem,
    http_url,
    port_of,
)
from deploy.local.servers import (
    JAVA_LOCALE,
    KafkaNode,
    bootstrap_servers,
    broker_argv,
    kafka_problem,
    last_kafka_error,
    redis_argv,
    redis_problem,
    require_java,
)
from deploy.local.state import KEYS, LOG_FOLDER, read_env
from deploy.local.supervised_process import ProcessCommand
from service.settings import ENV_PREFIX, Settings, env_name

BROKERS: Final = (1, 3)
SERVER_SETTING: Final = {KAFKA: "kafka_bootstrap", REDIS: "redis_url", QDRANT: "qdrant_url"}
OTHER_PORTS: Final = range(20_000, 32_000)
"""Below the range from which the system takes ports for outgoing connections: none of those takes a chosen port."""
PORT_TRIES: Final = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            return True
    except OSError:
        return False


class PortChooser:
    """Chooses ports that are free and that no other supervisor on this machine chooses, even before they listen.

    On Linux an abstract socket stands for each port: there is one of each name, and it ends with its process.
    """

    def __init__(self) -> None:
        self._claims: dict[int, socket.socket] = {}

    def choose(self, *wanted: int, host: str = "127.0.0.1") -> int:
        """Choose the first wanted port that is free and was not chosen before, else another; and keep it."""
        # Random, so that two supervisors that start at once do not meet; a port is no secret.
        for port in [*wanted, *random.sample(OTHER_PORTS, PORT_TRIES)]:
            if port not in self._claims and is_free(port, host) and self._claim(port):
                return port
        fix = "stop what holds them, see `ss -tlnp`"
        raise DependencyDown(f"no free port on {host}: {PORT_TRIES} were tried", fix=fix)

    def _claim(self, port: int) -> bool:
        claim = socket.socket(socket.AF_UNIX)
        try:
            if sys.platform == "linux":
                claim.bind(f"\0millrace-port-{port}")
        except OSError:
            claim.close()
            return False
        self._claims[port] = claim
        return True

    def release(self) -> None:
        """Let others have the ports; harmless when repeated."""
        while self._claims:
            self._claims.popitem()[1].close()


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run: each name after what it needs, with complete settings and what the settings name already."""

    settings: Settings
    names: tuple[str, ...]
    ports: dict[str, int]
    urls: dict[str, str]
    external: frozenset[str]
    nodes: tuple[KafkaNode, ...]
    table: Table

    @property
    def data_dir(self) -> Path:
        """The folder of this deployment."""
        return self.settings.data_dir

    def log_path(self, name: str) -> Path:
        """Return the file that gets a process's output."""
        return self.data_dir / LOG_FOLDER / f"{name}.log"

    def needs_topics(self) -> bool:
        """Tell whether any of our processes will speak to Kafka."""
        return any(KAFKA in self.table[base_name(name)].needs for name in self.names if base_name(name) in self.table)


def make_plan(
    settings: Settings, names: Sequence[str], table: Table, chooser: PortChooser, *, brokers: int = 1
) -> Plan:
    """Decide what will run: these names of the table, as `resolve` orders them."""
    if settings.port is not None:
        fix = "unset MILLRACE_PORT here; `millrace status` shows the port of each"
        raise UsageError("MILLRACE_PORT names the port of one process, and here are many", fix=fix)
    if brokers not in BROKERS:
        raise UsageError(f"{brokers} Kafka brokers cannot be started here", fix="choose 1 or 3")
    external = frozenset(name for name in names if name in SERVERS and getattr(settings, SERVER_SETTING[name]))
    ports: dict[str, int] = {}
    before = _ports_before(settings.data_dir)
    for name in names:
        if name not in external:
            host = "127.0.0.1" if name in {KAFKA, REDIS} else settings.host
            default = DEFAULT_PORTS[Process(base_name(name))]
            ports[name] = chooser.choose(default, before.get(name, default), host=host)
    nodes = _nodes(settings.data_dir, ports[KAFKA], before, brokers, chooser) if KAFKA in ports else ()
    urls = _urls(settings, names, ports, nodes)
    complete = _complete(settings, urls, ports, table)
    for name in external:
        if (port := port_of(urls[name].split(",")[0])) is not None:
            ports[name] = port
    return Plan(complete, tuple(names), ports, urls, external, nodes, table)


def _ports_before(data_dir: Path) -> dict[str, int]:
    """The ports of the last run on the folder, by name, each broker too: a shop's pages and producers know them."""
    kept = read_env(data_dir)
    urls = [one.partition("=")[::2] for one in kept.get(env_name("scrape"), "").split(",")]
    for server, setting in SERVER_SETTING.items():
        urls += [(_node_name(server, n), url) for n, url in enumerate(kept.get(env_name(setting), "").split(","), 1)]
    return {name: port for name, url in urls if (port := port_of(url)) is not None}


def _node_name(server: str, number: int) -> str:
    return server if number == 1 else f"{server}-{number}"


def _nodes(
    data_dir: Path, first_port: int, before: Mapping[str, int], brokers: int, chooser: PortChooser
) -> tuple[KafkaNode, ...]:
    nodes = []
    for number in range(1, brokers + 1):
        default = first_port + 2 * (number - 1)
        port = first_port if number == 1 else chooser.choose(default, before.get(_node_name(KAFKA, number), default))
        nodes.append(KafkaNode(number, port, chooser.choose(port + 1), data_dir / KAFKA / f"node-{number}"))
    return tuple(nodes)


def _urls(
    settings: Settings, names: Sequence[str], ports: Mapping[str, int], nodes: Sequence[KafkaNode]
) -> dict[str, str]:
    urls = {}
    for name in names:
        given = getattr(settings, SERVER_SETTING[name]) if name in SERVERS else None
        started = {KAFKA: bootstrap_servers(nodes), REDIS: f"redis://127.0.0.1:{ports.get(name)}/0"}
        urls[name] = given or started.get(name) or http_url(settings.host, ports[name])
    return urls


def _complete(settings: Settings, urls: Mapping[str, str], ports: Mapping[str, int], table: Table) -> Settings:
    filled: dict[str, Any] = {SERVER_SETTING[name]: urls[name] for name in SERVERS if name in urls}
    kept = read_env(settings.data_dir)
    for key in KEYS:
        given = getattr(settings, key)
        filled[key] = given or kept.get(env_name(key)) or secrets.token_urlsafe(32)
    if not settings.scrape:
        filled["scrape"] = ",".join(f"{name}={urls[name]}" for name in ports if base_name(name) in table)
    return Settings.model_validate({**settings.model_dump(), **filled})


def process_commands(plan: Plan) -> list[ProcessCommand]:
    """Say how each name that is started here is run; Kafka's nodes must have been prepared."""
    ours = [name for name in plan.names if name not in plan.external and base_name(name) in plan.table]
    redis = [_redis_command(plan)] if REDIS in plan.ports and REDIS not in plan.external else []
    return [*_kafka_commands(plan), *redis, *(_own_command(plan, name) for name in ours)]


def _kafka_commands(plan: Plan) -> list[ProcessCommand]:
    if not plan.nodes:
        return []
    java, brokers = require_java(), len(plan.nodes)
    commands = []
    for node in plan.nodes:
        name = _node_name(KAFKA, node.number)
        alone = plan.settings.model_copy(update={"kafka_bootstrap": bootstrap_servers([node])})
        command = ProcessCommand(
            name=name,
            argv=broker_argv(node, brokers=brokers, java=java),
            environ={**_outer_environ(), **JAVA_LOCALE},
            log_path=plan.log_path(name),
            probe=partial(kafka_problem, alone, brokers=brokers),
            port=node.port,
            folder=node.folder,
            find_error=last_kafka_error,
        )
        commands.append(command)
    return commands


def _redis_command(plan: Plan) -> ProcessCommand:
    folder = plan.data_dir / REDIS
    folder.mkdir(parents=True, exist_ok=True)
    return ProcessCommand(
        name=REDIS,
        argv=redis_argv(plan.ports[REDIS]),
        environ=_outer_environ(),
        log_path=plan.log_path(REDIS),
        probe=lambda: redis_problem(plan.settings),
        port=plan.ports[REDIS],
        folder=folder,
    )


def _own_command(plan: Plan, name: str) -> ProcessCommand:
    spec = plan.table[base_name(name)]
    own = {"MILLRACE_PORT": str(plan.ports[name])}
    if spec.static_member:
        own["MILLRACE_WORKER_ID"] = _worker_id(plan, name)
    ready_url = f"{plan.urls[name]}/ready"
    return ProcessCommand(
        name=name,
        argv=spec.argv(),
        environ={**_outer_environ(), **plan.settings.as_environ(), **own},
        log_path=plan.log_path(name),
        probe=lambda: http_problem(ready_url),
        needs=spec.needs,
        port=plan.ports[name],
    )


def _worker_id(plan: Plan, name: str) -> str:
    """Name a worker: unique on the cluster, and the same after a restart."""
    if KAFKA not in plan.external:
        return name
    place = hashlib.sha256(f"{socket.gethostname()}:{plan.data_dir}".encode()).hexdigest()[:8]
    return f"{name}-{place}"


def _outer_environ() -> dict[str, str]:
    """Take this environment without our settings: a child is given those in force."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**child_environ(outer), "PYTHONUNBUFFERED": "1"}

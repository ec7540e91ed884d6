"""The processes of one machine as a table: how each is started, what it needs, and the question whether it is ready.

`docker-compose.yml` runs the very same commands; a test compares it with this table.
"""

import http.client
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from contracts.errors import UsageError
from contracts.telemetry import Process
from deploy.local import REPOSITORY
from service.kafka_settings import comma_list

KAFKA: Final = Process.KAFKA.value
REDIS: Final = Process.REDIS.value
QDRANT: Final = Process.QDRANT.value
READY_TIMEOUT_S: Final = 2.0
LONGEST_REASONS: Final = 300
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of ours: what `python -m` runs, and what must be ready before it starts."""

    name: str
    module: str
    needs: tuple[str, ...] = ()
    static_member: bool = False
    """It belongs to a consumer group and keeps its partitions over a quick restart."""

    def argv(self) -> list[str]:
        """Return the command for this interpreter."""
        return [sys.executable, "-m", self.module]


PROCESSES: Final[tuple[ProcessSpec, ...]] = (
    ProcessSpec("qdrant", "deploy.qdrant_edge"),
    ProcessSpec("collector", "streams.collector", needs=(KAFKA, REDIS)),
    ProcessSpec("streams", "streams", needs=(KAFKA, REDIS), static_member=True),
    ProcessSpec("trainer", "trainer", needs=(KAFKA,), static_member=True),
    ProcessSpec("indexer", "indexer", needs=(KAFKA, QDRANT), static_member=True),
    ProcessSpec("search", "indexer.search", needs=(KAFKA, REDIS, QDRANT)),
    ProcessSpec("page", "millrace.page", needs=(KAFKA,)),
)

SERVERS: Final = (KAFKA, REDIS, QDRANT)
"""What the settings may name instead of having it started here."""

Table = Mapping[str, ProcessSpec]

TABLE: Final[Table] = {spec.name: spec for spec in PROCESSES}


def base_name(name: str) -> str:
    """Return the process that a name is an instance of.

    >>> base_name("streams-2"), base_name("streams")
    ('streams', 'streams')
    """
    return re.sub(r"-\d+$", "", name)


def resolve(names: Iterable[str] | None, table: Table = TABLE) -> tuple[str, ...]:
    """List what to run: the names and all that they need, each after what it needs."""
    chosen: dict[str, None] = {}
    for name in [*table, KAFKA, REDIS] if names is None else names:
        _add(name, chosen, table)
    return tuple(sorted(chosen, key=lambda name: level(name, table)))


def _add(name: str, chosen: dict[str, None], table: Table) -> None:
    base = base_name(name)
    if base not in table and name not in {KAFKA, REDIS}:
        known = ", ".join([*table, KAFKA, REDIS])
        raise UsageError(f"there is no process {name}", fix=f"choose from {known}")
    for need in table[base].needs if base in table else ():
        _add(need, chosen, table)
    chosen[name] = None


def level(name: str, table: Table = TABLE) -> int:
    """Count the steps of needs below a name: servers are 0; stops go from the highest down."""
    spec = table.get(base_name(name))
    if spec is None:
        return 0
    return 1 + max((level(need, table) for need in spec.needs), default=-1)


def past_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that exempt this machine from the proxies that an environment names.

    >>> past_proxies({"NO_PROXY": "a.example"})["no_proxy"]
    'a.example,127.0.0.1,localhost,::1'
    """
    hosts = comma_list(environ.get("no_proxy", environ.get("NO_PROXY", "")))
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for what we start: our modules are found from any folder, and no proxy is asked for us."""
    paths = [str(REPOSITORY), *filter(None, [environ.get("PYTHONPATH")])]
    return {**environ, **past_proxies(environ), "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def probe_host(host: str) -> str:
    """Return the address at which this machine reaches a process that listens on `host`.

    >>> probe_host("0.0.0.0"), probe_host("::1")
    ('127.0.0.1', '[::1]')
    """
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - the address is compared, not bound
    return f"[{reached}]" if ":" in reached else reached


def http_url(host: str, port: int) -> str:
    """Return the address of a process for clients on this machine."""
    return f"http://{probe_host(host)}:{port}"


def port_of(url: str) -> int | None:
    """Return the port that an address names.

    >>> port_of("redis://127.0.0.1:6379/0"), port_of("127.0.0.1:9092")
    (6379, 9092)
    """
    return urlsplit(url if "//" in url else f"//{url}").port


def http_problem(url: str, headers: Mapping[str, str] | None = None) -> str | None:
    """Ask a process whether it is ready; return what it has against it, or None."""
    # Gives every answer as it is, whatever its status, and asks no proxy: none knows this machine.
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - our own http:// addresses
    try:
        with opener.open(request, timeout=READY_TIMEOUT_S) as answer:
            status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        return f"does not answer ({getattr(cause, 'strerror', None) or cause or type(error).__name__})"
    if status == http.HTTPStatus.OK:
        return None
    return "; ".join(ready_reasons(body))[:LONGEST_REASONS] or f"answers {status}"


def ready_reasons(body: bytes) -> tuple[str, ...]:
    """Read the reasons that a readiness answer gives; whatever else a server may say has none."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ()
    reasons = answer.get("reasons") if isinstance(answer, dict) else None
    return tuple(map(str, reasons)) if isinstance(reasons, list) else ()

"""The processes of one machine as a table: how each is started, what it needs, where it says that it is ready.

`docker-compose.yml` and `deploy/kubernetes` run the very same commands; a test compares them with this table.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from contracts.errors import UsageError
from contracts.telemetry import DEFAULT_PORTS, Process

KAFKA: Final = Process.KAFKA.value
REDIS: Final = Process.REDIS.value
QDRANT: Final = Process.QDRANT.value


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of ours.

    Args:
        name: as in `status`, logs and metrics.
        module: what `python -m` runs.
        needs: names of what must be ready before it starts.
        ready_path: answers 200 over HTTP once it is ready.
        static_member: True where it belongs to a consumer group and keeps its partitions over a quick restart.
    """

    name: str
    module: str
    needs: tuple[str, ...] = ()
    ready_path: str = "/ready"
    static_member: bool = False

    @property
    def default_port(self) -> int:
        """The port it listens on where that is free."""
        return DEFAULT_PORTS[Process(self.name)]

    def command(self) -> tuple[str, ...]:
        """Return the command as people and containers write it."""
        return ("python", "-m", self.module)

    def argv(self) -> list[str]:
        """Return the command for this interpreter."""
        return [sys.executable, *self.command()[1:]]


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
"""What may be named in the settings instead of being started."""

Table = Mapping[str, ProcessSpec]

TABLE: Final[Table] = {spec.name: spec for spec in PROCESSES}


def base_name(name: str) -> str:
    """Return the process that a name is an instance of.

    >>> base_name("streams-2"), base_name("streams")
    ('streams', 'streams')
    """
    return re.sub(r"-\d+$", "", name)


def resolve(names: Iterable[str] | None, table: Table = TABLE) -> tuple[str, ...]:
    """Return what to run: the names and all that they need, each after what it needs.

    Args:
        names: processes or servers, `streams-2` for a further instance; None for all.
        table: the processes there are.

    Raises:
        UsageError: there is no process of that name.
    """
    chosen: dict[str, None] = {}
    for name in [*table, KAFKA, REDIS] if names is None else names:
        _add(name, chosen, table)
    return tuple(sorted(chosen, key=lambda name: level(name, table)))


def _add(name: str, chosen: dict[str, None], table: Table) -> None:
    """Add a name after what it needs."""
    base = base_name(name)
    if base not in table and name not in {KAFKA, REDIS}:
        known = ", ".join([*table, KAFKA, REDIS])
        raise UsageError(f"there is no process {name}", fix=f"choose from {known}")
    for need in table[base].needs if base in table else ():
        _add(need, chosen, table)
    chosen[name] = None


def level(name: str, table: Table = TABLE) -> int:
    """Return how many steps of needs lie below a name: servers are 0; stops go from the highest down."""
    spec = table.get(base_name(name))
    if spec is None:
        return 0
    return 1 + max((level(need, table) for need in spec.needs), default=-1)


def probe_host(host: str) -> str:
    """Return the address at which a process that listens on `host` is reached from this machine.

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

"""Redis on this machine: on loopback, bounded, nothing kept, because it holds nothing that Kafka does not."""

import shutil
from typing import Final

from contracts.errors import DependencyDown
from service.redis import redis_check, redis_client
from service.settings import Settings

MEMORY_MB: Final = 256


def redis_url(port: int) -> str:
    """Return the address of the server that we start."""
    return f"redis://127.0.0.1:{port}/0"


def require_redis() -> str:
    """Return the path of redis-server.

    Raises:
        DependencyDown: it is not installed.
    """
    server = shutil.which("redis-server")
    if server is None:
        fix = "`make setup` installs it where it may, and says how else"
        raise DependencyDown("redis-server is not installed", fix=fix)
    return server


def redis_argv(port: int) -> list[str]:
    """Return the command that runs the server; its working folder is its own."""
    listen = ["--port", str(port), "--bind", "127.0.0.1"]
    nothing_kept = ["--save", "", "--appendonly", "no"]
    # Everything written there expires; under pressure what expires soonest goes first.
    bounded = ["--maxmemory", f"{MEMORY_MB}mb", "--maxmemory-policy", "volatile-ttl"]
    return [require_redis(), *listen, *nothing_kept, *bounded, "--daemonize", "no"]


def redis_problem(settings: Settings) -> str | None:
    """Ask Redis for a PONG; return what is wrong, or None."""
    client = redis_client(settings)
    try:
        return redis_check(client)
    finally:
        client.close()

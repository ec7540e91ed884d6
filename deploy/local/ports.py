"""Which port each process listens on: the default where it is free, else another.

The others lie below the range from which the system takes ports for outgoing connections, so that none of those takes
the port between the choice and its use.
"""

import random
import socket
from collections.abc import Iterable
from typing import Final

from contracts.errors import DependencyDown

OTHERS: Final = range(20_000, 32_000)
TRIES: Final = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            return True
    except OSError:
        return False


def choose_port(default: int, taken: Iterable[int] = (), *, host: str = "127.0.0.1") -> int:
    """Return the default port if it is free, else another that is.

    Args:
        default: the port that people expect.
        taken: ports given to processes that do not listen yet.
        host: the address to listen on.

    Raises:
        DependencyDown: no port was free.
    """
    refused = set(taken)
    # Random, so that two supervisors that start at once do not meet; a port is no secret.
    candidates = [default, *random.sample(OTHERS, TRIES)]
    for port in candidates:
        if port not in refused and is_free(port, host):
            return port
    raise DependencyDown(f"no free port on {host}: {TRIES} were tried", fix="stop what holds them, see `ss -tlnp`")

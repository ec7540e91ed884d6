"""What addresses in settings must look like: a wrong one is refused at the start, and never repeated.

It may hold a password, and a client that is given one would only say, again and again, that nobody answers there.
"""

import re
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from service.kafka_settings import comma_list

_REDIS: Final = ("redis://", "rediss://")
_WEB: Final = ("http", "https")


def redis_address(url: str) -> str:
    """Return the address of a Redis, or of its socket, as its client takes it apart.

    Raises:
        ValueError: it is none, or its database is no number, which the client would pass over.
    """
    parts = _taken_apart(url)
    is_socket = url.startswith("unix://") and parts.path
    database = "" if is_socket else unquote(parts.path).replace("/", "")
    database = parse_qs(parts.query).get("db", [database])[0]
    if not (is_socket or url.startswith(_REDIS)) or not re.fullmatch(r"\d*", database):
        raise ValueError("is not redis://host:port/0")
    return url


def qdrant_address(url: str) -> str:
    """Return the address of a vector store.

    Raises:
        ValueError: it is none, or holds a login.
    """
    parts = _taken_apart(url)
    if parts.scheme not in _WEB or not parts.hostname:
        raise ValueError("is not http://host:port")
    if parts.username is not None:
        raise ValueError("holds a login, which is not sent: MILLRACE_QDRANT_API_KEY takes the key")
    return url


def origins(listed: str) -> str:
    """Return a list of origins as browsers and web views of apps send them; another spelling would never meet one.

    Raises:
        ValueError: one of them is none.
    """
    for origin in comma_list(listed):
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s*A-Z]+|null", origin):
            raise ValueError(f"{origin!r} is not https://host, lower-case and without a path or *")
    return listed


def _taken_apart(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # is taken apart only when asked for
    except ValueError:
        raise ValueError("is not an address: host or port is malformed") from None
    return parts

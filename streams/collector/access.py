"""Who may send, how much, and from where: pure rules; a refusal is an exception with its HTTP status.

Every browser that visits the shop has the write key, so it opens shop events only and is worth little alone: the
origin list, the limits and the bot list help it. The secret key opens everything and has no place in a URL.
"""

import hmac
import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from contracts.errors import UsageError
from service.http import Refused

BOT_LIST: Final = Path(__file__).with_name("bots.txt")
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}

_FORWARDED_PAIR: Final = re.compile(r'([a-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;,\s"]*)', re.IGNORECASE)

Network = IPv4Network | IPv6Network


class Holder(StrEnum):
    """Which key a request came with."""

    WRITE = "write"
    SECRET = "secret"  # noqa: S105 - the kind of key, not a key


@dataclass(frozen=True, slots=True)
class Keys:
    """The deployment's two keys."""

    write: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if hmac.compare_digest(self.write, self.secret):
            raise UsageError(
                "MILLRACE_WRITE_KEY and MILLRACE_SECRET_KEY are the same: every visitor would hold the secret key",
                fix="set two different keys, for example with `openssl rand -hex 16`",
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request and one caller may send.

    Args:
        write_body_bytes: body with the write key; 64 KiB is all that a browser's sendBeacon sends.
        secret_body_bytes: body with the secret key.
        items: events, products or pairs in one request.
        window_s: length of the rate window.
        write_items_per_window: per address with the write key; a whole office may stand behind one address.
        secret_items_per_window: per address with the secret key.
    """

    write_body_bytes: int = 64 * 1024
    secret_body_bytes: int = 4 * 1024 * 1024
    items: int = 2_500
    window_s: int = 10
    write_items_per_window: int = 50_000
    secret_items_per_window: int = 1_000_000

    def body_bytes(self, holder: Holder) -> int:
        """Return the largest body, decompressed, for a key."""
        return self.secret_body_bytes if holder is Holder.SECRET else self.write_body_bytes

    def items_per_window(self, holder: Holder) -> int:
        """Return how many items a caller may send in one window."""
        return self.secret_items_per_window if holder is Holder.SECRET else self.write_items_per_window


def authorise(keys: Keys, *, authorization: str | None, query_key: str | None, secret_only: bool) -> Holder:
    """Return which key a request came with.

    Args:
        keys: the deployment's.
        authorization: the `Authorization` header.
        query_key: `?key=` of a route that the beacon may call, which cannot set headers; good for the write key only.
        secret_only: the route takes the secret key alone.

    Raises:
        Refused: 401 if the key is missing, wrong, or the write key although that does not suffice.
    """
    given = (_bearer(authorization) if authorization is not None else query_key or "").encode(errors="replace")
    if not given:
        raise Refused(401, "no_key", "send the key as `Authorization: Bearer KEY`", headers=_CHALLENGE)
    is_write, is_secret = hmac.compare_digest(given, keys.write), hmac.compare_digest(given, keys.secret)
    if is_secret and authorization is None:
        raise Refused(
            401, "wrong_key", "the secret key is not taken from an address; send it as a header", headers=_CHALLENGE
        )
    if not is_write and not is_secret:
        raise Refused(401, "wrong_key", "the key is not one of this deployment", headers=_CHALLENGE)
    if secret_only and not is_secret:
        text = "the write key sends shop events only; use the secret key here"
        raise Refused(401, "secret_key_needed", text, headers=_CHALLENGE)
    return Holder.SECRET if is_secret else Holder.WRITE


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def check_origin(origin: str | None, *, host: str, allowed: Collection[str]) -> None:
    """Refuse a browser on a page that is not the shop's; requests of servers carry no origin.

    Raises:
        Refused: 403.
    """
    if origin is None or origin in allowed or _host_of(origin) == host:
        return
    raise Refused(403, "origin_not_allowed", f"add the origin {origin} to MILLRACE_CORS_ORIGINS")


def _host_of(origin: str) -> str | None:
    """Return the host and port of an origin; None if it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def caller_address(
    peer: str, *, forwarded_for: Sequence[str] = (), forwarded: Sequence[str] = (), trusted: Collection[Network] = ()
) -> str:
    """Return the address that a request came from: the nearest one that is not a trusted proxy's.

    What is further away than that was written by somebody who is not trusted. If both headers are there and disagree,
    one of them passed through a proxy that does not know it, so neither is believed.

    Args:
        peer: address at the other end of the connection.
        forwarded_for: values of `X-Forwarded-For`, in order.
        forwarded: values of `Forwarded` (RFC 7239), in order.
        trusted: networks of the proxies.

    >>> office = [ipaddress.ip_network("10.0.0.0/8")]
    >>> caller_address("10.0.0.1", forwarded_for=["6.6.6.6, 203.0.113.9, 10.0.0.7"], trusted=office)
    '203.0.113.9'
    >>> caller_address("203.0.113.9", forwarded_for=["6.6.6.6"], trusted=office)
    '203.0.113.9'
    """
    if not trusted or not _is_trusted(_address(peer), trusted):
        return peer
    hops = [part for value in forwarded_for for part in value.split(",")]
    told = [text for value in forwarded for name, text in _FORWARDED_PAIR.findall(value) if name.lower() == "for"]
    found = {_nearest(peer, chain, trusted) for chain in (hops, told) if chain}
    return found.pop() if len(found) == 1 else peer


def _nearest(peer: str, hops: Sequence[str], trusted: Collection[Network]) -> str:
    """Return the right-most address that is not trusted, or the left-most trusted one before something unreadable."""
    nearest = peer
    for hop in reversed(hops):
        address = _address(hop)
        if address is None:
            break
        nearest = str(address)
        if not _is_trusted(address, trusted):
            break
    return nearest


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address as proxies write it: with or without a port, brackets or quotes; None if it is none."""
    bare = text.strip().strip('"')
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: IPv4Address | IPv6Address | None, trusted: Collection[Network]) -> bool:
    return address is not None and any(address in network for network in trusted)


def retry_after_s(items_in_window: int | None, *, limit: int, window_s: int, now_s: float) -> int | None:
    """Tell how long a caller has to wait; None if it may go on.

    Args:
        items_in_window: what the caller sent in the present window, this request included; None if nobody counts.
        limit: items per window.
        window_s: length of the window, which begins at a multiple of itself.
        now_s: seconds since the epoch.

    >>> retry_after_s(11, limit=10, window_s=10, now_s=1003.2), retry_after_s(10, limit=10, window_s=10, now_s=1003.2)
    (7, None)
    """
    if items_in_window is None or items_in_window <= limit:
        return None
    return max(1, round(window_s - now_s % window_s))


def read_bot_list(path: Path = BOT_LIST) -> tuple[str, ...]:
    """Return the parts of user agents that mark bots."""
    lines = (line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def is_bot(user_agent: str, bots: Sequence[str]) -> bool:
    """Return whether a user agent is on the list; an absent one is not."""
    lowered = user_agent.lower()
    return any(bot in lowered for bot in bots)

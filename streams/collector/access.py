"""Who may send, how much, and from where: pure rules; a refusal is an exception with its HTTP status.

The write key stands in every browser that visits the shop, so it opens shop events only and is worth little alone: the
origin list, the limits and the bot list stand beside it. The secret key opens everything and has no place in a URL.
"""

import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from contracts.errors import UsageError

BOT_LIST: Final = Path(__file__).with_name("bots.txt")
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)


class Refused(Exception):
    """A whole request is refused: nothing of it was accepted.

    Args:
        status: HTTP status.
        reason: stable word for programs.
        message: sentence for people, with the fix.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, message: str, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message.encode(errors="replace").decode()  # it may repeat a header that is not UTF-8
        self.headers = headers


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
        Refused: 401 where the key is missing, wrong, or the write key where that does not suffice.
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
    """Return the token of a bearer header, or nothing."""
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
    """Return the host and port of an origin, or None where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def retry_after_s(items_in_window: int | None, *, limit: int, window_s: int, now_s: float) -> int | None:
    """Return how long a caller has to wait, or None where it may go on.

    Args:
        items_in_window: what the caller sent in the present window, this request included; None where nobody counts.
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

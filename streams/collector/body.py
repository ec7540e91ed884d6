"""From a request's bytes to its list of items; everything that makes a whole request unreadable is refused here."""

import asyncio
from typing import Any, Final

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import BadHttpMessage

from contracts import wire
from contracts.errors import ContractError
from streams.collector.access import Refused

READ_TIMEOUT_S: Final = 30.0
CONTENT_TYPES: Final = frozenset({"application/json", "text/plain", "application/octet-stream"})
"""JSON; text/plain is how sendBeacon spares itself a preflight; the third is aiohttp's word for an absent header."""
ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})


async def read_items(request: web.Request, name: str, *, limit_bytes: int, limit_items: int) -> list[Any]:
    """Return the items of a request, not yet looked at.

    Args:
        request: its body is `{name: [...]}`, as it is or compressed.
        name: `events`, `products` or `pairs`.
        limit_bytes: largest body, decompressed.
        limit_items: most items.

    Raises:
        Refused: 400, 408, 413 or 415.
    """
    _refuse_form(request)
    body = await _read(request, limit_bytes)
    try:
        content = wire.parse(body)
    except ContractError as error:
        raise Refused(400, error.reason, str(error)) from error
    items = content.get(name) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise Refused(400, "wrong_type", f'the body must be {{"{name}": [...]}}')
    if len(items) > limit_items:
        raise Refused(413, "too_many_items", f"{len(items)} {name} in one request; send at most {limit_items}")
    return items


def _refuse_form(request: web.Request) -> None:
    """Refuse content that nobody here can read."""
    if request.content_type not in CONTENT_TYPES:
        raise Refused(415, "content_type", f"send application/json, not {request.content_type}")
    encoding = request.headers.get("Content-Encoding", "").lower()
    if encoding not in ENCODINGS:
        raise Refused(415, "content_encoding", f"send gzip, deflate or nothing, not {encoding}")


async def _read(request: web.Request, limit_bytes: int) -> bytes:
    """Return the body, which aiohttp decompresses on the way; stop reading where it grows too large."""
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
    except TimeoutError as error:
        raise Refused(408, "too_slow", f"the body did not arrive within {READ_TIMEOUT_S:g} s") from error
    except (web.RequestPayloadError, ClientPayloadError, BadHttpMessage) as error:
        raise Refused(400, "malformed_body", f"the body breaks off or is not what its headers say: {error}") from error
    return bytes(body)


def _too_large(limit_bytes: int) -> Refused:
    """Return the refusal of a large body, with the limit."""
    return Refused(413, "too_large", f"the body may have {limit_bytes} bytes, decompressed; send smaller batches")

"""From a request's bytes to its list of items; everything that makes a whole request unreadable is refused here.

Compressed bodies are unpacked here, not by aiohttp: it would log a traceback for each that is not what its header says.
"""

import asyncio
import zlib
from typing import Any, Final

from aiohttp import web

from contracts import wire
from contracts.errors import ContractError
from streams.collector.access import Refused

READ_TIMEOUT_S: Final = 30.0
CONTENT_TYPES: Final = frozenset({"application/json", "text/plain", "application/octet-stream"})
"""JSON; text/plain is how sendBeacon spares itself a preflight; the third is aiohttp's word for an absent header."""
PACKED: Final = frozenset({"gzip", "deflate"})
_GZIP_OR_ZLIB: Final = 47  # zlib: 15 bits of window, plus 32 to tell the two headers apart


async def read_items(request: web.Request, name: str, *, limit_bytes: int, limit_items: int) -> list[Any]:
    """Return the items of a request, not yet looked at.

    Args:
        request: its body is `{name: [...]}`, as it is or compressed.
        name: `events`, `products` or `pairs`.
        limit_bytes: largest body, unpacked.
        limit_items: most items.

    Raises:
        Refused: 400, 408, 413 or 415.
    """
    _refuse_form(request)
    body = await _read(request, limit_bytes)
    try:
        content = wire.parse_leniently(body)  # a text that is no Unicode costs its item, not the batch
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
    if _encoding(request) not in {"identity", *PACKED}:
        raise Refused(415, "content_encoding", f"send gzip, deflate or identity, not {_encoding(request)}")


async def _read(request: web.Request, limit_bytes: int) -> bytes:
    """Return the body, unpacked; stop reading where it grows too large."""
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
    return _unpacked(bytes(body), limit_bytes) if _encoding(request) in PACKED else bytes(body)


def _unpacked(body: bytes, limit_bytes: int) -> bytes:
    """Return what a compressed body holds, and never unpack more than the limit."""
    unpacker = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
    try:
        unpacked = unpacker.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise Refused(400, "malformed_body", f"the body is not compressed as its header says: {error}") from error
    if len(unpacked) > limit_bytes:
        raise _too_large(limit_bytes)
    if not unpacker.eof or unpacker.unused_data:
        raise Refused(400, "malformed_body", "the compressed body breaks off, or something follows it")
    return unpacked


def _encoding(request: web.Request) -> str:
    """Return how the body is packed."""
    return request.headers.get("Content-Encoding", "identity").lower()


def _too_large(limit_bytes: int) -> Refused:
    """Return the refusal of a large body, with the limit."""
    return Refused(413, "too_large", f"the body may have {limit_bytes} bytes, unpacked; send smaller batches")

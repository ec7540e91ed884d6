"""What an error of qdrant-client means to the indexer and to search."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx
import orjson
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from contracts.errors import InvariantError, MillraceError, TransientError, UsageError

_KEY_FIX: Final = "set MILLRACE_QDRANT_API_KEY to the key of the vector store"
_TRY_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})


@contextmanager
def qdrant_errors(doing: str) -> Iterator[None]:
    """Translate what qdrant-client raises.

    Args:
        doing: what was tried, for the message, e.g. ``write to products-r0``.

    Raises:
        TransientError: timeout, no connection, too many requests, a failing server.
        UsageError: the key is missing or wrong.
        InvariantError: the store refused what should be right: wrong dimension, missing collection.
    """
    try:
        yield
    except ResourceExhaustedResponse as exc:
        raise TransientError(f"Qdrant is overloaded: cannot {doing}", retry_after_s=float(exc.retry_after_s)) from exc
    except ResponseHandlingException as exc:
        raise _unanswered(exc, doing) from exc
    except UnexpectedResponse as exc:
        raise _refused(exc, doing) from exc
    except ValueError as exc:
        raise InvariantError(f"cannot {doing}: {exc}") from exc


def _unanswered(exc: ResponseHandlingException, doing: str) -> MillraceError:
    """Return the meaning of a call that got no usable answer."""
    if isinstance(exc.source, httpx.TimeoutException):
        return TransientError(f"Qdrant did not answer in time: cannot {doing}")
    if isinstance(exc.source, httpx.TransportError):
        return TransientError(f"Qdrant cannot be reached: cannot {doing}: {exc.source}")
    return InvariantError(f"Qdrant answered something unknown: cannot {doing}: {exc.source}")


def _refused(exc: UnexpectedResponse, doing: str) -> MillraceError:
    """Return the meaning of an answer that is an error."""
    message = f"Qdrant refused to {doing}: {exc.status_code} {reason_of(exc)}"
    if exc.status_code in {401, 403}:
        return UsageError(message, fix=_KEY_FIX)
    if exc.status_code in _TRY_LATER:
        return TransientError(message, retry_after_s=_retry_after_s(exc))
    return InvariantError(message)


def reason_of(exc: UnexpectedResponse) -> str:
    """Return the store's own sentence."""
    try:
        return str(orjson.loads(exc.content)["status"]["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return exc.content.decode(errors="replace")[:200] or exc.reason_phrase


def _retry_after_s(exc: UnexpectedResponse) -> float:
    """Return how long the store asks to be left alone."""
    given = exc.headers.get("Retry-After", "")
    return float(given) if given.isdecimal() else 1.0

"""Qdrant's client for the indexer and search: how it connects, what its errors mean, what is written in its form."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx
import numpy as np
import orjson
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from contracts.catalog import newer_only_filter, point_id
from contracts.errors import InvariantError, MillraceError, Overloaded, TransientError, UsageError
from indexer.points import ProductPoint
from service.settings import Settings
from towers.lexical import ProductWords, Sparse

WORDS: Final = ProductWords._fields
"""Names of the sparse vectors."""

_TIMEOUT_S: Final = 10
_TRY_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})
_SHEDS: Final = frozenset({429, 503})


def connect(settings: Settings, *, timeout_s: int = _TIMEOUT_S) -> QdrantClient:
    """Return a client of the configured vector store; nothing is asked of it yet.

    Raises:
        UsageError: no vector store is named.
    """
    return QdrantClient(**_options(settings, timeout_s))


def connect_async(settings: Settings, *, timeout_s: int, connections: int) -> AsyncQdrantClient:
    """Return an asyncio client that keeps its connections, as `connect` does not for a store on the same machine."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return AsyncQdrantClient(**_options(settings, timeout_s), limits=limits)


def _options(settings: Settings, timeout_s: int) -> dict[str, Any]:
    (url,) = settings.require("qdrant_url")
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    # As a header, because the argument warns on every plain-HTTP connection, loopback included.
    headers = {"api-key": key} if key else None
    return {"url": url, "headers": headers, "timeout": timeout_s, "check_compatibility": False}


@contextmanager
def qdrant_errors(doing: str) -> Iterator[None]:
    """Translate what qdrant-client raises.

    Args:
        doing: what was tried, for the message, e.g. ``write to products-r0``.

    Raises:
        Overloaded: the store sheds load: 429 or 503.
        TransientError: timeout, no connection, a failing server.
        UsageError: the key is missing or wrong.
        InvariantError: the store refused what should be right: wrong dimension, missing collection.
    """
    try:
        yield
    except ResourceExhaustedResponse as error:
        message = f"Qdrant is overloaded: cannot {doing}"
        raise Overloaded(message, retry_after_s=float(error.retry_after_s)) from error
    except ResponseHandlingException as error:
        raise _unanswered(error, doing) from error
    except UnexpectedResponse as error:
        raise _refused(error, doing) from error
    except ValueError as error:
        raise InvariantError(f"cannot {doing}: {error}") from error


def _unanswered(error: ResponseHandlingException, doing: str) -> MillraceError:
    if isinstance(error.source, httpx.TimeoutException):
        return TransientError(f"Qdrant did not answer in time: cannot {doing}")
    if isinstance(error.source, httpx.TransportError):
        return TransientError(f"Qdrant cannot be reached: cannot {doing}: {error.source}")
    return InvariantError(f"Qdrant answered something unknown: cannot {doing}: {error.source}")


def _refused(error: UnexpectedResponse, doing: str) -> MillraceError:
    message = f"Qdrant refused to {doing}: {error.status_code} {reason_of(error)}"
    if error.status_code in {401, 403}:
        return UsageError(message, fix="set MILLRACE_QDRANT_API_KEY to the key of the vector store")
    if error.status_code in _TRY_LATER:
        given = error.headers.get("Retry-After", "")
        kind = Overloaded if error.status_code in _SHEDS else TransientError
        return kind(message, retry_after_s=float(given) if given.isdecimal() else 1.0)
    return InvariantError(message)


def reason_of(error: UnexpectedResponse) -> str:
    """Return the store's own sentence."""
    try:
        return str(orjson.loads(error.content)["status"]["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return error.content.decode(errors="replace")[:200] or error.reason_phrase


def to_sparse(vector: Sparse) -> models.SparseVector:
    """A sparse vector as the client takes it."""
    return models.SparseVector.model_construct(indices=vector.indices.tolist(), values=vector.values.tolist())


def words_of(record: models.Record) -> ProductWords | None:
    """The sparse vectors that a record holds; None if it lacks one."""
    found = record.vector if isinstance(record.vector, dict) else {}
    sparse = [one for name in WORDS if isinstance(one := found.get(name), models.SparseVector)]
    if len(sparse) < len(WORDS):
        return None
    return ProductWords(*(Sparse(np.array(one.indices, np.uint32), np.array(one.values, np.float32)) for one in sparse))


def write_condition(points: Sequence[ProductPoint], *, again: Collection[str] = ()) -> models.Filter:
    """Return the newer-only condition of one request: one for all if they share a version, else one for each."""
    rules = {(point.point_version, point.product_id in again) for point in points}
    if len(rules) == 1:
        version, is_again = rules.pop()
        return models.Filter.model_validate(newer_only_filter(version, again=is_again))
    return models.Filter(should=[_only_newer(point, again=point.product_id in again) for point in points])


def _only_newer(point: ProductPoint, *, again: bool) -> models.Filter:
    rule = models.Filter.model_validate(newer_only_filter(point.point_version, again=again))
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id(point.product_id)])], must_not=rule.must_not)

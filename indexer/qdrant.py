"""Qdrant's client for the indexer and search: how it connects, what its errors mean, what is written in its form."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, cast

import httpx
import numpy as np
import orjson
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from typing_extensions import override

from contracts.catalog import newer_only_filter, point_id
from contracts.errors import InvariantError, MillraceError, Overloaded, TransientError, UsageError
from indexer.filters import KEYS_VERSION
from indexer.points import ProductPoint
from service.settings import Settings
from towers.lexical import LEXICAL_VERSION, ProductWords, Sparse

WORDS: Final = ProductWords._fields
"""Names of the sparse vectors."""

VECTOR_NAME: Final = "product"
ORDERING: Final = ("product_id", "version", "product_release", "deleted")

LEXICAL: Final = "lexical_version"
"""The entry that tells how the sparse vectors were made: others do not meet the queries of today."""

FILTERED: Final = "keys_version"
"""The entry that tells how the keys were made that filters ask for."""

_TIMEOUT_S: Final = 10
_TRY_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})
_SHEDS: Final = frozenset({429, 503})
LOADED: Final = "try again; if it lasts, look at the vector store's log and load"


class Form(NamedTuple):
    """How a collection holds products, and what its maker wanted remembered."""

    width: int | None
    distance: models.Distance | None
    metadata: Mapping[str, Any]
    sparse: frozenset[str] = frozenset(WORDS)

    def misfit(self, base_version: str, width: int) -> str | None:
        """Say why vectors of a base, and of this width with their quality, do not belong there; None if they do."""
        made_by = self.metadata.get("base_version", base_version)
        if made_by != base_version:
            return f"holds vectors of {made_by}, not of {base_version}"
        if (self.width, self.distance) != (width, models.Distance.DOT):
            held = f"{self.distance.value} of width {self.width}" if self.distance else f"no vectors `{VECTOR_NAME}`"
            return f"holds {held}, not Dot of width {width}"
        if missing := sorted(set(WORDS) - self.sparse):
            return f"holds no sparse vectors {', '.join(f'`{name}`' for name in missing)} with idf"
        if (lexical := self.metadata.get(LEXICAL, LEXICAL_VERSION)) != LEXICAL_VERSION:
            return f"holds words as of version {lexical}, not {LEXICAL_VERSION}"
        if (keys := self.metadata.get(FILTERED, 0)) != KEYS_VERSION:
            return f"holds keys for filters as of version {keys}, not {KEYS_VERSION}"
        return None


def connect(settings: Settings, *, timeout_s: int = _TIMEOUT_S) -> QdrantClient:
    """Return a client of the configured vector store; nothing is asked of it yet.

    Raises:
        UsageError: no vector store is named.
    """
    return QdrantClient(**_options(settings, timeout_s))


class _ClientOfPlainQueries(AsyncQdrantClient):
    """Sends queries as they are: the original copies each one deeply, to look for texts that it is to embed."""

    @override
    async def query_batch_points(
        self,
        collection_name: str,
        requests: Sequence[models.QueryRequest],
        consistency: Any = None,
        timeout: Any = None,
        **kwargs: Any,
    ) -> list[models.QueryResponse]:
        """Ask several queries at once."""
        batch = models.QueryRequestBatch(searches=list(requests))
        answer = await self.http.search_api.query_batch_points(
            collection_name, consistency=consistency, timeout=timeout, query_request_batch=batch, **kwargs
        )
        if answer.result is None:
            raise ValueError("the answer holds no result")
        return answer.result


def connect_async(settings: Settings, *, timeout_s: int, connections: int) -> AsyncQdrantClient:
    """Return an asyncio client that keeps its connections, as `connect` does not for a store on the same machine."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return _ClientOfPlainQueries(**_options(settings, timeout_s), limits=limits)


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
        raise Overloaded(message, fix=LOADED, retry_after_s=float(error.retry_after_s)) from error
    except ResponseHandlingException as error:
        raise _unanswered(error, doing) from error
    except UnexpectedResponse as error:
        raise _refused(error, doing) from error
    except ValueError as error:
        raise InvariantError(f"cannot {doing}: {error}") from error


def _unanswered(error: ResponseHandlingException, doing: str) -> MillraceError:
    if isinstance(error.source, httpx.TimeoutException):
        return TransientError(f"Qdrant did not answer in time: cannot {doing}", fix=LOADED)
    if isinstance(error.source, httpx.TransportError):
        fix = "start it (`millrace up` does), or correct MILLRACE_QDRANT_URL"
        return TransientError(f"Qdrant cannot be reached: cannot {doing}: {error.source}", fix=fix)
    return InvariantError(f"Qdrant answered something unknown: cannot {doing}: {error.source}")


def _refused(error: UnexpectedResponse, doing: str) -> MillraceError:
    message = f"Qdrant refused to {doing}: {error.status_code} {reason_of(error)}"
    if error.status_code in {401, 403}:
        return UsageError(message, fix="set MILLRACE_QDRANT_API_KEY to the key of the vector store")
    if error.status_code in _TRY_LATER:
        given = error.headers.get("Retry-After", "")
        kind = Overloaded if error.status_code in _SHEDS else TransientError
        return kind(message, fix=LOADED, retry_after_s=float(given) if given.isdecimal() else 1.0)
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


def to_struct(point: ProductPoint) -> models.PointStruct:
    """A point as the client takes it."""
    vector: dict[str, Any] = {} if point.vector is None else {VECTOR_NAME: list(point.vector)}
    if point.words is not None and vector:
        vector |= {name: to_sparse(one) for name, one in zip(WORDS, point.words, strict=True)}
    return models.PointStruct(id=point_id(point.product_id), vector=vector, payload=point.stored_payload())


def to_point(record: models.Record) -> ProductPoint:
    """A point as the client gives it."""
    payload = dict(record.payload or {})
    vector = record.vector.get(VECTOR_NAME) if isinstance(record.vector, dict) else None
    return ProductPoint(
        product_id=payload["product_id"],
        version=payload["version"],
        product_release=payload["product_release"],
        vector=cast("list[float] | None", vector),
        payload={name: value for name, value in payload.items() if name not in ORDERING},
        words=words_of(record),
    )


def write_condition(points: Sequence[ProductPoint], *, again: Collection[str] = ()) -> models.Filter:
    """Return the newer-only condition of one request: one for all if they share a version, else one for each."""
    rules = {(point.point_version, point.product_id in again) for point in points}
    if len(rules) == 1:
        version, is_again = rules.pop()
        return models.Filter.model_validate(newer_only_filter(version, again=is_again))
    return models.Filter(should=[_only_newer(point, again=point.product_id in again) for point in points])


def tombstones_of(points: Sequence[ProductPoint]) -> models.Filter:
    """Return the filter of what is stored of deletions, each under its own version."""
    is_deleted = models.FieldCondition(key="deleted", match=models.MatchValue(value=1))
    its_version = [
        models.FieldCondition(key="version", match=models.MatchValue(value=point.version)) for point in points
    ]
    ids = [models.HasIdCondition(has_id=[point_id(point.product_id)]) for point in points]
    return models.Filter(
        must=[is_deleted],
        should=[models.Filter(must=[one, version]) for one, version in zip(ids, its_version, strict=True)],
    )


def _only_newer(point: ProductPoint, *, again: bool) -> models.Filter:
    rule = models.Filter.model_validate(newer_only_filter(point.point_version, again=again))
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id(point.product_id)])], must_not=rule.must_not)

"""REST reads -> Edge requests.

Limits are cut to what the collection holds (`Scope.ceiling`), so that an absurd limit asks for everything instead of
for memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import qdrant_edge as edge

from deploy.qdrant_edge.errors import BadRequest, NotSupported, Unprocessable
from deploy.qdrant_edge.fields import (
    Json,
    PointId,
    as_flag,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    as_texts,
    dense_vector,
    known_only,
    point_id,
    unsupported,
    within_depth,
)
from deploy.qdrant_edge.translate_filters import to_filter
from deploy.qdrant_edge.translate_formulas import to_formula

_PREFETCH: Final = frozenset(
    {"prefetch", "query", "using", "filter", "params", "score_threshold", "limit", "lookup_from"}
)
QUERY_FIELDS: Final = _PREFETCH | {"offset", "with_vector", "with_payload", "shard_key"}
"""What a query request may hold."""
GROUP_REQUEST: Final = (QUERY_FIELDS - {"offset"}) | {"group_by", "group_size", "with_lookup"}
"""What a group request may hold."""
_SCROLL: Final = frozenset({"offset", "limit", "filter", "with_payload", "with_vector", "order_by", "shard_key"})
_ELSEWHERE: Final = {"shard_key": "shard keys", "lookup_from": "lookup in another collection"}
DEFAULT_LIMIT: Final = 10
_CANDIDATES: Final = 100
_MOST_CANDIDATES: Final = 16_384
_RRF_K: Final = 2

Payloads = bool | list[str] | edge.PayloadSelector
Vectors = bool | list[str]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a query must know of its collection.

    Args:
        sizes: dimension per vector name.
        ceiling: number of points, the most that any limit can yield.
        vector_of: (point id, vector name) -> the stored vector, for queries by example.
    """

    sizes: Mapping[str, int]
    ceiling: int
    vector_of: Callable[[PointId, str], list[float]]

    def limit(self, value: Json, where: str = "limit", *, default: int = DEFAULT_LIMIT) -> int:
        """Return a limit of at least 1, cut to the collection's size."""
        return min(as_integer(default if value is None else value, where, least=1), max(self.ceiling, 1))


def to_query(value: Json, scope: Scope) -> edge.QueryRequest:
    """Return the request of `POST /points/query`.

    Raises:
        BadRequest: wrong type, unknown field, vector that does not fit.
        NotSupported: what Edge or this service lacks, by name.
    """
    body = as_object(value, "query request")
    known_only(body, QUERY_FIELDS, "query request")
    within_depth(body, "query")
    unsupported(body, _ELSEWHERE)
    return edge.QueryRequest(
        offset=min(as_integer(body.get("offset") or 0, "offset"), scope.ceiling),
        with_vector=with_vectors(body.get("with_vector")),
        with_payload=with_payload(body.get("with_payload"), default=False),
        **_stage(body, scope),
    )


def _prefetch(value: Json, scope: Scope) -> edge.Prefetch:
    body = as_object(value, "prefetch")
    known_only(body, _PREFETCH, "prefetch")
    unsupported(body, _ELSEWHERE)
    return edge.Prefetch(**_stage(body, scope))


def _stage(body: dict[str, Any], scope: Scope) -> dict[str, Any]:
    """Return the arguments that a query and a prefetch share."""
    nested = body.get("prefetch")
    query, example = _scoring(body, scope)
    threshold = _threshold(body)
    return {
        "limit": scope.limit(body.get("limit")),
        "query": query,
        "prefetches": [_prefetch(entry, scope) for entry in (nested if type(nested) is list else [nested])]
        if nested
        else None,
        "filter": _without(to_filter(body.get("filter")), example),
        "score_threshold": threshold,
        "params": _params(body.get("params")),
    }


def _threshold(body: dict[str, Any]) -> float | None:
    """Return the least score, which only something that scores can have."""
    threshold, query = body.get("score_threshold"), body.get("query")
    if threshold is None:
        return None
    if query is None or (type(query) is dict and query.get("order_by") is not None):
        raise BadRequest("Bad request: score_threshold needs a query that gives scores")
    return as_number(threshold, "score_threshold")


def _without(given: edge.Filter | None, example: PointId | None) -> edge.Filter | None:
    """Return the filter that also keeps a query's own example out of its results, as Qdrant does."""
    if example is None:
        return given
    return edge.Filter(must=[given] if given else None, must_not=[edge.HasIdCondition({example})])


def _scoring(body: dict[str, Any], scope: Scope) -> tuple[Any, PointId | None]:
    """Return Edge's scoring query and the id of the example point, where the query is one."""
    value = body.get("query")
    using = as_text(body.get("using") or "", "using")
    if value is None:
        return None, None
    if type(value) is dict:
        for kind, build in _SCORINGS.items():
            if value.get(kind) is not None:
                return build(value, using, scope)
        if value.keys() & {"recommend", "discover", "context", "relevance_feedback"}:
            raise NotSupported(f"`{next(iter(value))}` queries")
    vector, example = _vector_or_example(value, using, scope)
    return edge.Query.Nearest(vector, using=using or None), example


def _vector_or_example(value: Json, using: str, scope: Scope) -> tuple[list[float], PointId | None]:
    if type(value) is int or type(value) is str:
        example = point_id(value)
        return scope.vector_of(example, using), example
    return dense_vector(value, using, scope.sizes), None


def _nearest(value: dict[str, Any], using: str, scope: Scope) -> tuple[Any, PointId | None]:
    known_only(value, frozenset({"nearest", "mmr"}), "query")
    vector, example = _vector_or_example(value["nearest"], using, scope)
    if value.get("mmr") is None:
        return edge.Query.Nearest(vector, using=using or None), example
    mmr = as_object(value["mmr"], "mmr")
    known_only(mmr, frozenset({"diversity", "candidates_limit"}), "mmr")
    diversity = as_number(0.5 if mmr.get("diversity") is None else mmr["diversity"], "mmr.diversity")
    if not 0.0 <= diversity <= 1.0:
        raise Unprocessable("Validation error in JSON body: mmr.diversity must be between 0 and 1")
    candidates = as_integer(
        _CANDIDATES if mmr.get("candidates_limit") is None else mmr["candidates_limit"],
        "mmr.candidates_limit",
        most=_MOST_CANDIDATES,
    )
    # Edge's lambda weighs relevance, Qdrant's diversity the opposite.
    return edge.Mmr(vector, 1.0 - diversity, candidates, using=using or None), example


def _fusion(value: dict[str, Any], using: str, scope: Scope) -> tuple[Any, PointId | None]:
    del scope
    _no_vector_name(using)
    known_only(value, frozenset({"fusion"}), "query")
    if value["fusion"] not in ("rrf", "dbsf"):
        raise BadRequest("Format error in JSON body: fusion must be rrf or dbsf")
    return (edge.Fusion.Rrf(_RRF_K) if value["fusion"] == "rrf" else edge.Fusion.Dbsf()), None


def _rrf(value: dict[str, Any], using: str, scope: Scope) -> tuple[Any, PointId | None]:
    del scope
    _no_vector_name(using)
    known_only(value, frozenset({"rrf"}), "query")
    fields = as_object(value["rrf"], "rrf")
    known_only(fields, frozenset({"k", "weights"}), "rrf")
    weights = fields.get("weights")
    return edge.Fusion.Rrf(
        as_integer(_RRF_K if fields.get("k") is None else fields["k"], "rrf.k", least=1),
        None if weights is None else [as_number(entry, "rrf.weights") for entry in as_list(weights, "rrf.weights")],
    ), None


def _no_vector_name(using: str) -> None:
    if using:
        raise BadRequest("Bad request: Fusion queries cannot be combined with the `using` field")


def _sample(value: dict[str, Any], using: str, scope: Scope) -> tuple[Any, PointId | None]:
    del using, scope
    known_only(value, frozenset({"sample"}), "query")
    if value["sample"] != "random":
        raise BadRequest("Format error in JSON body: sample must be random")
    return edge.Sample.Random, None


_SCORINGS: Final[dict[str, Callable[[dict[str, Any], str, Scope], tuple[Any, PointId | None]]]] = {
    "nearest": _nearest,
    "fusion": _fusion,
    "rrf": _rrf,
    "sample": _sample,
    "order_by": lambda value, using, scope: (order_by(value["order_by"]), None),
    "formula": lambda value, using, scope: (to_formula(value), None),
}


def order_by(value: Json) -> edge.OrderBy:
    """Return an order by payload field; the field needs an index over which ranges work."""
    fields = {"key": value} if type(value) is str else as_object(value, "order_by")
    known_only(fields, frozenset({"key", "direction", "start_from"}), "order_by")
    direction = fields.get("direction") or "asc"
    if direction not in ("asc", "desc"):
        raise BadRequest("Format error in JSON body: order_by.direction must be asc or desc")
    start = fields.get("start_from")
    if start is not None and type(start) is not str:
        as_number(start, "order_by.start_from")
    chosen = edge.Direction.Asc if direction == "asc" else edge.Direction.Desc
    return edge.OrderBy(as_text(fields.get("key"), "order_by.key"), chosen, start)


def to_scroll(value: Json, scope: Scope) -> edge.ScrollRequest:
    """Return the request of `POST /points/scroll`."""
    body = as_object(value, "scroll request")
    known_only(body, _SCROLL, "scroll request")
    unsupported(body, _ELSEWHERE)
    offset, order = body.get("offset"), body.get("order_by")
    return edge.ScrollRequest(
        offset=None if offset is None else point_id(offset),
        limit=scope.limit(body.get("limit")),
        filter=to_filter(body.get("filter")),
        with_payload=with_payload(body.get("with_payload"), default=True),
        with_vector=with_vectors(body.get("with_vector")),
        order_by=None if order is None else order_by(order),
    )


def with_payload(value: Json, *, default: bool) -> Payloads:
    """Return which payload fields are wanted: all, none, these, or all but these."""
    if value is None:
        return default
    if type(value) is list:
        return as_texts(value, "with_payload")
    if type(value) is dict:
        known_only(value, frozenset({"include", "exclude"}), "with_payload")
        if value.get("include") is not None:
            return edge.PayloadSelector.Include(as_texts(value["include"], "with_payload.include"))
        return edge.PayloadSelector.Exclude(as_texts(value.get("exclude"), "with_payload.exclude"))
    return as_flag(value, "with_payload")


def with_vectors(value: Json) -> Vectors:
    """Return which vectors are wanted: all, none, or these names."""
    if value is None:
        return False
    return as_texts(value, "with_vector") if type(value) is list else as_flag(value, "with_vector")


def _params(value: Json) -> edge.SearchParams | None:
    if value is None:
        return None
    fields = as_object(value, "params")
    known_only(fields, frozenset({"hnsw_ef", "exact", "quantization", "indexed_only", "acorn", "idf"}), "params")
    unsupported(fields, {"idf": "idf parameters"})
    ef = fields.get("hnsw_ef")
    return edge.SearchParams(
        hnsw_ef=None if ef is None else min(as_integer(ef, "params.hnsw_ef", least=1), _MOST_CANDIDATES),
        exact=as_flag(fields.get("exact") or False, "params.exact"),
        indexed_only=as_flag(fields.get("indexed_only") or False, "params.indexed_only"),
    )

"""Reads of a request -> requests of Edge.

Limits are cut to what the collection holds (`Scope.ceiling`), so that an absurd limit asks for everything instead of
for memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, get_args
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from deploy.qdrant_edge.requests import (
    MOST_INTEGER,
    ApiError,
    PointId,
    Sizes,
    in_range,
    not_supported,
    point_id,
    to_vector,
)

DEFAULT_LIMIT: Final = 10
_CANDIDATES: Final = 100
_MOST_CANDIDATES: Final = 16_384
_RRF_K: Final = 2

Vector = list[float] | edge.SparseVector
Payloads = bool | list[str] | edge.PayloadSelector


@dataclass(frozen=True, slots=True)
class Scope:
    """What a query must know of its collection.

    `ceiling` is the number of points, the most that any limit can yield; `vector_of` (point id, vector name) gives a
    stored vector, for queries by example.
    """

    sizes: Sizes
    ceiling: int
    vector_of: Callable[[PointId, str], Vector]

    def limit(self, value: int | None, where: str = "limit", *, default: int = DEFAULT_LIMIT) -> int:
        """Return a limit of at least 1, cut to the collection's size."""
        return min(in_range(default if value is None else value, where), max(self.ceiling, 1))


def to_query(given: models.QueryRequest, scope: Scope) -> edge.QueryRequest:
    """Return the request of `POST /points/query`."""
    return edge.QueryRequest(
        offset=min(in_range(given.offset or 0, "offset", least=0), scope.ceiling),
        with_vector=given.with_vector or False,
        with_payload=payloads(given.with_payload, default=False),
        **_stage(given, scope),
    )


Find = Callable[[Sequence[edge.QueryRequest]], list[list[edge.ScoredPoint]]]
"""Answers queries, each with its points."""


def rescored(given: Sequence[models.QueryRequest], scope: Scope, find: Find) -> list[edge.QueryRequest] | None:
    """Where each request scores what the same prefetches find, find that once; None where one does anything else.

    Edge searches the prefetches of every request of a batch again. A nearest query with prefetches is one among the ids
    that they find, so the answers are the same, and each score is exact.
    """
    leaves = given[0].prefetch if given else None
    if not isinstance(leaves, list) or not leaves or any(leaf.prefetch for leaf in leaves):
        return None
    if not all(request.prefetch == leaves and _is_vector(request.query) for request in given):
        return None
    found = find([edge.QueryRequest(**_stage(leaf, scope)) for leaf in leaves])
    among = models.HasIdCondition.model_construct(has_id=list({point.id for points in found for point in points}))

    def alone(request: models.QueryRequest) -> models.QueryRequest:
        meets: list[models.Condition] = [among] if request.filter is None else [among, request.filter]
        exact = (request.params or models.SearchParams()).model_copy(update={"exact": True})
        chosen = models.Filter.model_construct(must=meets)
        return request.model_copy(update={"prefetch": None, "filter": chosen, "params": exact})

    return [to_query(alone(request), scope) for request in given]


def _is_vector(query: Any) -> bool:
    nearest = query.nearest if isinstance(query, models.NearestQuery) and query.mmr is None else query
    return isinstance(nearest, list | models.SparseVector)


def _stage(given: models.QueryRequest | models.Prefetch, scope: Scope) -> dict[str, Any]:
    query, example = _scoring(given, scope)
    if given.score_threshold is not None and (query is None or isinstance(query, edge.OrderBy)):
        raise ApiError(400, "Bad request: score_threshold needs a query that gives scores")
    chosen = to_filter(given.filter)
    if example is not None:  # as in Qdrant, an example is none of its own results
        chosen = edge.Filter(must=[chosen] if chosen else None, must_not=[edge.HasIdCondition({example})])
    before = given.prefetch if isinstance(given.prefetch, list) else [given.prefetch] if given.prefetch else []
    return {
        "limit": scope.limit(given.limit),
        "query": query,
        "prefetches": [edge.Prefetch(**_stage(entry, scope)) for entry in before] or None,
        "filter": chosen,
        "score_threshold": given.score_threshold,
        "params": _params(given.params),
    }


def _scoring(given: models.QueryRequest | models.Prefetch, scope: Scope) -> tuple[Any, PointId | None]:
    """Return Edge's scoring query, and the id of the example point if the query is one."""
    using, query = given.using or "", given.query
    match query:
        case None:
            return None, None
        case models.FusionQuery() | models.RrfQuery():
            return _fusion(query, using), None
        case models.OrderByQuery(order_by=order):
            return order_by(order), None
        case models.FormulaQuery():
            return edge.Formula(_expression(query.formula), query.defaults or {}), None
        case models.SampleQuery():
            return edge.Sample.Random, None
    nearest, mmr = (query.nearest, query.mmr) if isinstance(query, models.NearestQuery) else (query, None)
    example = point_id(nearest) if isinstance(nearest, int | str | UUID) else None
    vector = _vector(nearest, using, scope) if example is None else scope.vector_of(example, using)
    if mmr is None:
        return edge.Query.Nearest(vector, using=using or None), example
    return _mmr(mmr, vector, using), example


def _fusion(given: models.FusionQuery | models.RrfQuery, using: str) -> Any:
    if using:
        raise ApiError(400, "Bad request: Fusion queries cannot be combined with the `using` field")
    if isinstance(given, models.RrfQuery):
        k = _RRF_K if given.rrf.k is None else given.rrf.k
        return edge.Fusion.Rrf(in_range(k, "rrf.k"), given.rrf.weights)
    return edge.Fusion.Dbsf() if given.fusion is models.Fusion.DBSF else edge.Fusion.Rrf(_RRF_K)


def _vector(given: Any, using: str, scope: Scope) -> Vector:
    if isinstance(given, list):
        return to_vector(given, using, scope.sizes)
    if isinstance(given, models.SparseVector):
        return to_vector(vars(given), using, scope.sizes)
    if isinstance(given, models.Document | models.Image | models.InferenceObject):
        raise not_supported("inference: send vectors")
    raise not_supported(f"`{next(iter(given))[0]}` queries")


def _mmr(given: models.Mmr, vector: Vector, using: str) -> edge.Mmr:
    diversity = 0.5 if given.diversity is None else given.diversity
    if not 0.0 <= diversity <= 1.0:
        raise ApiError(422, "Validation error in JSON body: mmr.diversity must be between 0 and 1")
    candidates = _CANDIDATES if given.candidates_limit is None else given.candidates_limit
    candidates = in_range(candidates, "mmr.candidates_limit", least=0, most=_MOST_CANDIDATES)
    # Edge's lambda weighs relevance, Qdrant's diversity the opposite.
    return edge.Mmr(vector, 1.0 - diversity, candidates, using=using or None)


def order_by(given: str | models.OrderBy) -> edge.OrderBy:
    """Return an order by payload field; the field needs an index over which ranges work."""
    order = models.OrderBy(key=given) if isinstance(given, str) else given
    start = order.start_from.isoformat() if isinstance(order.start_from, date) else order.start_from
    descending = order.direction is models.Direction.DESC
    return edge.OrderBy(order.key, edge.Direction.Desc if descending else edge.Direction.Asc, start)


def to_scroll(given: models.ScrollRequest, scope: Scope) -> edge.ScrollRequest:
    """Return the request of `POST /points/scroll`."""
    return edge.ScrollRequest(
        offset=None if given.offset is None else point_id(given.offset),
        limit=scope.limit(given.limit),
        filter=to_filter(given.filter),
        with_payload=payloads(given.with_payload, default=True),
        with_vector=given.with_vector or False,
        order_by=None if given.order_by is None else order_by(given.order_by),
    )


def payloads(given: models.WithPayloadInterface | None, *, default: bool) -> Payloads:
    """Return which payload fields are wanted: all, none, these, or all but these."""
    if isinstance(given, models.PayloadSelectorInclude):
        return edge.PayloadSelector.Include(given.include)
    if isinstance(given, models.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(given.exclude)
    return default if given is None else given


def _params(given: models.SearchParams | None) -> edge.SearchParams | None:
    if given is None:
        return None
    if given.idf is not None:
        raise not_supported("idf parameters")
    ef = None if given.hnsw_ef is None else min(in_range(given.hnsw_ef, "params.hnsw_ef"), _MOST_CANDIDATES)
    return edge.SearchParams(hnsw_ef=ef, exact=given.exact or False, indexed_only=given.indexed_only or False)


Condition = Any
"""Any of Edge's condition classes."""

_DECAYS: Final = {"exp_decay": edge.DecayKind.Exp, "gauss_decay": edge.DecayKind.Gauss, "lin_decay": edge.DecayKind.Lin}


def to_filter(given: models.Filter | None) -> edge.Filter | None:
    """Return a request's filter; the engine gets no condition that says nothing, or that it cannot judge."""
    return None if given is None else _filter(given)


def _filter(given: models.Filter) -> edge.Filter:
    at_least = None
    if given.min_should is not None:
        conditions = [to_condition(entry) for entry in given.min_should.conditions]
        at_least = edge.MinShould(conditions, in_range(given.min_should.min_count, "min_should.min_count"))
    return edge.Filter(
        must=_conditions(given.must),
        should=_conditions(given.should),
        must_not=_conditions(given.must_not),
        min_should=at_least,
    )


def _conditions(given: Sequence[models.Condition] | models.Condition | None) -> list[Condition] | None:
    if given is None:
        return None
    return [to_condition(entry) for entry in (given if isinstance(given, Sequence) else [given])]


def to_condition(given: models.Condition) -> Condition:
    """Return one condition: of a field, of ids, of vectors, nested, or a whole filter."""
    match given:
        case models.FieldCondition():
            return _field_condition(given)
        case models.HasIdCondition(has_id=ids):
            return edge.HasIdCondition({point_id(entry) for entry in ids})
        case models.HasVectorCondition(has_vector=name):
            return edge.HasVectorCondition(name)
        case models.IsEmptyCondition(is_empty=field):
            return edge.IsEmptyCondition(field.key)
        case models.IsNullCondition(is_null=field):
            return edge.IsNullCondition(field.key)
        case models.NestedCondition(nested=nested):
            return edge.NestedCondition(nested.key, _filter(nested.filter))
        case models.Filter():
            return _filter(given)
    raise not_supported("conditions on slices")


def _field_condition(given: models.FieldCondition) -> edge.FieldCondition:
    judged = {name: value for name, value in vars(given).items() if name != "key" and value is not None}
    if not judged:
        raise ApiError(422, f"Validation error in JSON body: the condition on `{given.key}` says nothing")
    if geo := next((name for name in judged if name.startswith("geo")), None):
        raise not_supported(f"geographic conditions ({geo})")
    if given.match is not None:
        judged["match"] = _match(given.match)
    if given.range is not None:
        build = edge.RangeFloat if isinstance(given.range, models.Range) else edge.RangeDateTime
        judged["range"] = build(**vars(given.range))
    if given.values_count is not None:
        bounds = {name: in_range(bound, name, least=0) for name, bound in given.values_count if bound is not None}
        judged["values_count"] = edge.ValuesCount(**bounds)
    return edge.FieldCondition(given.key, **judged)


def _match(given: models.Match) -> Any:
    ((kind, value),) = vars(given).items()
    if kind not in _MATCHES:
        raise not_supported(f"match by `{kind}`")
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, int) and entry > MOST_INTEGER:
            raise ApiError(400, f"Format error in JSON body: match: {entry} is more than {MOST_INTEGER}")
    return _MATCHES[kind](value)


_MATCHES: Final[dict[str, Callable[[Any], Any]]] = {
    # Edge's binding tries integer before bool, so Python's True becomes 1 and matches nothing; numpy's is no integer.
    "value": lambda value: edge.MatchValue(np.bool_(value) if isinstance(value, bool) else value),  # type: ignore[arg-type]
    "any": edge.MatchAny,
    "except_": edge.MatchExcept,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
}


def _expression(given: Any) -> edge.Expression:
    if isinstance(given, float | int):
        return edge.Expression.Constant(float(given))
    if isinstance(given, str):
        return edge.Expression.Variable(given)
    if isinstance(given, get_args(models.Condition)):
        return edge.Expression.Condition(to_condition(given))
    kind, argument = next(iter(given))
    if kind in _DECAYS:
        target = None if argument.target is None else _expression(argument.target)
        return edge.Expression.Decay(
            _DECAYS[kind], _expression(argument.x), target=target, midpoint=argument.midpoint, scale=argument.scale
        )
    if kind not in _EXPRESSIONS:
        raise not_supported("geographic distance in formulas")
    return _EXPRESSIONS[kind](argument)


def _of_one(build: Callable[[edge.Expression], edge.Expression]) -> Callable[[Any], edge.Expression]:
    return lambda given: build(_expression(given))


def _of_many(build: Callable[[list[edge.Expression]], edge.Expression]) -> Callable[[Any], edge.Expression]:
    return lambda given: build([_expression(entry) for entry in given])


_OF_ONE: Final = ("neg", "abs", "sqrt", "exp", "log10", "ln", "acosh")
_EXPRESSIONS: Final[dict[str, Callable[[Any], edge.Expression]]] = {
    **{name: _of_many(getattr(edge.Expression, name.capitalize())) for name in ("sum", "mult", "max", "min")},
    **{name: _of_one(getattr(edge.Expression, name.capitalize())) for name in _OF_ONE},
    "div": lambda given: edge.Expression.Div(_expression(given.left), _expression(given.right), given.by_zero_default),
    "pow": lambda given: edge.Expression.Pow(_expression(given.base), _expression(given.exponent)),
    "datetime": edge.Expression.Datetime,
    "datetime_key": edge.Expression.DatetimeKey,
}

"""Filters and formulas of a request -> those of Edge."""

from collections.abc import Callable, Sequence
from typing import Any, Final, get_args

import numpy as np
import qdrant_edge as edge
from qdrant_client import models

from deploy.qdrant_edge.errors import ApiError, not_supported
from deploy.qdrant_edge.requests import MOST_INTEGER, in_range, point_id

Condition = Any
"""Any of Edge's condition classes."""

_DECAYS: Final = {"exp_decay": edge.DecayKind.Exp, "gauss_decay": edge.DecayKind.Gauss, "lin_decay": edge.DecayKind.Lin}


def to_filter(given: models.Filter | None) -> edge.Filter | None:
    """Return a request's filter; the engine gets no condition that says nothing, or that it cannot judge."""
    return None if given is None else _filter(given)


def _filter(given: models.Filter) -> edge.Filter:
    at_least = given.min_should
    return edge.Filter(
        must=_conditions(given.must),
        should=_conditions(given.should),
        must_not=_conditions(given.must_not),
        min_should=None if at_least is None else _min_should(at_least),
    )


def _min_should(given: models.MinShould) -> edge.MinShould:
    conditions = [to_condition(entry) for entry in given.conditions]
    return edge.MinShould(conditions, in_range(given.min_count, "min_should.min_count"))


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


def to_formula(given: models.FormulaQuery) -> edge.Formula:
    """Return the formula of a query, with the values of fields that a point lacks."""
    return edge.Formula(_expression(given.formula), given.defaults or {})


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


_EXPRESSIONS: Final[dict[str, Callable[[Any], edge.Expression]]] = {
    "sum": _of_many(edge.Expression.Sum),
    "mult": _of_many(edge.Expression.Mult),
    "max": _of_many(edge.Expression.Max),
    "min": _of_many(edge.Expression.Min),
    "neg": _of_one(edge.Expression.Neg),
    "abs": _of_one(edge.Expression.Abs),
    "sqrt": _of_one(edge.Expression.Sqrt),
    "exp": _of_one(edge.Expression.Exp),
    "log10": _of_one(edge.Expression.Log10),
    "ln": _of_one(edge.Expression.Ln),
    "acosh": _of_one(edge.Expression.Acosh),
    "div": lambda given: edge.Expression.Div(_expression(given.left), _expression(given.right), given.by_zero_default),
    "pow": lambda given: edge.Expression.Pow(_expression(given.base), _expression(given.exponent)),
    "datetime": edge.Expression.Datetime,
    "datetime_key": edge.Expression.DatetimeKey,
}

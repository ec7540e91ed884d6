"""REST formulas -> Edge expressions (score boosting)."""

from collections.abc import Callable
from typing import Final

import qdrant_edge as edge

from deploy.qdrant_edge.errors import BadRequest, NotSupported
from deploy.qdrant_edge.fields import Json, as_list, as_number, as_object, as_text, known_only, within_depth
from deploy.qdrant_edge.translate_filters import to_condition

_DECAYS: Final = {"exp_decay": edge.DecayKind.Exp, "gauss_decay": edge.DecayKind.Gauss, "lin_decay": edge.DecayKind.Lin}
_DECAY_FIELDS: Final = frozenset({"x", "target", "scale", "midpoint"})
_CONDITIONS: Final = frozenset(
    {"key", "must", "should", "must_not", "min_should", "has_id", "has_vector", "is_empty", "is_null", "nested"}
)


def to_formula(value: Json) -> edge.Formula:
    """Return the formula of `{"formula": ..., "defaults": {...}}`.

    Raises:
        BadRequest: unknown expression or wrong argument.
        NotSupported: geographic distance.
    """
    fields = as_object(value, "query")
    known_only(fields, frozenset({"formula", "defaults"}), "formula query")
    within_depth(fields, "formula")
    return edge.Formula(_expression(fields.get("formula")), as_object(fields.get("defaults") or {}, "defaults"))


def _expression(value: Json) -> edge.Expression:
    if type(value) is str:
        return edge.Expression.Variable(value)
    if type(value) in (int, float):
        return edge.Expression.Constant(as_number(value, "formula"))
    fields = as_object(value, "formula expression")
    if _CONDITIONS & fields.keys():
        return edge.Expression.Condition(to_condition(fields))
    if len(fields) != 1:
        raise BadRequest("Format error in JSON body: a formula expression is an object with one key")
    ((kind, argument),) = fields.items()
    if kind in _DECAYS:
        return _decay(_DECAYS[kind], argument)
    if kind == "geo_distance":
        raise NotSupported("geographic distance in formulas")
    if kind not in _EXPRESSIONS:
        raise BadRequest(f"Format error in JSON body: unknown formula expression `{kind}`")
    return _EXPRESSIONS[kind](argument)


def _decay(kind: edge.DecayKind, value: Json) -> edge.Expression:
    fields = as_object(value, "decay")
    known_only(fields, _DECAY_FIELDS, "decay")
    target = fields.get("target")
    scale, midpoint = (
        None if fields.get(name) is None else as_number(fields[name], name) for name in ("scale", "midpoint")
    )
    return edge.Expression.Decay(
        kind,
        _expression(fields.get("x")),
        target=None if target is None else _expression(target),
        midpoint=midpoint,
        scale=scale,
    )


def _div(value: Json) -> edge.Expression:
    fields = as_object(value, "div")
    known_only(fields, frozenset({"left", "right", "by_zero_default"}), "div")
    default = fields.get("by_zero_default")
    return edge.Expression.Div(
        _expression(fields.get("left")),
        _expression(fields.get("right")),
        None if default is None else as_number(default, "by_zero_default"),
    )


def _pow(value: Json) -> edge.Expression:
    fields = as_object(value, "pow")
    known_only(fields, frozenset({"base", "exponent"}), "pow")
    return edge.Expression.Pow(_expression(fields.get("base")), _expression(fields.get("exponent")))


def _expressions(value: Json) -> list[edge.Expression]:
    return [_expression(entry) for entry in as_list(value, "formula arguments")]


_EXPRESSIONS: Final[dict[str, Callable[[Json], edge.Expression]]] = {
    "sum": lambda value: edge.Expression.Sum(_expressions(value)),
    "mult": lambda value: edge.Expression.Mult(_expressions(value)),
    "max": lambda value: edge.Expression.Max(_expressions(value)),
    "min": lambda value: edge.Expression.Min(_expressions(value)),
    "neg": lambda value: edge.Expression.Neg(_expression(value)),
    "abs": lambda value: edge.Expression.Abs(_expression(value)),
    "sqrt": lambda value: edge.Expression.Sqrt(_expression(value)),
    "exp": lambda value: edge.Expression.Exp(_expression(value)),
    "log10": lambda value: edge.Expression.Log10(_expression(value)),
    "ln": lambda value: edge.Expression.Ln(_expression(value)),
    "acosh": lambda value: edge.Expression.Acosh(_expression(value)),
    "div": _div,
    "pow": _pow,
    "datetime": lambda value: edge.Expression.Datetime(as_text(value, "datetime")),
    "datetime_key": lambda value: edge.Expression.DatetimeKey(as_text(value, "datetime_key")),
}

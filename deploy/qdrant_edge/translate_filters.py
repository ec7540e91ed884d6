"""REST filters -> Edge filters."""

from typing import Any, Final

import numpy as np
import qdrant_edge as edge

from deploy.qdrant_edge.errors import BadRequest, NotSupported, Unprocessable
from deploy.qdrant_edge.fields import (
    Json,
    as_flag,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    known_only,
    point_id,
    within_depth,
)

_CLAUSES: Final = frozenset({"must", "should", "must_not", "min_should"})
_FIELD: Final = frozenset(
    {"key", "match", "range", "values_count", "is_empty", "is_null", "geo_bounding_box", "geo_radius", "geo_polygon"}
)
_BOUNDS: Final = frozenset({"gte", "gt", "lte", "lt"})
_TEXT_MATCHES: Final[dict[str, Any]] = {
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
}

Condition = Any
"""Any of Edge's condition classes."""


def to_filter(value: Json) -> edge.Filter | None:
    """Return the filter of a request, None where there is none.

    Raises:
        BadRequest: unknown clause or condition, wrong type, nested too deeply.
        NotSupported: geographic conditions.
    """
    if value is None:
        return None
    within_depth(value, "filter")
    return _filter(value)


def to_condition(value: Json) -> Condition:
    """Return one condition: of a field, of ids, of vectors, nested, or a whole filter."""
    fields = as_object(value, "condition")
    if "key" in fields and "filter" not in fields:
        return _field_condition(fields)
    for name, build in _OTHER_CONDITIONS.items():
        if fields.get(name) is not None:
            known_only(fields, frozenset({name}), "condition")
            return build(fields[name])
    return _filter(fields)


def _filter(value: Json) -> edge.Filter:
    fields = as_object(value, "filter")
    known_only(fields, _CLAUSES, "filter")
    at_least = fields.get("min_should")
    return edge.Filter(
        must=_conditions(fields.get("must")),
        should=_conditions(fields.get("should")),
        must_not=_conditions(fields.get("must_not")),
        min_should=None if at_least is None else _min_should(at_least),
    )


def _conditions(value: Json) -> list[Condition] | None:
    if value is None:
        return None
    return [to_condition(entry) for entry in (value if type(value) is list else [value])]


def _min_should(value: Json) -> edge.MinShould:
    fields = as_object(value, "min_should")
    known_only(fields, frozenset({"conditions", "min_count"}), "min_should")
    conditions = [to_condition(entry) for entry in as_list(fields.get("conditions"), "min_should.conditions")]
    return edge.MinShould(conditions, as_integer(fields.get("min_count"), "min_should.min_count", least=1))


def _field_condition(fields: dict[str, Any]) -> edge.FieldCondition:
    known_only(fields, _FIELD, "condition")
    judged = {name: value for name, value in fields.items() if name != "key" and value is not None}
    if not judged:
        raise Unprocessable(f"Validation error in JSON body: the condition on `{fields['key']}` says nothing")
    if geo := next((name for name in judged if name.startswith("geo")), None):
        raise NotSupported(f"geographic conditions ({geo})")
    builders = {"match": _match, "range": _range, "values_count": _values_count}
    arguments: dict[str, Any] = {
        name: builders[name](value) if name in builders else as_flag(value, name) for name, value in judged.items()
    }
    return edge.FieldCondition(as_text(fields["key"], "key"), **arguments)


def _match(value: Json) -> Any:
    fields = as_object(value, "match")
    given = [(name, entry) for name, entry in fields.items() if entry is not None]
    if len(given) != 1:
        raise BadRequest("Format error in JSON body: match must have exactly one of value, any, except, text")
    name, entry = given[0]
    if name == "value":
        return _match_value(entry)
    if name in {"any", "except"}:
        return (edge.MatchAny if name == "any" else edge.MatchExcept)(_keywords(entry))
    if name in _TEXT_MATCHES:
        return _TEXT_MATCHES[name](as_text(entry, f"match.{name}"))
    raise BadRequest(f"Format error in JSON body: unknown match `{name}`")


def _match_value(value: Json) -> edge.MatchValue:
    """Return an exact match.

    Edge's binding tries integer before bool, so Python's True becomes 1 and matches nothing; numpy's bool is not an
    integer to it and arrives as what it is.
    """
    if type(value) is bool:
        return edge.MatchValue(np.bool_(value))  # type: ignore[arg-type]  # the stub lists Python's bool only
    if type(value) is int:
        return edge.MatchValue(as_integer(value, "match.value", least=-(2**63)))
    if type(value) is str:
        return edge.MatchValue(value)
    raise BadRequest("Format error in JSON body: match.value must be a string, an integer or a bool")


def _keywords(value: Json) -> list[Any]:
    entries = as_list(value, "match")
    kinds = {type(entry) for entry in entries}
    if kinds not in (set(), {str}, {int}):
        raise BadRequest("Format error in JSON body: match any / except takes strings or integers, not both")
    return [as_integer(entry, "match", least=-(2**63)) for entry in entries] if kinds == {int} else entries


def _range(value: Json) -> Any:
    fields = as_object(value, "range")
    known_only(fields, _BOUNDS, "range")
    bounds = {name: bound for name, bound in fields.items() if bound is not None}
    if any(type(bound) is str for bound in bounds.values()):
        return edge.RangeDateTime(**{name: as_text(bound, f"range.{name}") for name, bound in bounds.items()})
    return edge.RangeFloat(**{name: as_number(bound, f"range.{name}") for name, bound in bounds.items()})


def _values_count(value: Json) -> edge.ValuesCount:
    fields = as_object(value, "values_count")
    known_only(fields, _BOUNDS, "values_count")
    bounds = {name: as_integer(bound, name) for name, bound in fields.items() if bound is not None}
    return edge.ValuesCount(**bounds)


def _key_of(value: Json, where: str) -> str:
    fields = as_object(value, where)
    known_only(fields, frozenset({"key"}), where)
    return as_text(fields.get("key"), f"{where}.key")


def _nested(value: Json) -> edge.NestedCondition:
    fields = as_object(value, "nested")
    known_only(fields, frozenset({"key", "filter"}), "nested")
    return edge.NestedCondition(as_text(fields.get("key"), "nested.key"), _filter(fields.get("filter")))


def _has_id(value: Json) -> edge.HasIdCondition:
    return edge.HasIdCondition({point_id(entry) for entry in as_list(value, "has_id")})


_OTHER_CONDITIONS: Final[dict[str, Any]] = {
    "has_id": _has_id,
    "has_vector": lambda value: edge.HasVectorCondition(as_text(value, "has_vector")),
    "is_empty": lambda value: edge.IsEmptyCondition(_key_of(value, "is_empty")),
    "is_null": lambda value: edge.IsNullCondition(_key_of(value, "is_null")),
    "nested": _nested,
}

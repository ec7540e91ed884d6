"""Requests, read by `qdrant_client`'s own models, and the values that no model can judge.

The models are as strict as a server and refuse a field that they do not have. They do not see vectors, which would
cost more than the rest together, nor judge ranges and nesting: Edge ends badly there. A payload nested deeper than its
log can read back makes the shard unreadable, a deeply nested filter overflows the stack.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson
import qdrant_edge as edge
from pydantic import BaseModel, ValidationError
from qdrant_client import models

from service.http import RETRY_AFTER_S, Refused

Json = Any
"""A value as orjson parsed it."""

PointId = int | UUID | str
"""An unsigned 64-bit integer or a UUID, as Edge takes and gives it."""

Sizes = Mapping[str, int]
"""Dimension per vector name, `SPARSE` of a sparse one; the unnamed vector's name is empty."""

SPARSE: Final = 0

MAX_DEPTH: Final = 35
"""Deepest nesting of a request: a payload of 32 levels in its point; Edge's log fails to read back beyond about 120."""

MAX_FLOAT32: Final = 3.4028234663852886e38
_MAX_POINT_ID: Final = 2**64 - 1
_MAX_INDEX: Final = 2**32 - 1
MOST_INTEGER: Final = 2**63 - 1
_MOST_FAULTS: Final = 10_000
_ELSEWHERE: Final = {
    "shard_key": "shard keys",
    "lookup_from": "lookup in another collection",
    "with_lookup": "lookup in another collection",
}
_CLAUSES: Final = ("must", "should", "must_not")
_MISFIT: Final = {"missing": 0, "extra_forbidden": 1}
"""Faults that a member of a union has where the request means another member; the least likely first."""

M = TypeVar("M", bound=BaseModel)


class _Times(BaseModel, extra="forbid"):
    """Bounds of a range of times as they came: Edge reads forms that pydantic does not, and refuses bare numbers."""

    lt: str | None = None
    gt: str | None = None
    gte: str | None = None
    lte: str | None = None


class _FieldCondition(models.FieldCondition):
    range: models.Range | _Times | None = None  # type: ignore[assignment]  # see _Times


_CONDITIONS: Final[dict[str, type[BaseModel]]] = {
    "key": _FieldCondition,
    "has_id": models.HasIdCondition,
    "has_vector": models.HasVectorCondition,
    "is_empty": models.IsEmptyCondition,
    "is_null": models.IsNullCondition,
    "slice": models.SliceCondition,
}


def parse(model: type[M], body: Json) -> M:
    """Read a request as the model that the client made it from; vectors of points were taken out before."""
    within_depth(body)
    return _parse(model, body)


def _parse(model: type[M], body: Json) -> M:
    fields = as_object(body, "the request")
    filters = {name: fields[name] for name in ("filter", "update_filter") if fields.get(name) is not None}
    prefetch = fields.get("prefetch")
    inner: dict[str, Any] = {name: {} for name in filters} | ({"prefetch": []} if prefetch else {})
    request = _validate(model, {**fields, **inner} if inner else fields)
    for name, feature in _ELSEWHERE.items():
        if getattr(request, name, None) is not None:
            raise not_supported(feature)
    for name, value in filters.items():
        setattr(request, name, _filter(value))
    if prefetch and hasattr(request, "prefetch"):
        entries = prefetch if type(prefetch) is list else [prefetch]
        request.prefetch = [_parse(models.Prefetch, entry) for entry in entries]
    return request


def _filter(value: Json) -> models.Filter:
    """Return a filter, each condition read by the model that its own key names.

    Of a union pydantic tries each of the eight members, at every level, and reports the failures of all: a condition
    for each of 256 points would take longer to read than to apply.
    """
    fields = as_object(value, "filter")
    rest = {name: entry for name, entry in fields.items() if name not in _CLAUSES}
    at_least = as_object(rest["min_should"], "min_should") if rest.get("min_should") is not None else {}
    if at_least:
        rest["min_should"] = {**at_least, "conditions": []}
    result = _validate(models.Filter, rest) if rest else models.Filter()
    for name in _CLAUSES:
        if (clause := fields.get(name)) is not None:
            setattr(result, name, [_condition(entry) for entry in (clause if type(clause) is list else [clause])])
    if result.min_should is not None:
        conditions = as_list(at_least.get("conditions"), "min_should.conditions")
        result.min_should.conditions = [_condition(entry) for entry in conditions]
    return result


def _condition(value: Json) -> Any:
    fields = as_object(value, "condition")
    for key, model in _CONDITIONS.items():
        if key in fields:
            return _validate(model, fields)
    if "nested" not in fields:
        return _filter(fields)
    nested = as_object(fields["nested"], "nested")
    result = _validate(models.NestedCondition, {**fields, "nested": {**nested, "filter": {}}})
    result.nested.filter = _filter(nested.get("filter"))
    return result


def _validate(model: type[M], body: Json) -> M:
    try:
        # From JSON, because only there is strict validation as strict as JSON is: enums and times are strings.
        return model.model_validate_json(orjson.dumps(body), strict=True)
    except ValidationError as error:
        raise ApiError(400, f"Format error in JSON body: {_fault(error, model, body)}") from error


def _fault(error: ValidationError, model: type[BaseModel], body: Json) -> str:
    """Return the fault where pydantic got furthest: of a union it reports the failure of every member."""
    if error.error_count() > _MOST_FAULTS:
        return f"{error.error_count()} faults"
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    places = [(*_place(fault["loc"], body, fault["type"] == "missing"), fault) for fault in faults]
    path, value, fault = max(places, key=lambda place: (len(place[0]), _MISFIT.get(place[2]["type"], 2)))
    return f"{'.'.join(path) or model.__name__}: {fault['msg']}, got {value!r:.80}"


def _place(loc: tuple[int | str, ...], body: Json, is_missing: bool) -> tuple[list[str], Json]:
    """Return where in a body a fault is, and what is there; names of union members in between are left out."""
    path = []
    for part in loc:
        inside = part in body if type(body) is dict else type(body) is list and type(part) is int and part < len(body)
        if inside:
            path.append(str(part))
            body = body[part]
    return [*path, str(loc[-1])] if is_missing else path, body


def as_object(value: Json, where: str) -> dict[str, Any]:
    """Give the value if it is a JSON object."""
    if type(value) is not dict:
        raise ApiError(400, f"Format error in JSON body: {where} must be an object, got {value!r:.80}")
    return value


def as_list(value: Json, where: str) -> list[Any]:
    """Give the value if it is a JSON array."""
    if type(value) is not list:
        raise ApiError(400, f"Format error in JSON body: {where} must be a list, got {value!r:.80}")
    return value


def in_range(value: int, where: str, *, least: int = 1, most: int = MOST_INTEGER) -> int:
    """Return an integer in its range; what is no unsigned integer of Qdrant's at all is another refusal."""
    if not 0 <= value <= MOST_INTEGER:
        raise ApiError(400, f"Format error in JSON body: {where} must be an integer from 0 to {MOST_INTEGER}")
    if not least <= value <= most:
        raise ApiError(422, f"Validation error in JSON body: {where} must be between {least} and {most}, got {value}")
    return value


def point_id(value: PointId) -> PointId:
    """Return a point id, or refuse it as Qdrant does."""
    if isinstance(value, UUID) or (isinstance(value, int) and 0 <= value <= _MAX_POINT_ID):
        return value
    raise ApiError(
        400,
        f"Format error in JSON body: value {value!r:.80} is not a valid point ID, "
        "valid values are either an unsigned integer or a UUID",
    )


def json_id(value: PointId) -> int | str:
    """Return a stored point's id as JSON has it."""
    return value if isinstance(value, int) else str(value)


def within_depth(value: Json, *, left: int = MAX_DEPTH) -> None:
    """Refuse a value that is nested too deeply to be written and read back safely."""
    if left == 0:
        raise ApiError(400, f"Validation error in JSON body: it is nested deeper than {MAX_DEPTH} levels")
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return
    for entry in value:
        if type(entry) is dict or type(entry) is list:
            within_depth(entry, left=left - 1)


def to_vectors(value: Json, sizes: Sizes) -> Any:
    """Return the vectors of a point: by name, or the bare list of the unnamed one."""
    if type(value) is dict and not _is_other_vector(value):
        return {name: to_vector(vector, name, sizes) for name, vector in value.items()}
    return to_vector(value, "", sizes)


def to_vector(value: Json, name: str, sizes: Sizes) -> list[float] | edge.SparseVector:
    """Check a vector: right form and dimension, all numbers, and finite as float32, which Edge itself does not ask."""
    is_sparse = type(value) is dict and "indices" in value
    if type(value) is dict and not is_sparse and _is_other_vector(value):
        raise not_supported("inference: send vectors")
    if type(value) is not list and not is_sparse:
        raise ApiError(400, "Format error in JSON body: a vector must be a list of numbers, or indices with values")
    if value and not is_sparse and type(value[0]) is list:
        raise not_supported("multivectors")
    size = sizes.get(name)
    if size is None:
        raise ApiError(400, f"Wrong input: Not existing vector name error: {name}")
    if is_sparse != (size == SPARSE):
        raise ApiError(400, "Wrong input: Conversion between sparse and regular vectors failed")
    if is_sparse:
        return _sparse_vector(value)
    if len(value) != size:
        raise ApiError(400, f"Wrong input: Vector dimension error: expected dim: {size}, got {len(value)}")
    return _finite(value)


def _sparse_vector(value: Json) -> edge.SparseVector:
    if value.keys() != {"indices", "values"}:
        raise ApiError(400, "Format error in JSON body: a sparse vector has `indices` and `values`, and nothing else")
    indices, values = as_list(value["indices"], "indices"), _finite(as_list(value["values"], "values"))
    if indices and not (set(map(type, indices)) == {int} and min(indices) >= 0 and max(indices) <= _MAX_INDEX):
        raise ApiError(400, f"Format error in JSON body: indices must be integers from 0 to {_MAX_INDEX}")
    if len(indices) != len(values):
        raise ApiError(422, "Validation error in JSON body: values must be the same length as indices")
    if len(set(indices)) != len(indices):
        raise ApiError(422, "Validation error in JSON body: indices must be unique")
    return edge.SparseVector(indices, values)


def _finite(value: list[Any]) -> list[float]:
    try:
        length = math.hypot(*value)  # one C call judges type and finiteness of every value
    except TypeError as error:
        raise ApiError(400, "Format error in JSON body: vector values must be numbers") from error
    if not length <= MAX_FLOAT32:
        raise ApiError(400, "Wrong input: vector values must be finite")
    return value


def _is_other_vector(value: dict[str, Json]) -> bool:
    return not value.keys().isdisjoint({"indices", "text", "image", "object", "model"})


class ApiError(Refused):
    """A refusal that is answered in Qdrant's error form; never ends the process.

    400 the request breaks the API: wrong type, unknown field, wrong dimension. 404 no such collection, alias or point.
    408 its own timeout was over before its turn came. 409 the name is taken. 422 a value of the right type is out of
    its range. 500 the engine failed, or its disk is full. 501 a Qdrant server does this. 503 too much waits already.
    """

    def __init__(self, status: int, message: str) -> None:
        again = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        super().__init__(status, HTTPStatus(status).name.lower(), message, headers=again)


def not_supported(feature: str) -> ApiError:
    """Return the refusal of what a Qdrant server has and the embedded one lacks."""
    has = f"the embedded Qdrant has no {feature}; a Qdrant server has (MILLRACE_QDRANT_URL)"
    return ApiError(501, f"Not supported: {has}")


@contextmanager
def edge_errors() -> Iterator[None]:
    """Turn what Edge raises into answers: its own refusals are the caller's fault, its panics are ours to report.

    Edge raises bare `Exception` for an operation that it refuses and ValueError for text that it cannot parse; a panic
    in it is a BaseException. Everything else is a fault of ours and passes through.
    """
    try:
        yield
    except ApiError:
        raise
    except BaseException as error:
        raise _meaning(error) from error


def _meaning(error: BaseException) -> BaseException:
    text = str(error)
    if "invalid JSON path" in text:
        return ApiError(400, "Format error in JSON body: a field is named by an invalid JSON path")
    if isinstance(error, ValueError):
        return ApiError(400, f"Format error in JSON body: {text}")
    if type(error).__name__ == "PanicException" or "Service runtime error" in text:
        return ApiError(500, f"Service internal error: {text}")
    if type(error) is not Exception:
        return error
    if text.startswith("No point with id"):
        return ApiError(404, f"Not found: {text} found")
    if text.startswith("Operation cancelled"):
        return ApiError(400, f"Wrong input: {text}; a formula over a field that some points lack needs `defaults`")
    return ApiError(400, f"Wrong input: {text}")

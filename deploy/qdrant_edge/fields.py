"""Typed reading of request bodies: every value is checked before it reaches the engine.

Edge is strict in ways that end badly: a payload nested deeper than its log can read back makes the shard unreadable,
a deeply nested filter overflows the stack. So depth and types are judged here, and an unknown field is refused by
name instead of being ignored.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from deploy.qdrant_edge.errors import BadRequest, NotSupported, Unprocessable

Json = Any
"""A value as orjson parsed it."""

PointId = int | str
"""An unsigned 64-bit integer or the text of a UUID."""

MAX_DEPTH: Final = 32
"""Deepest nesting of a payload, filter, prefetch or formula; Edge's log fails to read back beyond about 120."""

MAX_FLOAT32: Final = 3.4028234663852886e38
_MAX_POINT_ID: Final = 2**64 - 1
_MOST_INTEGER: Final = 2**63 - 1


def as_object(value: Json, where: str) -> dict[str, Any]:
    """Return the value if it is a JSON object."""
    if type(value) is not dict:
        raise BadRequest(f"Format error in JSON body: {where} must be an object")
    return value


def as_list(value: Json, where: str) -> list[Any]:
    """Return the value if it is a JSON array."""
    if type(value) is not list:
        raise BadRequest(f"Format error in JSON body: {where} must be a list")
    return value


def as_text(value: Json, where: str) -> str:
    """Return the value if it is a string."""
    if type(value) is not str:
        raise BadRequest(f"Format error in JSON body: {where} must be a string")
    return value


def as_flag(value: Json, where: str) -> bool:
    """Return the value if it is true or false."""
    if type(value) is not bool:
        raise BadRequest(f"Format error in JSON body: {where} must be true or false")
    return value


def as_integer(value: Json, where: str, *, least: int = 0, most: int = _MOST_INTEGER) -> int:
    """Return the value if it is an integer in range; what is no integer of Qdrant's kind at all is another refusal."""
    if type(value) is not int or not min(least, 0) <= value <= _MOST_INTEGER:
        raise BadRequest(
            f"Format error in JSON body: {where} must be an integer from {min(least, 0)} to {_MOST_INTEGER}"
        )
    if not least <= value <= most:
        raise Unprocessable(f"Validation error in JSON body: {where} must be between {least} and {most}, got {value}")
    return value


def as_number(value: Json, where: str) -> float:
    """Return the value as a float if it is a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise BadRequest(f"Format error in JSON body: {where} must be a finite number")
    return float(value)


def as_texts(value: Json, where: str) -> list[str]:
    """Return the value if it is a list of strings."""
    return [as_text(entry, f"{where}[]") for entry in as_list(value, where)]


def point_id(value: Json) -> PointId:
    """Return a point id, or refuse it as Qdrant does; that a string is a UUID is judged by Edge's own parser."""
    if type(value) is int and 0 <= value <= _MAX_POINT_ID:
        return value
    if type(value) is str and len(value) in (32, 36, 38, 45):
        return value
    raise invalid_point_id(value)


def invalid_point_id(value: Json) -> BadRequest:
    """Return the refusal of something that is no point id."""
    return BadRequest(
        f"Format error in JSON body: value {value!r:.80} is not a valid point ID, "
        "valid values are either an unsigned integer or a UUID"
    )


def known_only(fields: Mapping[str, Json], known: frozenset[str], where: str) -> None:
    """Refuse fields that this API does not have; null counts as absent.

    Raises:
        BadRequest: naming the first unknown field.
    """
    for name, value in fields.items():
        if name not in known and value is not None:
            raise BadRequest(f"Format error in JSON body: unknown field `{name}` in {where}")


def unsupported(fields: Mapping[str, Json], names: Mapping[str, str]) -> None:
    """Refuse fields that a Qdrant server has and the embedded one lacks.

    Args:
        fields: the object that may carry them.
        names: field -> what it is, in words.
    """
    for name, feature in names.items():
        if fields.get(name) not in (None, {}, []):
            raise NotSupported(feature)


def within_depth(value: Json, where: str, *, left: int = MAX_DEPTH) -> None:
    """Refuse a value that is nested too deeply to be written and read back safely."""
    if left == 0:
        raise BadRequest(f"Validation error in JSON body: {where} is nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is dict:
        for entry in value.values():
            if type(entry) is dict or type(entry) is list:
                within_depth(entry, where, left=left - 1)
    elif kind is list:
        for entry in value:
            if type(entry) is dict or type(entry) is list:
                within_depth(entry, where, left=left - 1)


def dense_vector(value: Json, name: str, sizes: Mapping[str, int]) -> list[float]:
    """Return a vector that fits its vector space: right dimension, all numbers, finite as float32.

    Args:
        value: from the request.
        name: vector name, empty for the unnamed vector.
        sizes: dimension per vector name.

    Raises:
        BadRequest: unknown name, wrong dimension, or a value that is not a finite number. Edge itself stores NaN.
    """
    if type(value) is not list:
        raise _not_dense(value)
    size = sizes.get(name)
    if size is None:
        raise BadRequest(f"Wrong input: Not existing vector name error: {name}")
    if len(value) != size:
        raise BadRequest(f"Wrong input: Vector dimension error: expected dim: {size}, got {len(value)}")
    if not _length(value) <= MAX_FLOAT32:
        raise BadRequest("Wrong input: vector values must be finite")
    return value


def _length(vector: list[Any]) -> float:
    """Return the Euclidean length; one C call judges type and finiteness of every value."""
    try:
        return math.hypot(*vector)
    except TypeError as exc:
        if vector and type(vector[0]) is list:
            raise NotSupported("multivectors") from exc
        raise BadRequest("Format error in JSON body: vector values must be numbers") from exc


def _not_dense(value: Json) -> Exception:
    """Return the refusal of a vector that is not a list of numbers."""
    if type(value) is dict and "indices" in value:
        return NotSupported("sparse vectors")
    if type(value) is dict and ({"text", "image", "object", "model"} & value.keys()):
        return NotSupported("inference: send vectors")
    return BadRequest("Format error in JSON body: a vector must be a list of numbers")

"""Bytes to message and back; the only JSON codec between services.

Every failure names a stable reason and the field, so that a dead letter or an HTTP answer can say what to correct.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from contracts.errors import ContractError, MalformedMessage, UnsupportedSchema

_TAGS: Final = {"impression", "view", "click", "dwell", "cart", "purchase", "tick", "product", "product_deleted"}
"""Union tags that pydantic puts before a field's path; no field has such a name."""

M = TypeVar("M")

_REASONS: Final[Mapping[str, str]] = {
    "json_invalid": "malformed_json",
    "missing": "missing",
    "union_tag_invalid": "unknown_type",
    "union_tag_not_found": "missing",
    "finite_number": "not_finite",
    "value_error": "inconsistent",
    "string_too_long": "too_long",
    "too_long": "too_long",
    "string_too_short": "too_short",
    "too_short": "too_short",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
}


def encode(message: BaseModel) -> bytes:
    """Return a message as JSON; fields that are None are left out, unknown fields are kept."""
    return orjson.dumps(message.model_dump(mode="json", exclude_none=True))


def decode(value: bytes, contract: TypeAdapter[M]) -> M:
    """Return the message in `value`.

    Raises:
        MalformedMessage: it is not JSON or breaks the contract.
        UnsupportedSchema: its `schema_version` is not known here.
    """
    return validate(parse(value), contract)


def parse(value: bytes) -> Any:
    """Return the JSON value in `value`.

    Raises:
        MalformedMessage: it is not JSON (RFC 8259: NaN and Infinity are not).
    """
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as exc:
        raise MalformedMessage("malformed_json", f"not JSON: {exc}") from exc


def validate(value: Any, contract: TypeAdapter[M]) -> M:
    """Return parsed JSON as a message.

    Raises:
        MalformedMessage: it breaks the contract.
        UnsupportedSchema: its `schema_version` is not known here.
    """
    try:
        return contract.validate_python(value)
    except ValidationError as exc:
        raise contract_error(exc) from exc


def contract_error(exc: ValidationError) -> ContractError:
    """Translate pydantic's first complaint into ours."""
    first = exc.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in first["loc"] if part not in _TAGS]
    field = ".".join(path) or None
    if path and path[-1] == "schema_version" and first["type"] != "missing":
        return UnsupportedSchema("unsupported_schema", "schema_version is not one this release knows", field=field)
    reason = _REASONS.get(first["type"], "wrong_type")
    return MalformedMessage(reason, f"{field or 'message'}: {first['msg'].removeprefix('Value error, ')}", field=field)

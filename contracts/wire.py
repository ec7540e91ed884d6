"""Bytes to message and back; the only JSON codec between services.

Every failure names a stable reason and the field, so that a dead letter or an HTTP answer can say what to correct.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from contracts.errors import ContractError, MalformedMessage, UnsupportedSchema

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TAGS: Final = {"impression", "view", "click", "dwell", "cart", "purchase", "tick", "product", "product_deleted"}
"""Union tags that pydantic puts before a field's path."""
_MEMBERS: Final = {"bool", "int", "float", "str", "constrained-str"}
"""What pydantic puts behind the path of a field that may hold several plain types, with one complaint for each."""
_TAG_PROBLEMS: Final = {"union_tag_invalid", "union_tag_not_found"}

M = TypeVar("M")

_REASONS: Final[Mapping[str, str]] = {
    "json_invalid": "malformed_json",
    "missing": "missing",
    "extra_forbidden": "unknown_field",
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


def contract_error(exc: ValidationError, *, tagged: bool = True) -> ContractError:
    """Translate pydantic's first complaint into ours.

    Args:
        exc: what pydantic found.
        tagged: the contract is a union, whose tag pydantic puts before a field's path.
    """
    problem = _most_telling(exc.errors(include_url=False, include_input=False))
    path = _path(problem, tagged=tagged)
    field = ".".join(path) or None
    if path and path[-1] == "schema_version" and problem["type"] != "missing":
        return UnsupportedSchema("unsupported_schema", "schema_version is not one this release knows", field=field)
    reason = _REASONS.get(problem["type"], "wrong_type")
    return MalformedMessage(
        reason, f"{field or 'message'}: {problem['msg'].removeprefix('Value error, ')}", field=field
    )


def _most_telling(problems: "list[ErrorDetails]") -> "ErrorDetails":
    """Return the first complaint; of those about the members of a union, the one whose type fitted."""
    first = problems[0]
    if first["loc"][-1:] and first["loc"][-1] in _MEMBERS:
        about = [problem for problem in problems if problem["loc"][:-1] == first["loc"][:-1]]
        return next((problem for problem in about if problem["type"] in _REASONS), first)
    return first


def _path(problem: "ErrorDetails", *, tagged: bool) -> list[str]:
    """Return where the complaint lies, in the sender's words."""
    path = [str(part) for part in problem["loc"]]
    if tagged and path and path[0] in _TAGS:
        del path[0]
    if len(path) > 1 and path[-1] in _MEMBERS:
        del path[-1]
    return [*path, "type"] if problem["type"] in _TAG_PROBLEMS else path

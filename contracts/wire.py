"""Bytes to message and back; the only JSON codec between services.

Every failure names a stable reason and the field, so that a dead letter or an HTTP answer can say what to correct.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from contracts.base import NO_NUL, YEAR_2000_MS, YEAR_2100_MS
from contracts.errors import ContractError, MalformedMessage, UnsupportedSchema
from contracts.topics import MOST_SENT_BYTES

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TAGS: Final = {"impression", "view", "click", "dwell", "cart", "purchase", "tick", "product", "product_deleted"}
"""Union tags that pydantic puts before a field's path."""
_MEMBERS: Final = {"bool", "int", "float", "str", "constrained-int", "constrained-str"}
"""What pydantic puts behind the path of a field that may hold several plain types, with one complaint for each."""
_KEY: Final = "[key]"
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
    "blank": "blank",
    "malformed_text": "malformed_text",
    "string_pattern_mismatch": "malformed_text",
    "string_unicode": "malformed_text",
}
_SENTENCES: Final[Mapping[str, str]] = {
    "extra_forbidden": "there is no such field",
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be an object"),
    "union_tag_not_found": "Field required",
    "string_pattern_mismatch": "holds NUL",
    "string_unicode": "holds bytes that are no UTF-8, or half of a surrogate pair",
    "finite_number": "is no finite number",
}
_EPOCH_UNITS: Final = {"seconds": 1e-3, "microseconds": 1e3, "nanoseconds": 1e6}
"""How epoch times are written elsewhere, and how many of each are a millisecond."""
_CUT_DEPTH: Final = 100
"""Where the lenient parser cuts: far below what any message holds, and well within what Python's parser takes."""
_MARK: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]+|[\]}]+', re.DOTALL)


class Boundless(float):
    """A number of JSON that is beyond the range of floats; nothing writes it, and no contract takes it."""

    __slots__ = ()


def encode(message: BaseModel) -> bytes:
    """Write a message as JSON; fields that are None are left out, unknown fields are kept."""
    return orjson.dumps(message.model_dump(mode="json", exclude_none=True))


def decode(value: bytes, contract: TypeAdapter[M]) -> M:
    """Decode a message; fails as `parse` and `validate` do."""
    return validate(parse(value), contract)


def within_bounds(value: bytes) -> bytes:
    """Give back what a shop sent as one record; one that is too large is a `MalformedMessage`, read by nobody.

    What is made of it would not fit its topic, and would end the process that writes it, at each start again.
    """
    if len(value) > MOST_SENT_BYTES:
        text = f"{len(value):,} bytes as a record, unpacked; {MOST_SENT_BYTES:,} are the most"
        raise MalformedMessage("too_large", text)
    return value


def parse(value: bytes) -> Any:
    """Parse JSON (RFC 8259: NaN and Infinity are not).

    What is none, is not Unicode or beyond the range of numbers, is a `MalformedMessage`.
    """
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _unwritable(parse_leniently(value)) or _not_json(error) from error


def parse_leniently(value: bytes) -> Any:
    """Parse JSON and keep what no message may hold, so that one of many items may be refused.

    Half a surrogate pair stands in texts as it came, and a byte that is no UTF-8 as one such half. A number that is too
    large is `Boundless`. What is nested without end ends in an empty list somewhere below 100 levels.
    """
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        text = value.decode("utf-8", "surrogateescape")
    try:
        try:
            return _loads(text)
        except RecursionError:
            content = None
            for piece in _pieces(text):
                content = _loads(piece)
            return content
    except ValueError as error:
        raise _not_json(error) from error


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number, parse_float=_number, parse_int=_whole_number)


def _pieces(text: str) -> Iterator[str]:
    """Cut JSON into pieces that are not nested deeply, the outermost last; `[]` stands for what is cut out of one."""
    depth, begin = 0, 0
    kept: list[str] = []
    around: list[list[str]] = []
    for mark in _MARK.finditer(text):
        start, end = mark.span()
        if text[start] in "[{":
            for cut in range(start + (-depth - 1) % _CUT_DEPTH, end, _CUT_DEPTH):
                around.append(kept)
                kept += [text[begin:cut], "[]"]
                kept, begin = [], cut
            depth += end - start
        elif text[start] in "]}":
            for cut in range(start + depth % _CUT_DEPTH, end, _CUT_DEPTH)[: len(around)]:
                yield "".join((*kept, text[begin : cut + 1]))
                kept, begin = around.pop(), cut + 1
            depth -= end - start
    if around:
        raise ValueError("a bracket is never closed")
    yield "".join((*kept, text[begin:]))


def dump(message: Mapping[str, Any]) -> bytes:
    """Write parsed JSON; what no reader could decode, text that is not Unicode above all, is a `MalformedMessage`."""
    try:
        return orjson.dumps(message)
    except orjson.JSONEncodeError as error:
        raise _unwritable(message) or error from error


def is_unicode(text: str) -> bool:
    """Whether a text is free of halves of surrogate pairs, and so can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unwritable(value: Any) -> MalformedMessage | None:
    """Name the first text that is not Unicode or number without bounds; without recursion, for it may be deep."""
    open_parts: list[tuple[str, Any]] = [("", value)]
    while open_parts:
        path, part = open_parts.pop()
        if isinstance(part, Boundless):
            message = f"{path or 'message'}: {_SENTENCES['finite_number']}"
            return MalformedMessage("not_finite", message, field=path or None)
        names = part if isinstance(part, dict) else [part] if isinstance(part, str) else ()
        if not all(map(is_unicode, names)):
            message = f"{path or 'message'}: {_SENTENCES['string_unicode']} or bytes that are not UTF-8"
            return MalformedMessage("malformed_text", message, field=path or None)
        inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        open_parts += reversed([(f"{path}.{name}" if path else str(name), child) for name, child in inner])
    return None


def _not_json(error: Exception) -> MalformedMessage:
    return MalformedMessage("malformed_json", f"not JSON: {error}")


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _number(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else Boundless(number)


def _whole_number(digits: str) -> float:
    """Return an integer; one that does not fit 64 bits as a float, so that both parsers say the same."""
    if len(digits) > len(str(-(2**63))):
        return _number(digits)
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else _number(digits)


def validate(value: Any, contract: TypeAdapter[M]) -> M:
    """Turn parsed JSON into a message; what breaks the contract is a `MalformedMessage` or `UnsupportedSchema`."""
    try:
        return contract.validate_python(value)
    except ValidationError as error:
        raise contract_error(error) from error


def contract_error(error: ValidationError, *, tagged: bool = True) -> ContractError:
    """Translate pydantic's first complaint into ours; `tagged` if a union's tag stands before a field's path."""
    problem = _most_telling(error.errors(include_url=False))
    kind, path = _kind(problem), _path(problem, tagged=tagged)
    field = ".".join(path) or None
    if path and path[-1] == "schema_version" and kind != "missing":
        return UnsupportedSchema("unsupported_schema", "schema_version is not one this release knows", field=field)
    said = _said(kind, problem)
    told = said if kind == "value_error" and field is None else f"{field or 'message'}: {said}"
    return MalformedMessage(_REASONS.get(kind, "wrong_type"), told, field=field)


def _said(kind: str, problem: "ErrorDetails") -> str:
    """Say what is wrong in words of JSON, not of Python."""
    context = problem.get("ctx", {})
    if kind == "union_tag_invalid":
        tag, tags = context["tag"], re.findall(r"'(.*?)'", context["expected_tags"])
        nearest = difflib.get_close_matches(tag.lower(), tags, n=1)
        return f"{tag!r} is none of {', '.join(tags)}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    if context.get("ge") == YEAR_2000_MS or context.get("le") == YEAR_2100_MS:
        given = float(problem["input"]) if isinstance(problem["input"], str) else problem["input"]
        units = (unit for unit, of in _EPOCH_UNITS.items() if YEAR_2000_MS * of <= given <= YEAR_2100_MS * of)
        unit = next(units, None)
        return "must be epoch milliseconds" + (f"; this looks like {unit}" if unit else ", from 2000 to 2100")
    if "max_length" in context:
        unit = "characters" if isinstance(problem["input"], str) else "entries"
        return f"may have {context['max_length']} {unit} at most"
    if kind == "string_pattern_mismatch" and context["pattern"] != NO_NUL:
        return f"must have the form {context['pattern']}"
    pydantics = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return _SENTENCES.get(kind, pydantics)


def _kind(problem: "ErrorDetails") -> str:
    """Return pydantic's word for what is wrong; a tag that is null is absent, as any field.

    A number without bounds is that before it is of another type.
    """
    if isinstance(problem["input"], Boundless):
        return "finite_number"
    without_tag = problem["type"] == "union_tag_invalid" and problem["input"]["type"] is None
    return "union_tag_not_found" if without_tag else problem["type"]


def _most_telling(problems: "list[ErrorDetails]") -> "ErrorDetails":
    """Return the first complaint; of those about the members of a union, the one whose type fitted."""
    first = problems[0]
    if first["loc"][-1:] and first["loc"][-1] in _MEMBERS:
        about = [problem for problem in problems if problem["loc"][:-1] == first["loc"][:-1]]
        return next((problem for problem in about if problem["type"] in _REASONS), first)
    return first


def _path(problem: "ErrorDetails", *, tagged: bool) -> list[str]:
    path = [str(part) for part in problem["loc"]]
    if tagged and path and path[0] in _TAGS:
        del path[0]
    if len(path) > 1 and (path[-1] in _MEMBERS or path[-1] == _KEY):
        del path[-1]
    return [*path, "type"] if problem["type"] in _TAG_PROBLEMS else path

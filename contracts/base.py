"""What every message has in common: immutable, strictly typed, bounded, open for unknown fields; null means absent."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal
from unicodedata import category

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from typing_extensions import override

SCHEMA_VERSION: Final = 1

YEAR_2000_MS: Final = 946_684_800_000
YEAR_2100_MS: Final = 4_102_444_800_000
MAX_ID_CHARS: Final = 256
MAX_LABEL_CHARS: Final = 256

NO_NUL: Final = r"^[^\u0000]*$"
"""NUL is refused, not stripped: it ends a text in every tool written in C, and two ids may differ by it alone."""
_CONTROLS: Final = r"\u0000-\u001f\u007f-\u009f"
_VISIBLE: Final = (
    rf"[^{_CONTROLS}\u0020\u00a0\u00ad\u0300-\u036f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f"
    r"\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0]"
)
"""About what `is_visible` takes as visible, as a pattern that Python's and JavaScript's engines read alike."""
_INVISIBLE_SYMBOLS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Unicode calls these fillers letters and a symbol, but they show nothing."""


def is_visible(text: str) -> bool:
    r"""Whether a reader sees anything: a letter, digit, mark of punctuation or symbol.

    >>> is_visible("-"), is_visible("सस्ता"), is_visible(" \t\u200b\ufeff\0"), is_visible("\u3164")
    (True, True, False, False)
    """
    return any(category(char)[0] in "LNPS" and char not in _INVISIBLE_SYMBOLS for char in text)


def checked_visible(text: str) -> str:
    """Refuse a text of which nothing visible remains."""
    if is_visible(text):
        return text
    raise PydanticCustomError("blank", "holds nothing visible")


def checked_id(text: str) -> str:
    """Refuse an id that is blank or holds control characters, NUL among them."""
    if text.isascii() and text.isprintable() and not text.isspace():
        return text
    if any(category(char) == "Cc" for char in text):
        raise PydanticCustomError("malformed_text", "holds a control character")
    return checked_visible(text)


Text = Annotated[str, Field(pattern=NO_NUL)]
VisibleText = Annotated[
    Text,
    Field(min_length=1, json_schema_extra={"pattern": rf"^[^\u0000]*{_VISIBLE}[^\u0000]*$"}),
    AfterValidator(checked_visible),
]
Id = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_ID_CHARS,
        json_schema_extra={"pattern": rf"^[^{_CONTROLS}]*{_VISIBLE}[^{_CONTROLS}]*$"},
    ),
    AfterValidator(checked_id),
]
ProductId = Id
Query = Annotated[Text, Field(max_length=1000)]
Label = Annotated[Text, Field(max_length=MAX_LABEL_CHARS)]
Time = Annotated[int, Field(ge=YEAR_2000_MS, le=YEAR_2100_MS, description="Epoch milliseconds, UTC.")]
Money = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""As JSON readers and the vector store hold it; Python's have no end, and one of 400 digits is no float."""
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
DurationMs = Annotated[int, Field(ge=0, le=86_400_000, description="Milliseconds, at most a day.")]
Position = Annotated[int, Field(ge=1, le=10_000, description="1-based, over the whole result list.")]
Release = Annotated[int, Field(ge=0, le=2**53 - 1)]


class NullIsAbsent(BaseModel):
    """A form in which a field that is null counts as left out: its default holds, or it is `missing`."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            return {name: inner for name, inner in value.items() if inner is not None}
        return value

    @classmethod
    @override
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say the same in JSON Schema: whatever may be left out may be null."""
        form = handler.resolve_ref_schema(handler(schema))
        needed = form.get("required", ())
        properties = form.get("properties", {})
        form["properties"] = {name: part if name in needed else _or_null(part) for name, part in properties.items()}
        return form


def _or_null(part: Mapping[str, Any]) -> dict[str, Any]:
    if {"type": "null"} in part.get("anyOf", ()):
        return dict(part)
    about = {name: part[name] for name in ("default", "description", "title") if name in part}
    value = {name: inner for name, inner in part.items() if name not in about}
    return {"anyOf": [*value.get("anyOf", [value]), {"type": "null"}], **about}


class Part(NullIsAbsent):
    """A piece of a message: immutable, strictly typed, unknown fields kept."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )


class Message(Part):
    """A whole message as it stands on a topic."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of the message's form; readers refuse versions they do not know."""


def gives_text(field: str) -> dict[str, Any]:
    """JSON Schema of an object in which a field stands with a text, for rules about several fields."""
    return {"required": [field], "properties": {field: {"type": "string"}}}

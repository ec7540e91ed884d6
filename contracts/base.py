"""What every message has in common: immutability, kept unknown fields, strict types, bounded values."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1

YEAR_2000_MS: Final = 946_684_800_000
YEAR_2100_MS: Final = 4_102_444_800_000

Time = Annotated[int, Field(ge=YEAR_2000_MS, le=YEAR_2100_MS, description="Epoch milliseconds, UTC.")]
Id = Annotated[str, Field(min_length=1, max_length=100)]
ProductId = Annotated[str, Field(min_length=1, max_length=256)]
Query = Annotated[str, Field(max_length=1000)]
Label = Annotated[str, Field(max_length=100)]
Money = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
DurationMs = Annotated[int, Field(ge=0, le=86_400_000, description="Milliseconds, at most a day.")]
Position = Annotated[int, Field(ge=1, le=10_000, description="1-based, over the whole result list.")]
Release = Annotated[int, Field(ge=0, le=2**53 - 1)]


class Part(BaseModel):
    """A piece of a message: immutable, strictly typed, unknown fields kept."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )


class Message(Part):
    """A whole message as it stands on a topic."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of the message's form; readers refuse versions they do not know."""


def gives_text(field: str) -> dict[str, Any]:
    """Return the JSON Schema of an object in which a field stands with a text, for rules about several fields."""
    return {"required": [field], "properties": {field: {"type": "string"}}}

"""Stored examples of every message: `tests/examples/v<schema version>/<message>/{valid,invalid}-<case>.json`.

A valid one is the message as it stands on its topic. An invalid one is wrapped: the `reason` and `field` that the
contract answers, and either the `message` or, where it is no JSON, its `text`; `only_the_model_knows` marks what JSON
Schema cannot say. Examples are never changed or removed: together they promise that old records stay readable.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import orjson

from contracts.base import Part
from contracts.messages import MESSAGE_BY_NAME, MessageSpec

FOLDER: Final = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True, slots=True)
class Example:
    """One stored example.

    Args:
        path: for the test's name.
        spec: the message it is one of.
        text: the bytes on the topic.
        reason: why the contract refuses it; None where it does not.
        field: what the contract blames.
        only_the_model_knows: JSON Schema accepts it nevertheless.
    """

    path: str
    spec: MessageSpec
    text: bytes
    reason: str | None = None
    field: str | None = None
    only_the_model_knows: bool = False

    @property
    def content(self) -> Any:
        """The message as Python values."""
        return orjson.loads(self.text)

    @property
    def is_json(self) -> bool:
        """Whether a JSON parser reads it."""
        try:
            return self.content is not None
        except orjson.JSONDecodeError:
            return False


def valid_examples() -> list[Example]:
    """Return every valid example of every version."""
    return [Example(_name(path), _spec(path), path.read_bytes()) for path in sorted(FOLDER.glob("v*/*/valid-*.json"))]


def invalid_examples() -> list[Example]:
    """Return every invalid example of every version."""
    return [_invalid(path) for path in sorted(FOLDER.glob("v*/*/invalid-*.json"))]


def _invalid(path: Path) -> Example:
    """Return one invalid example out of its wrapper."""
    wrapper = json.loads(path.read_text(encoding="utf-8"))
    text = wrapper["text"].encode() if "text" in wrapper else orjson.dumps(wrapper["message"])
    known = wrapper.get("only_the_model_knows", False)
    return Example(_name(path), _spec(path), text, wrapper["reason"], wrapper["field"], known)


def _name(path: Path) -> str:
    """Return an example's path inside the folder."""
    return str(path.relative_to(FOLDER).with_suffix(""))


def _spec(path: Path) -> MessageSpec:
    """Return the message that a folder belongs to."""
    return MESSAGE_BY_NAME[path.parent.name]


def part_of(annotation: Any) -> type[Part] | None:
    """Return the part of a message that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((part for inner in get_args(annotation) if (part := part_of(inner))), None)


def fields_of(
    model: type[Part], content: dict[str, Any], path: str = ""
) -> Iterator[tuple[dict[str, Any], str, bool, str]]:
    """Yield every field that a message has or may have: the object it stands in, its name, whether needed, its path."""
    for name, field in model.model_fields.items():
        yield content, name, field.is_required(), f"{path}{name}"
        part, value = part_of(field.annotation), content.get(name)
        if part and isinstance(value, dict) and "dict[" not in str(field.annotation):
            yield from fields_of(part, value, f"{path}{name}.")
        elif part and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from fields_of(part, inner, f"{path}{name}.{number}.")

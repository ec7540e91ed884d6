"""Makes the tables of the reference pages: `python -m tests.support.reference settings|topics|agents|NAME`.

The pages hold these very cells, and `tests/docs` compares them; whoever changes a contract prints its table anew and
writes the last column by hand.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from contracts.catalog import Product, ProductDeleted
from contracts.events import Cart, Click, Dwell, Envelope, Impression, Purchase, PurchaseItem, Slot, View, Viewed
from contracts.pairs import CuratedPair
from contracts.topics import DAY_MS, GROUP_PREFIX
from service.settings import settings_table
from streams import registry

MODELS: Final[dict[str, type[BaseModel]]] = {
    "Envelope": Envelope,
    "impression": Impression,
    "slot": Slot,
    "view": View,
    "viewed slot": Viewed,
    "click": Click,
    "dwell": Dwell,
    "cart": Cart,
    "purchase": Purchase,
    "line": PurchaseItem,
    "product": Product,
    "product_deleted": ProductDeleted,
    "curated pair": CuratedPair,
}
"""Heading in docs/events.md -> the contract whose fields are listed there."""


def settings_rows() -> list[tuple[str, ...]]:
    """Return variable, default, unit and meaning of every setting."""
    return [(f"`{name}`", f"`{default}`" if default else "", *rest) for name, default, *rest in settings_table()]


def topic_rows() -> list[tuple[str, ...]]:
    """Return name, key, clean-up, partitions and retention of every topic."""
    return [
        (
            f"`{spec.name}`",
            spec.key,
            spec.cleanup,
            "`MILLRACE_PARTITIONS`" if spec.keyed else "1",
            f"{spec.retention_ms // DAY_MS} days" if spec.cleanup == "delete" else "newest per key",
        )
        for spec in registry.all_topics()
    ]


def agent_rows() -> list[tuple[str, ...]]:
    """Return name, consumer group, topics read and written, and outcomes of every agent."""
    return [
        (
            f"`{spec.name}`",
            f"`{GROUP_PREFIX}{spec.name}`",
            f"`{spec.source}`",
            ", ".join(f"`{topic}`" for topic in spec.written_topics),
            ", ".join(f"`{outcome}`" for outcome in spec.outcomes),
        )
        for spec in registry.AGENTS
    ]


def field_rows(name: str) -> list[tuple[str, str, str]]:
    """Return field, form and whether it is needed, of a contract; the envelope's stand in its own table."""
    model = MODELS[name]
    schema = _schema(model)
    common = set() if model is Envelope else {*Envelope.model_fields, "schema_version"}
    if not issubclass(model, Envelope):
        common = {"schema_version"}
    needed = set(schema.get("required", ()))
    return [
        (f"`{field}`", form_of(part, schema.get("$defs", {})), "yes" if field in needed else "")
        for field, part in schema["properties"].items()
        if field not in common
    ]


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema with its own fields at the top."""
    (found, definitions) = models_json_schema([(model, "validation")])
    name = found[model, "validation"]["$ref"].rsplit("/", 1)[-1]
    everything: dict[str, dict[str, Any]] = definitions["$defs"]
    return {**everything[name], "$defs": everything}


def form_of(part: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a field's form in words.

    >>> form_of({"type": "string", "minLength": 1, "maxLength": 100}, {}), form_of({"const": "click"}, {})
    ('text, 1 to 100 characters', '`click`')
    """
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(form_of(one, definitions) for one in part["anyOf"] if one != {"type": "null"}))
    if "$ref" in part:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(part["$ref"].rsplit("/", 1)[-1])).lower()
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    words: dict[str, Any] = {
        "string": _text,
        "integer": _number,
        "number": _number,
        "array": lambda one: _list(one, definitions),
    }
    kind = part.get("type", "object")
    return str(words[kind](part)) if kind in words else {"boolean": "true or false"}.get(kind, "object")


def _text(part: Mapping[str, Any]) -> str:
    """Return the form of a text."""
    most = part.get("maxLength")
    return "text" if most is None else f"text, {'1 to ' if part.get('minLength') else 'up to '}{most} characters"


def _number(part: Mapping[str, Any]) -> str:
    """Return the form of a number, with its bounds where they say something."""
    if "Epoch milliseconds" in part.get("description", ""):
        return "epoch milliseconds"
    kind = "whole number" if part["type"] == "integer" else "number"
    least, most = part.get("minimum"), part.get("maximum")
    above = part.get("exclusiveMinimum")
    if above is not None:
        return f"{kind} above {above:g}, at most {most:g}"
    if least is None:
        return kind
    if most is None or most >= 2**53 - 1:
        return f"{kind}, at least {least:g}"
    return f"{kind}, {least:g} to {most:,g}" if most < 1e6 else f"{kind}, {least:g} to {most:g}"


def _list(part: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the form of a list."""
    inner = form_of(part["items"], definitions)
    bound = f" up to {part['maxItems']}" if "maxItems" in part else ""
    return f"list of{bound} ({inner})"


def lines(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield a table as Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(_escaped(cell) for cell in row)} |"


def _escaped(cell: str) -> str:
    """Return a cell whose bars do not end it."""
    return cell.replace("|", "\\|")


def main(name: str) -> None:
    """Print one table."""
    if name == "settings":
        table = lines(("variable", "default", "unit", "meaning"), settings_rows())
    elif name == "agents":
        table = lines(("agent", "group", "reads", "writes", "outcomes"), agent_rows())
    elif name == "topics":
        table = lines(("topic", "key", "clean-up", "partitions", "kept"), topic_rows())
    else:
        table = lines(("field", "form", "needed", "meaning"), [(*row, "") for row in field_rows(name)])
    sys.stdout.writelines(f"{line}\n" for line in table)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))

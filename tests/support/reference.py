"""Makes the tables of the reference pages: `python -m tests.support.reference settings|topics|agents|rights|NAME`.

The pages hold these very cells, and `tests/docs` compares them; whoever changes a contract prints its table anew and
writes the last column by hand.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from contracts.catalog import Product, ProductDeleted
from contracts.events import Cart, Click, Dwell, Envelope, Impression, Purchase, PurchaseItem, Slot, View, Viewed
from contracts.golden import GoldenQuery, Judgment
from contracts.pairs import CuratedPair
from contracts.telemetry import Process
from contracts.topics import DAY_MS, GROUP_PREFIX
from millrace.schema import asyncapi
from service import metrics
from service.api_docs import form_of
from service.settings import Settings, env_name, plain
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
    "golden query": GoldenQuery,
    "judgment": Judgment,
}
"""Heading in docs/events.md -> the contract whose fields are listed there."""


def settings_table() -> list[tuple[str, str, str, str]]:
    """Return (variable, default, unit, meaning) of every setting, in order, for the documentation."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else plain(field.default)
        unit = cast("dict[str, str]", field.json_schema_extra)["unit"]
        rows.append((env_name(name), default, unit, field.description or ""))
    return rows


def all_metrics() -> list[MetricWrapperBase]:
    """Return every metric: those of `service/metrics.py`, and the counters that agents declare beside their rules."""
    shared = (value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase))
    own = (counter for spec in registry.AGENTS for counter in (spec.counter, *(one for one, _ in spec.totals.values())))
    return list(dict.fromkeys([*shared, *own]))


def metrics_by_name() -> dict[str, MetricWrapperBase]:
    """Return every metric by the name it is exposed under."""
    return {f"{one._name}_total" if one._type == "counter" else one._name: one for one in all_metrics()}


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


class Rights(NamedTuple):
    """What a process does with topics and consumer groups; names as in `contracts/topics.py`, groups in full."""

    reads: set[str]
    writes: set[str]
    groups: set[str]


def rights() -> dict[str, Rights]:
    """Return the rights of each process, from what the AsyncAPI document says that it does; agents are `streams`."""
    found: dict[str, Rights] = {}
    for name, operation in asyncapi()["operations"].items():
        doer, verb, topic = re.fullmatch(r"(.+?)-(writes|reads|follows)-(.*)", name).groups()  # type: ignore[union-attr]
        process = doer if doer in set(Process) else Process.STREAMS.value
        own = found.setdefault(process, Rights(set(), set(), set()))
        (own.writes if verb == "writes" else own.reads).add(topic)
        if verb == "reads":
            own.groups.update(operation["bindings"]["kafka"]["groupId"]["enum"])
    return dict(sorted(found.items()))


def rights_rows() -> list[tuple[str, ...]]:
    """Return process, topics that it reads, topics that it writes, and its groups."""
    return [
        (f"`{process}`", *(", ".join(f"`{name}`" for name in sorted(names)) for names in own))
        for process, own in rights().items()
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
        (f"`{field}`", form_of(part), "yes" if field in needed else "")
        for field, part in schema["properties"].items()
        if field not in common
    ]


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema with its own fields at the top."""
    (found, definitions) = models_json_schema([(model, "validation")])
    name = found[model, "validation"]["$ref"].rsplit("/", 1)[-1]
    everything: dict[str, dict[str, Any]] = definitions["$defs"]
    return {**everything[name], "$defs": everything}


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
    elif name == "rights":
        table = lines(("process", "reads", "writes", "groups"), rights_rows())
    elif name == "topics":
        table = lines(("topic", "key", "clean-up", "partitions", "kept"), topic_rows())
    else:
        table = lines(("field", "form", "needed", "meaning"), [(*row, "") for row in field_rows(name)])
    sys.stdout.writelines(f"{line}\n" for line in table)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))

"""The reference pages say what the code says: settings, topics, fields of every message, metrics."""

import ast
import re
from collections.abc import Iterator

import pytest

from contracts import topics
from contracts.telemetry import DEFAULT_PORTS, EventOutcome, FilterReason, ListOutcome, PairDropReason, UnpairedReason
from streams.registry import group_topics
from tests.support.markdown import (
    ROOT,
    Table,
    code_spans,
    documents,
    prose,
    shell_lines,
    tables,
    tracked_files,
    unquoted,
)
from tests.support.reference import (
    MODELS,
    agent_rows,
    field_rows,
    metrics_by_name,
    rights,
    rights_rows,
    settings_rows,
    topic_rows,
)

DOCS = ROOT / "docs"
METRICS = set(metrics_by_name())
TOPIC_NAMES = {name: value for name, value in vars(topics).items() if value in list(topics.TOPIC_BY_NAME)}
"""Name of a constant -> topic."""
PROCESS_CODE = {
    "collector": "streams/collector", "streams": "streams", "trainer": "trainer", "indexer": "indexer",
    "search": "indexer/search", "page": "millrace/watch",
}  # fmt: skip
OTHERS = {
    folder: [other for other in PROCESS_CODE.values() if other.startswith(f"{folder}/")]
    for folder in PROCESS_CODE.values()
}
WATCHED_FROM_OUTSIDE = {"page": {topic for read in group_topics().values() for topic in read}}
"""Topics of which only the ends are asked: Describe is enough."""
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def table_under(name: str, heading: str) -> Table:
    """Return the first table under a heading of a page in docs/."""
    return next(table for table in tables(DOCS / name) if table.heading == heading)


def test_settings_page_equals_the_settings() -> None:
    """docs/settings.md lists every setting with its default, unit and meaning, in order, and no other."""
    (table,) = tables(DOCS / "settings.md")
    assert list(table.rows) == settings_rows()


def test_topic_table_equals_the_contracts() -> None:
    """docs/operations.md lists every topic with key, clean-up, partitions and retention as they are made."""
    assert list(table_under("operations.md", "Topics").rows) == topic_rows()


def test_agent_table_equals_the_registry() -> None:
    """docs/operations.md lists every agent with its group, topics and outcomes."""
    agents = [table for table in tables(DOCS / "operations.md") if table.columns[0] == "agent"]
    assert [list(table.rows) for table in agents] == [agent_rows()]


def test_rights_table_equals_what_processes_do() -> None:
    """docs/operations.md lists for each process the topics and groups that the AsyncAPI document says it uses."""
    assert list(table_under("operations.md", "Rights on the cluster").rows) == rights_rows()


@pytest.mark.parametrize("process", rights())
def test_no_process_touches_a_topic_that_its_rights_lack(process: str) -> None:
    """Each topic that a process's code names is one that its row allows."""
    folder = PROCESS_CODE[process]
    named = {
        TOPIC_NAMES[node.id if isinstance(node, ast.Name) else node.attr]
        for path in tracked_files()
        if path.suffix == ".py"
        and path.is_relative_to(folder)
        and not any(path.is_relative_to(o) for o in OTHERS[folder])
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id in TOPIC_NAMES)
        or (isinstance(node, ast.Attribute) and node.attr in TOPIC_NAMES)
    }
    allowed = rights()[process].reads | rights()[process].writes
    assert named
    assert named - allowed - WATCHED_FROM_OUTSIDE.get(process, set()) == set()


@pytest.mark.parametrize("name", MODELS)
def test_event_fields_equal_the_contracts(name: str) -> None:
    """docs/events.md lists every field with the form that the contract accepts, and says what each means."""
    heading = "The envelope" if name == "Envelope" else f"`{name}`"
    rows = table_under("events.md", heading).rows
    assert [row[:3] for row in rows] == field_rows(name)
    assert all(row[3] for row in rows)


def test_every_metric_is_described_where_operators_look() -> None:
    """The metrics of docs/operations.md are those of service/metrics.py and of agents, each with a meaning."""
    table = table_under("operations.md", "Metrics")
    described = {unquoted(row[0]): row[-1] for row in table.rows}
    assert set(described) == METRICS
    assert all(described.values())


def mentioned_metrics() -> Iterator[tuple[str, str]]:
    """Yield (document, name) of everything in the documentation that looks like a metric of ours."""
    for path in documents():
        for text in [*code_spans(path), *shell_lines(path)]:
            for name in re.findall(r"\bmillrace_[a-z_]+", text):
                yield path.name, name


def test_no_document_names_a_metric_that_does_not_exist() -> None:
    """A metric in a query or a sentence is one that a process exposes."""
    known = METRICS | {f"{name}{part}" for name in METRICS for part in HISTOGRAM_PARTS}
    assert [(path, name) for path, name in mentioned_metrics() if name not in known] == []


def test_port_table_equals_the_default_ports() -> None:
    """docs/operations.md gives every process its default port."""
    rows = table_under("operations.md", "Processes and ports").rows
    assert {unquoted(row[0]): int(row[2].split()[-1]) for row in rows} == {
        str(name): port for name, port in DEFAULT_PORTS.items()
    }


@pytest.mark.parametrize("reasons", [EventOutcome, FilterReason, UnpairedReason, PairDropReason, ListOutcome])
def test_every_outcome_is_explained(reasons: type[EventOutcome]) -> None:
    """docs/operations.md explains every outcome and every reason that a ledger or a counter can show."""
    explained = set(code_spans(DOCS / "operations.md"))
    assert [reason.value for reason in reasons if reason.value not in explained] == []


def test_every_variable_in_the_documentation_is_a_setting() -> None:
    """No document tells people to set a variable that the processes would refuse."""
    known = {unquoted(row[0]) for row in settings_rows()}
    found = {name for path in documents() for name in re.findall(r"\bMILLRACE_[A-Z_]+[A-Z]\b(?!_?\*)", prose(path))}
    assert found - known == set()

"""The list of agents, and what follows from it for whoever runs, feeds or watches them."""

import ast
import importlib
import inspect
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from contracts.errors import DependencyDown, UsageError
from contracts.progress import AgentProgress
from contracts.topics import ATTRIBUTION_PROGRESS, TOPICS
from millrace.watch.kafka_view import KafkaView
from millrace.watch.ledger import lag_report, ledger_report
from service.kafka import OffsetRange
from streams import registry
from streams.agents.spec import AgentSpec
from streams.registry import all_messages, all_topics, chosen_agents, group_topics
from tests.support.markdown import ROOT
from tests.support.reference import rights
from tests.support.toy_agent import TOY


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a registry with one more line."""
    monkeypatch.setattr(registry, "AGENTS", (*registry.AGENTS, TOY))


def test_all_agents_run_unless_some_are_named() -> None:
    """An empty setting means every agent; names choose, in the order given."""
    assert tuple(chosen_agents("")) == registry.AGENTS
    assert [spec.name for spec in chosen_agents("pairs, join")] == ["pairs", "join"]


def test_an_agent_of_several_parts_is_chosen_with_all_of_them() -> None:
    """Each part reads a topic of its own; a part alone would do half of the work."""
    parts = ["attribution", "attribution-orphans", "attribution-pairs", "attribution-clicks"]
    assert [spec.name for spec in chosen_agents("attribution")] == parts
    assert tuple(spec.progress_topic for spec in chosen_agents("attribution")) == ATTRIBUTION_PROGRESS
    with pytest.raises(UsageError, match="there is no agent attribution-pairs; did you mean attribution"):
        chosen_agents("attribution-pairs")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("join,erase", "there is no agent erase"),
        ("jion", "there is no agent jion; did you mean join"),
        ("join,pairs,join", "names join twice"),
        (" , ", "names no agent"),
    ],
)
def test_a_wrong_name_is_refused_with_what_could_be_meant(names: str, words: str) -> None:
    """A worker that quietly did less, or the same twice, would go unnoticed."""
    with pytest.raises(UsageError, match=words) as refused:
        chosen_agents(names)
    assert "MILLRACE_AGENTS" in refused.value.message
    assert refused.value.fix


@pytest.mark.usefixtures("with_toy")
def test_an_agents_topics_follow_from_its_line() -> None:
    """Its progress topic is compacted, its own output exists, and nothing of the others is declared twice."""
    topics = {topic.name: topic for topic in all_topics()}
    own = {name for spec in registry.AGENTS for name in (spec.progress_topic, *(topic.name for topic in spec.topics))}
    assert len(topics) == len(all_topics()) == len(own | {topic.name for topic in TOPICS})
    assert topics["toy-progress"].cleanup == "compact"
    assert topics["toy-lists"].cleanup == "delete"
    assert {spec.progress_topic for spec in registry.AGENTS} <= set(topics)


@pytest.mark.usefixtures("with_toy")
def test_an_agents_group_and_message_follow_from_its_line() -> None:
    """Whoever looks for lag or decodes its progress finds both."""
    assert group_topics()["toy"] == ("joined-searches",)
    assert [spec.topics for spec in all_messages() if spec.name == "toy_progress"] == [("toy-progress",)]
    assert len({spec.name for spec in all_messages()}) == len(all_messages())


@pytest.mark.usefixtures("with_toy")
def test_an_agents_rights_follow_from_its_line() -> None:
    """The worker reads its source and follows its progress, as the page does, and may write all that it declares."""
    worker, page = rights()["streams"], rights()["page"]
    assert {"joined-searches", "toy-progress"} <= worker.reads
    assert {"toy-lists", "toy-progress"} <= worker.writes
    assert "millrace-toy" in worker.groups
    assert "toy-progress" in page.reads


@pytest.mark.usefixtures("with_toy")
def test_an_agents_ledger_and_lag_follow_from_its_line() -> None:
    """Both are told from its progress, and are unknown without it; the others then stand."""
    progress = AgentProgress(partition=0, next_offset=3, hold_offset=2, counts={"noted": 2, "left/empty": 1})
    facts = KafkaView(ends={("joined-searches", 0): OffsetRange(0, 5)}, progress={"toy": {0: progress}})
    ledger = {"read": 5, "noted": 2, "left": {"empty": 1}, "dead_lettered": 0, "pending": 2, "balance": 0}
    assert ledger_report(facts)["toy"] == ledger
    assert lag_report(facts)["groups"]["toy"] == {"records": 2, "held": 1, "worst_partition": 2}
    without = replace(facts, unknown={"toy-progress": DependencyDown("gone")})
    assert ledger_report(without)["toy"] == dict.fromkeys(ledger)
    assert ledger_report(without)["searches"]["balance"] == 0
    assert lag_report(without)["groups"]["toy"]["records"] is None
    assert lag_report(without)["groups"]["pairs"]["records"] == 5


@pytest.mark.parametrize("spec", [*registry.AGENTS, TOY], ids=lambda spec: str(spec.name))
def test_an_agents_rules_know_no_client(spec: AgentSpec[Any]) -> None:
    """The module of its spec imports nothing that the rules named in pyproject.toml may not import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (cores,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["name"].startswith("cores know"))
    source = inspect.getsource(importlib.import_module(spec.new_state.__module__))
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported
    assert {name.partition(".")[0] for name in imported} & set(cores["forbidden_modules"]) == set()


def test_every_agent_writes_only_to_topics_that_exist() -> None:
    """A misspelt output would be found by the first record only."""
    names = {topic.name for topic in all_topics()}
    for spec in registry.AGENTS:
        assert {spec.source, *spec.written_topics} <= names

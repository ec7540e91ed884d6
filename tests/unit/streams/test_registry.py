"""The list of agents, and what follows from it for whoever runs, feeds or watches them."""

import pytest

from contracts.errors import UsageError
from contracts.topics import TOPICS
from streams import registry
from streams.registry import all_messages, all_topics, chosen_agents, group_topics
from tests.support.toy_agent import TOY


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a registry with one more line."""
    monkeypatch.setattr(registry, "AGENTS", (*registry.AGENTS, TOY))


def test_all_agents_run_unless_some_are_named() -> None:
    """An empty setting means every agent; names choose, in the order given."""
    assert [spec.name for spec in chosen_agents("")] == ["join", "pairs"]
    assert [spec.name for spec in chosen_agents("pairs, join")] == ["pairs", "join"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("join,propensity", "there is no agent propensity"),
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
    assert len(topics) == len(all_topics()) == len(TOPICS) + 2
    assert topics["toy-progress"].cleanup == "compact"
    assert topics["toy-lists"].cleanup == "delete"
    assert {spec.progress_topic for spec in registry.AGENTS} <= set(topics)


@pytest.mark.usefixtures("with_toy")
def test_an_agents_group_and_message_follow_from_its_line() -> None:
    """Whoever looks for lag or decodes its progress finds both."""
    assert group_topics()["toy"] == ("joined-searches",)
    assert [spec.topics for spec in all_messages() if spec.name == "toy_progress"] == [("toy-progress",)]
    assert len({spec.name for spec in all_messages()}) == len(all_messages())


def test_every_agent_writes_only_to_topics_that_exist() -> None:
    """A misspelt output would be found by the first record only."""
    names = {topic.name for topic in all_topics()}
    for spec in registry.AGENTS:
        assert {spec.source, *spec.written_topics} <= names

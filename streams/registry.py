"""Every agent, and what follows from the list: which topics there are and who reads them. It imports no Faust."""

import difflib
from typing import Any, Final

from pydantic import TypeAdapter

from contracts.errors import UsageError
from contracts.messages import MESSAGE_BY_NAME, MESSAGES, MessageSpec
from contracts.topics import GROUP_TOPICS, TOPICS, TopicSpec
from streams.agents.spec import AgentSpec
from streams.arms.partition_arms import ARMS_AGENT
from streams.attribution.conversions import LATE, ORPHANS
from streams.attribution.remembered import CHOSEN, CLICKS
from streams.join.spec import JOIN
from streams.pairs.partition_pairs import PAIRS
from streams.propensity.partition_propensity import PROPENSITY

AGENTS: Final[tuple[AgentSpec[Any], ...]] = (JOIN, PAIRS, PROPENSITY, LATE, ORPHANS, CHOSEN, CLICKS, ARMS_AGENT)
"""In the order of the way of one click. Those called `NAME-...` are parts of the agent `NAME`, and run with it."""


def chosen_agents(names: str) -> list[AgentSpec[Any]]:
    """Return the agents that a comma-separated list names; all of them if it is empty.

    Raises:
        UsageError: a name is unknown or stands there twice.
    """
    by_name: dict[str, list[AgentSpec[Any]]] = {}
    for spec in AGENTS:
        by_name.setdefault(spec.name.partition("-")[0], []).append(spec)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if names and not wanted:
        raise UsageError("MILLRACE_AGENTS names no agent", fix=f"choose from {', '.join(by_name)}, or unset it")
    for name in wanted:
        if name not in by_name:
            nearest = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise UsageError(
                f"MILLRACE_AGENTS: there is no agent {name}{hint}", fix=f"choose from {', '.join(by_name)}, or unset it"
            )
        if wanted.count(name) > 1:
            raise UsageError(
                f"MILLRACE_AGENTS names {name} twice",
                fix="name it once; another worker shares its work, a second copy in this one would not",
            )
    return [spec for name in wanted for spec in by_name[name]] or list(AGENTS)


def all_topics() -> tuple[TopicSpec, ...]:
    """Return every topic of a deployment: the contracts' own and what agents need beside them."""
    specs = {spec.name: spec for spec in TOPICS}
    for agent in AGENTS:
        for topic in (*agent.topics, TopicSpec(agent.progress_topic, key="partition", cleanup="compact")):
            specs.setdefault(topic.name, topic)
    return tuple(specs.values())


def all_messages() -> tuple[MessageSpec, ...]:
    """Return every message of a deployment: the contracts' own and the progress of agents that is not among them."""
    own = [
        MessageSpec(f"{agent.name}_progress", agent.progress, TypeAdapter(agent.progress), (agent.progress_topic,))
        for agent in AGENTS
    ]
    return (*MESSAGES, *(spec for spec in own if spec.name not in MESSAGE_BY_NAME))


def group_topics() -> dict[str, tuple[str, ...]]:
    """Return what each consumer group reads and commits, groups without the deployment's prefix."""
    return {agent.name: (agent.source,) for agent in AGENTS} | GROUP_TOPICS

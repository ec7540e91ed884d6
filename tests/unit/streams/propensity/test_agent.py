"""What the propensity agent says while it cannot publish."""

from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing

from contracts.errors import DependencyDown
from streams.propensity.agent import PropensityAgent
from streams.propensity.partition_propensity import PROPENSITY
from tests.conftest import SettingsFactory


async def test_an_outage_is_said_once(settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether Kafka refuses or does not answer, the log has one line for it; after it was back, another."""
    outcomes: list[Exception | None] = [DependencyDown("Kafka does not answer"), TimeoutError(), None, TimeoutError()]

    async def publish_due(agent: PropensityAgent, owned: Any) -> None:
        """Fail as the next outcome says."""
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(PropensityAgent, "_publish_due", publish_due)
    agent = PropensityAgent(PROPENSITY, settings(kafka_bootstrap="127.0.0.1:1"))
    owned: Any = SimpleNamespace(tp=SimpleNamespace(partition=0))
    with structlog.testing.capture_logs() as lines:
        while outcomes:
            agent._looked_s = -float("inf")
            await agent.idle(owned)
    assert [line["event"] for line in lines] == ["propensities_not_published"] * 2

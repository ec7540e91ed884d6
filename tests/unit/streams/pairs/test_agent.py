"""The pairs agent knows the propensities in force before it takes a list, however long Kafka is away."""

from collections.abc import Mapping
from typing import Any

import pytest
import structlog.testing
from faust.types import TP

from contracts.errors import DependencyDown
from contracts.outcomes import Cell
from contracts.propensities import CellPropensities, SlotPropensity
from streams.agents.partition_agent import PartitionAgent
from streams.pairs.agent import PairsAgent
from streams.pairs.partition_pairs import PAIRS, PartitionPairs
from streams.propensity.reader import PropensityReader
from tests.conftest import SettingsFactory
from tests.support.search_events import T0

CELL = Cell("search", "mobile")


def version() -> CellPropensities:
    """Return a version by which the second position is looked at a quarter as often."""
    slots = tuple(
        SlotPropensity(position=place, theta=theta, low=theta, high=theta, clicks=200.0, prior_only=False)
        for place, theta in ((1, 1.0), (2, 0.25))
    )
    return CellPropensities(
        surface="search", device="mobile", layout="list", columns=1, kind="examined", version=3, effective_from=T0,
        estimated_at=T0, lists=400, swap_clicks=100.0, history_clicks=0.0, steepness=1.0, slots=slots,
    )  # fmt: skip


async def test_partitions_are_taken_over_with_what_is_in_force(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first read that fails is tried again before any list is judged, and its versions weigh the lists."""
    seen: list[str] = []

    async def read_on(reader: PropensityReader) -> None:
        """Fail twice, then find a version."""
        seen.append("read")
        if len(seen) < 3:
            raise DependencyDown("Kafka does not answer")
        reader.lookup.add(version())

    async def take_over(agent: Any, assigned: set[TP]) -> Mapping[TP, int]:
        """Note that the partitions are taken over."""
        seen.append("taken over")
        return dict.fromkeys(assigned, 0)

    monkeypatch.setattr(PropensityReader, "read_on", read_on)
    monkeypatch.setattr(PartitionAgent, "take_over", take_over)
    monkeypatch.setattr("streams.pairs.agent.RETRY_S", 0.0)
    agent = PairsAgent(PAIRS, settings(kafka_bootstrap="127.0.0.1:1"))
    tp = TP("joined-searches", 0)
    state = PartitionPairs(0)
    agent.restore_state(tp, state)
    assert state.theta(CELL, 2, T0) == (0.5, 0)
    assert await agent.take_over({tp}) == {tp: 0}
    assert seen == ["read", "read", "read", "taken over"]
    assert (state.theta(CELL, 2, T0), state.theta(CELL, 2, T0 - 1)) == ((0.25, 3), (0.5, 0))


async def test_what_was_read_a_moment_ago_is_not_read_again(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking after partitions costs a read every few seconds, not every time."""
    reads: list[int] = []

    async def read_on(reader: PropensityReader) -> None:
        """Count a read."""
        reads.append(1)

    monkeypatch.setattr(PropensityReader, "read_on", read_on)
    agent = PairsAgent(PAIRS, settings(kafka_bootstrap="127.0.0.1:1"))
    for _ in range(3):
        await agent.idle(None)  # type: ignore[arg-type] # what it looks after does not matter
    assert len(reads) == 1


async def test_an_outage_is_said_once_and_asked_about_once_in_a_while(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the timer looks: the log has a line for each outage, and Kafka is not asked by each look."""
    outages = [True, True, True, False, True, True]
    reads = iter(outages)

    async def read_on(reader: PropensityReader) -> None:
        """Fail while Kafka is down."""
        if next(reads):
            raise DependencyDown("Kafka does not answer")

    monkeypatch.setattr(PropensityReader, "read_on", read_on)
    agent = PairsAgent(PAIRS, settings(kafka_bootstrap="127.0.0.1:1"))
    with structlog.testing.capture_logs() as lines:
        for _ in outages:
            agent._due_s = 0.0
            for _ in range(3):
                await agent.idle(None)  # type: ignore[arg-type] # what it looks after does not matter
    assert not [*reads]
    assert [line["event"] for line in lines] == ["propensities_not_read"] * 2

"""What a restart may find committed and written down, and when a worker asks for one; Kafka is in the test's hands."""

import time
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from faust.types import TP

from contracts.progress import EventCounts, JoinProgress
from contracts.topics import JOIN_PROGRESS, JOINED_SEARCHES, SEARCH_EVENTS
from contracts.wire import encode
from streams.agents import partition_agent
from streams.agents.progress import Standing
from streams.join.agent import JoinAgent
from streams.transport.chunk import Chunk
from streams.transport.output import OutRecord
from tests.conftest import SettingsFactory
from tests.support.search_events import T0, Record, impression, tick

WINDOW_MS = 3_000


class HeldTopics:
    """Takes what an agent writes; refuses the topics that it is told to refuse."""

    def __init__(self) -> None:
        self.written: dict[str, list[OutRecord]] = {}
        self.refused: set[str] = set()

    async def send(self, topic: str, _partition: int, records: Iterable[OutRecord]) -> None:
        """Take records, or fail as Kafka does."""
        if topic in self.refused:
            raise ConnectionError(topic)
        self.written.setdefault(topic, []).extend(records)

    async def send_keyed(self, topic: str, _partitions: int, records: Iterable[OutRecord]) -> None:
        """Take records, or fail as Kafka does."""
        await self.send(topic, 0, records)


def _agent(settings: SettingsFactory) -> tuple[JoinAgent, HeldTopics]:
    """Return a join agent to which partition 0 is assigned, and what it writes to."""
    agent = JoinAgent(settings(kafka_bootstrap="127.0.0.1:1", join_window_s=WINDOW_MS / 1000, lateness_s=1))
    topics = HeldTopics()
    agent._output = topics  # type: ignore[assignment] # stands in for the producer
    agent.assigned = {0}
    return agent, topics


def _standing(agent: JoinAgent, monkeypatch: pytest.MonkeyPatch, progress: JoinProgress | None) -> TP:
    """Let a partition stand where a progress record says; return it."""

    async def read_standings(*_: Any, **__: Any) -> dict[int, Standing[JoinProgress]]:
        """Answer as Kafka would."""
        return {0: Standing(progress, 0, 10)}

    monkeypatch.setattr(partition_agent, "read_standings", read_standings)
    return TP(agent.settings.topic(SEARCH_EVENTS), 0)


def _chunk(tp: TP, *events: dict[str, Any], begin: int = 0) -> Any:
    """Return consecutive records as a chunk."""
    records: list[Any] = [
        Record(offset, event["event_time"], orjson.dumps(event)) for offset, event in enumerate(events, start=begin)
    ]
    return Chunk(tp, records)


def _two_open() -> JoinProgress:
    """Return the progress of a process that had read two records, each of a search that is still open."""
    return JoinProgress(
        partition=0, start_offset=0, next_offset=2, hold_offset=0, watermark_ms=T0 - 1_000, window_ms=WINDOW_MS,
        lateness_ms=1_000, counts=EventCounts(pending=2), open_searches=2,
    )  # fmt: skip


async def test_a_restart_commits_nothing_above_what_a_further_one_would_need(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that are only read a second time do not move the offset past the search that is still open."""
    agent, _ = _agent(settings)
    tp = _standing(agent, monkeypatch, _two_open())
    await agent._on_chunk(_chunk(tp, impression("s1"), impression("s2")))
    consumer = agent.app.consumer
    consumer._finished[tp] = 2
    assert consumer._new_offset(tp) == 0


async def test_no_progress_is_written_while_records_are_read_a_second_time(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a replay the counts are not those of the position: the old progress has to stand."""
    agent, topics = _agent(settings)
    tp = _standing(agent, monkeypatch, _two_open())
    await agent._on_chunk(_chunk(tp, impression("s1")))
    await agent._write_progress(agent.works[0])
    assert topics.written == {}
    await agent._on_chunk(_chunk(tp, impression("s2"), impression("s3"), begin=1))
    await agent._write_progress(agent.works[0])
    assert agent.settings.topic(JOIN_PROGRESS) in topics.written


async def test_no_progress_is_written_past_outputs_that_were_not_acknowledged(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a closed search could not be written, the timer does not count it either while the process ends."""
    agent, topics = _agent(settings)
    tp = _standing(agent, monkeypatch, None)
    topics.refused.add(agent.settings.topic(JOINED_SEARCHES))
    with pytest.raises(ConnectionError):
        await agent._on_chunk(_chunk(tp, impression("s1"), tick(WINDOW_MS + 5_000)))
    await agent._write_progress(agent.works[0])
    assert agent.settings.topic(JOIN_PROGRESS) not in topics.written


async def test_progress_follows_outputs_that_were_acknowledged(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed search is written, then the progress that counts it."""
    agent, topics = _agent(settings)
    tp = _standing(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1"), tick(WINDOW_MS + 5_000)))
    assert list(topics.written) == [agent.settings.topic(JOINED_SEARCHES), agent.settings.topic(JOIN_PROGRESS)]
    (written,) = topics.written[agent.settings.topic(JOIN_PROGRESS)]
    assert written.value == encode(agent.works[0].core.progress())
    assert agent.works[0].core.progress().searches_closed == 1


async def _nothing(_work: object) -> None:
    """Look after a quiet partition by doing nothing."""


async def test_a_record_after_a_quiet_hour_is_no_reason_to_restart(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liveness counts the time behind the log's end, not the time since the last record."""
    agent, _ = _agent(settings)
    tp = _standing(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1")))
    ends = {tp: 1}
    monkeypatch.setattr(agent, "_end", ends.get)
    monkeypatch.setattr(agent, "idle", _nothing)  # the pairs agent writes no ticks
    work = agent.works[0]
    work.moved_s = work.at_end_s = time.monotonic() - 3_600
    await agent._on_timer()
    ends[tp] = 2
    assert agent.stuck() is None
    work.at_end_s = work.moved_s
    assert agent.stuck() is not None

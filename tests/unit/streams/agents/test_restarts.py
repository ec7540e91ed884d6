"""What a restart or a rebalance finds written down, and what is kept; Kafka is in the test's hands."""

import time
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from faust.types import TP
from structlog.testing import capture_logs

from contracts.errors import DependencyDown
from contracts.progress import EventCounts, JoinProgress, PairsProgress, PartitionProgress
from contracts.topics import JOIN_PROGRESS, JOINED_SEARCHES, SEARCH_EVENTS
from contracts.wire import encode
from streams.agents import partition_agent
from streams.agents.partition_agent import PartitionAgent
from streams.agents.progress import SourcePartition
from streams.join import agent as join_agent
from streams.join.agent import JoinAgent
from streams.join.spec import JOIN
from streams.pairs.partition_pairs import PAIRS
from streams.transport.consumer import Chunk
from streams.transport.output import Headers, OutRecord
from tests.conftest import SettingsFactory
from tests.support.search_events import T0, Record, impression, is_mark, tick

WINDOW_MS = 3_000


class HeldTopics:
    """Takes what an agent writes; refuses the topics that it is told to refuse."""

    def __init__(self) -> None:
        self.written: dict[str, list[OutRecord]] = {}
        self.refused: set[str] = set()

    async def send(self, topic: str, _partition: int, records: Iterable[OutRecord]) -> None:
        """Take records, or fail as Kafka does; watermark records are left out."""
        if lists := [record for record in records if not is_mark(record)]:
            if topic in self.refused:
                raise ConnectionError(topic)
            self.written.setdefault(topic, []).extend(lists)

    async def send_keyed(
        self, topic: str, _partitions: int, records: Iterable[OutRecord], *, headers: Headers = ()
    ) -> None:
        """Take records, or fail as Kafka does."""
        await self.send(topic, 0, records)


def _agent(settings: SettingsFactory, progress_id: str | None = None) -> tuple[JoinAgent, HeldTopics]:
    """Return a join agent, and what it writes to."""
    chosen = settings(kafka_bootstrap="127.0.0.1:1", join_window_s=WINDOW_MS / 1000, lateness_s=1)
    agent = JoinAgent(JOIN, chosen, progress_id=progress_id)
    topics = HeldTopics()
    agent._output = topics  # type: ignore[assignment] # stands in for the producer
    return agent, topics


async def _assigned(agent: JoinAgent, monkeypatch: pytest.MonkeyPatch, progress: JoinProgress | None) -> TP:
    """Assign partition 0 to the agent, with this progress on the topic; return it."""
    (tp,) = await _reassigned(agent, monkeypatch, progress)
    return tp


async def _reassigned(
    agent: PartitionAgent[Any, Any], monkeypatch: pytest.MonkeyPatch, progress: PartitionProgress | None, *numbers: int
) -> dict[TP, int]:
    """Take every partition away and assign these (0 if none is named); return where each is read from."""

    async def read_sources(_settings: Any, _spec: Any, numbers: Iterable[int], **_: Any) -> dict[int, Any]:
        """Answer as Kafka would."""
        return {number: SourcePartition(0, 10, progress) for number in numbers}

    monkeypatch.setattr(partition_agent, "read_sources", read_sources)
    await agent._on_revoked(None, [])
    assigned = {TP(agent.settings.topic(SEARCH_EVENTS), number) for number in numbers or (0,)}
    await agent._on_assigned(None, assigned)
    return dict(await agent.take_over(assigned))


def _newest(agent: JoinAgent, topics: HeldTopics) -> JoinProgress:
    """Return the progress that was written last."""
    return JoinProgress.model_validate_json(topics.written[agent.settings.topic(JOIN_PROGRESS)][-1].value or b"")


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
    tp = await _assigned(agent, monkeypatch, _two_open())
    await agent._on_chunk(_chunk(tp, impression("s1"), impression("s2")))
    consumer = agent.app.consumer
    consumer._finished[tp] = 2
    assert consumer._new_offset(tp) == 0


async def test_no_progress_is_written_while_records_are_read_a_second_time(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a replay the counts are not those of the position: the old progress has to stand."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, _two_open())
    await agent._on_chunk(_chunk(tp, impression("s1")))
    await agent._write_progress(agent.owned[0])
    assert topics.written == {}
    await agent._on_chunk(_chunk(tp, impression("s2"), impression("s3"), begin=1))
    await agent._write_progress(agent.owned[0])
    assert agent.settings.topic(JOIN_PROGRESS) in topics.written


async def test_no_progress_is_written_past_outputs_that_were_not_acknowledged(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a closed search could not be written, the timer does not count it either while the process ends."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    topics.refused.add(agent.settings.topic(JOINED_SEARCHES))
    with pytest.raises(ConnectionError):
        await agent._on_chunk(_chunk(tp, impression("s1"), tick(WINDOW_MS + 5_000)))
    await agent._write_progress(agent.owned[0])
    assert agent.settings.topic(JOIN_PROGRESS) not in topics.written


async def test_a_join_keeps_its_name_as_long_as_it_has_progress(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the id of the progress topic is now, also if an earlier release began that knew of no id."""
    known = {None: _two_open(), "one": _two_open().model_copy(update={"begun_in": "one"}), "other": None}
    for begun_in, progress in known.items():
        agent, _ = _agent(settings, "other")
        await _assigned(agent, monkeypatch, progress)
        assert agent.owned[0].state.begun_in == begun_in


async def test_the_pairs_agent_reads_again_what_it_remembered(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its position is past the lists that it has to know; reading begins with the oldest of them."""
    progress = PairsProgress(partition=0, next_offset=8, hold_offset=3)
    agent: Any = PartitionAgent(PAIRS, settings(kafka_bootstrap="127.0.0.1:1"))
    assert list((await _reassigned(agent, monkeypatch, progress)).values()) == [3]
    assert agent.not_ready() == "catches up on partitions [0]"


async def test_progress_follows_outputs_that_were_acknowledged(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed search is written, then the progress that counts it."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1"), tick(WINDOW_MS + 5_000)))
    assert list(topics.written) == [agent.settings.topic(JOINED_SEARCHES), agent.settings.topic(JOIN_PROGRESS)]
    (written,) = topics.written[agent.settings.topic(JOIN_PROGRESS)]
    assert written.value == encode(agent.owned[0].state.progress())
    assert agent.owned[0].state.progress().searches_closed == 1


async def test_a_partition_that_comes_back_keeps_its_state(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebalance that gives it back to the same worker repeats nothing: reading goes on after the last record."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1"), impression("s2")))
    await agent.settle()
    before = agent.owned[0]
    assert await _reassigned(agent, monkeypatch, _newest(agent, topics)) == {tp: 2}
    assert agent.owned[0] is before
    assert (before.state.open_searches, agent.app.consumer.commit_limits) == (2, {tp: 0})


async def test_a_state_is_kept_in_the_middle_of_a_replay(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read a second time is not read a third time; the rest still is."""
    agent, _ = _agent(settings)
    tp = await _assigned(agent, monkeypatch, _two_open())
    await agent._on_chunk(_chunk(tp, impression("s1")))
    await agent.settle()
    assert await _reassigned(agent, monkeypatch, _two_open()) == {tp: 1}
    assert agent.owned[0].state.replaying


@pytest.mark.parametrize("next_offset", [3, 1])
async def test_a_partition_that_others_worked_on_is_loaded_anew(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch, next_offset: int
) -> None:
    """Progress that was not written here, further on or not, means that somebody else has the newer state."""
    agent, _ = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1"), impression("s2")))
    await agent.settle()
    theirs = _two_open().model_copy(update={"next_offset": next_offset})
    assert await _reassigned(agent, monkeypatch, theirs) == {tp: 0}
    assert agent.owned[0].written == theirs


async def test_a_partition_that_others_have_is_forgotten(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state would only take memory: when it returns, somebody else will have written progress."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1")))
    await agent.settle()
    await _reassigned(agent, monkeypatch, None, 1)
    assert set(agent.owned) == {1}
    assert await _reassigned(agent, monkeypatch, _newest(agent, topics)) == {tp: 0}


async def test_a_state_whose_outputs_are_not_acknowledged_is_not_kept(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken records whose outputs nobody wrote."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    topics.refused.add(agent.settings.topic(JOINED_SEARCHES))
    with pytest.raises(ConnectionError):
        await agent._on_chunk(_chunk(tp, impression("s1"), tick(WINDOW_MS + 5_000)))
    assert await _reassigned(agent, monkeypatch, None) == {tp: 0}


async def test_nothing_is_looked_after_while_partitions_change_hands(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between revocation and the next assignment the timer writes nothing, and the agent is not ready."""
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    agent.app.rebalancing = False
    await agent._on_chunk(_chunk(tp, impression("s1")))
    topics.written.clear()
    await agent._on_chunk(_chunk(tp, impression("s2"), begin=1))
    agent.owned[0].written_s = 0.0
    await agent._on_revoked(None, [tp])
    await agent._on_timer()
    assert topics.written == {}
    assert agent.not_ready() == "waits for its partitions"


async def test_an_assignment_that_is_overtaken_changes_nothing(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions that are taken away while their progress is read are not ours when it has been read."""
    agent, _ = _agent(settings)

    async def read_sources(_settings: Any, _spec: Any, numbers: Iterable[int], **_: Any) -> dict[int, Any]:
        """Answer when the next rebalance has begun."""
        await agent._on_revoked(None, [])
        return {number: SourcePartition(0, 10, None) for number in numbers}

    monkeypatch.setattr(partition_agent, "read_sources", read_sources)
    assert await agent.take_over({TP(agent.settings.topic(SEARCH_EVENTS), 0)}) == {}
    assert (agent.owned, agent.assigned) == ({}, None)


async def test_a_broker_that_restarts_is_waited_for(settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebalance while Kafka is away for a moment does not end the worker; one that stays away does."""
    agent, _ = _agent(settings)
    answers: list[Any] = [DependencyDown("away"), DependencyDown("away"), {0: SourcePartition(4, 10, None)}]

    async def read_sources(*_: Any, **__: Any) -> Any:
        """Fail until Kafka is back."""
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(partition_agent, "read_sources", read_sources)
    monkeypatch.setattr(partition_agent, "RETRY_S", 0)
    tp = TP(agent.settings.topic(SEARCH_EVENTS), 0)
    assert await agent.take_over({tp}) == {tp: 4}
    answers.append(DependencyDown("gone"))
    monkeypatch.setattr(partition_agent, "TAKE_OVER_PATIENCE_S", 0)
    with pytest.raises(DependencyDown, match="gone"):
        await agent.take_over({tp})


async def test_a_worker_without_partitions_is_ready(settings: SettingsFactory) -> None:
    """There may be more workers than partitions; one that was never assigned anything is not ready."""
    agent, _ = _agent(settings)
    assert agent.not_ready() == "waits for its partitions"
    await agent._on_assigned(None, [])
    agent.app.rebalancing = False
    assert agent.not_ready() is None


async def _nothing(_owned: object) -> None:
    """Look after a quiet partition by doing nothing."""


async def test_a_record_after_a_quiet_hour_is_no_reason_to_restart(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liveness counts the time behind the log's end, not the time since the last record."""
    agent, _ = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1")))
    ends = {tp: 1}
    monkeypatch.setattr(agent, "end", ends.get)
    monkeypatch.setattr(agent, "idle", _nothing)  # the pairs agent writes no ticks
    owned = agent.owned[0]
    owned.moved_s = owned.at_end_s = time.monotonic() - 3_600
    await agent._on_timer()
    ends[tp] = 2
    assert agent.stuck() is None
    owned.at_end_s = owned.moved_s
    assert agent.stuck() is not None


async def _saved(settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch) -> tuple[JoinAgent, JoinProgress]:
    """Return an agent that saved its state with two open searches, and its progress."""
    monkeypatch.setattr(join_agent, "SAVE_AFTER_RECORDS", 2)
    agent, topics = _agent(settings)
    tp = await _assigned(agent, monkeypatch, None)
    await agent._on_chunk(_chunk(tp, impression("s1", event_id="a"), impression("s2", event_id="b")))
    await agent.settle()
    for saving in agent._saving.values():
        await saving
    return agent, _newest(agent, topics)


async def test_a_restart_goes_on_from_the_saved_state(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read again, and what was open closes as if nothing had happened."""
    _, progress = await _saved(settings, monkeypatch)
    agent, topics = _agent(settings)
    places = await _reassigned(agent, monkeypatch, progress)
    assert list(places.values()) == [2]
    tp = next(iter(places))
    await agent._on_chunk(_chunk(tp, tick(T0 + 20_000), begin=2))
    assert len(topics.written[agent.settings.topic(JOINED_SEARCHES)]) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "another log"])
async def test_a_saved_state_that_does_not_fit_costs_time_alone(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The log is read again from the oldest open search, as without a saved state."""
    saved, progress = await _saved(settings, monkeypatch)
    path = saved._state_file(TP(saved.settings.topic(SEARCH_EVENTS), 0))
    content = path.read_bytes()
    if damage == "another log":
        progress = progress.model_copy(update={"first_append_ms": 1})
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    agent, _ = _agent(settings)
    assert list((await _reassigned(agent, monkeypatch, progress)).values()) == [0]


async def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next restart takes longer; the join goes on."""
    monkeypatch.setattr(join_agent, "SAVE_AFTER_RECORDS", 1)
    monkeypatch.setattr(join_agent, "SAVE_EVERY_S", 0.0)
    agent, _ = _agent(settings)
    agent.settings.data_dir.mkdir(parents=True, exist_ok=True)
    (agent.settings.data_dir / "join").write_text("a file where the folder should be")
    tp = await _assigned(agent, monkeypatch, None)
    with capture_logs() as lines:
        for offset in range(3):
            await agent._on_chunk(_chunk(tp, impression(f"s{offset}", event_id=f"e{offset}"), begin=offset))
            await agent.settle()
            await agent._saving[0]
    assert [line["event"] for line in lines if line["event"] == "join_state_not_saved"] == ["join_state_not_saved"]
    assert agent.owned[0].state.open_searches == 3


async def test_a_worker_is_not_ready_until_the_open_searches_are_there_again(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read a second time counts: until then an event of an open search would find nothing."""
    agent, _ = _agent(settings)
    tp = await _assigned(agent, monkeypatch, _two_open())
    agent.owned[0].end_at_start = 2
    assert agent.not_ready() == "catches up on partitions [0]"
    await agent._on_chunk(_chunk(tp, impression("s1", event_id="a"), impression("s2", event_id="b")))
    assert agent.not_ready() is None

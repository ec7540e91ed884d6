"""The order of writing that the delivery promise rests on, and what an agent says about itself."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import structlog.testing
from faust.types import TP
from prometheus_client import REGISTRY

from contracts.progress import JoinProgress
from contracts.topics import SEARCH_EVENTS
from contracts.wire import encode
from service.machine import epoch_ms
from service.metrics import EVENT_OUTCOMES
from streams.agents import partition_agent
from streams.agents.partition_agent import STUCK_AFTER_S, OwnedPartition, PartitionAgent
from streams.agents.progress import SourcePartition
from streams.join.agent import JoinAgent
from streams.join.partition_join import PartitionJoin
from streams.join.spec import JOIN
from streams.pairs.partition_pairs import PAIRS
from streams.transport.consumer import Chunk
from streams.transport.output import Headers, OutRecord
from tests.conftest import SettingsFactory
from tests.support.search_events import T0, click, impression, is_mark, log, tick

PARTITION = 2


class Topics:
    """Stands where Kafka is: notes what is written in which order, and refuses a topic at will."""

    def __init__(self, limits: dict[TP, int], *, refuse: str = "") -> None:
        self.written: list[tuple[str, int, int]] = []
        self.records: dict[str, list[OutRecord]] = {}
        self.common_headers: dict[str, Headers] = {}
        self.marks: list[tuple[int, OutRecord]] = []
        self.limits_then: list[dict[TP, int]] = []
        self._limits = limits
        self._refuse = refuse

    async def send(self, topic: str, partition: int, records: Iterable[OutRecord]) -> None:
        """Note records written to a partition; watermark records apart."""
        records = list(records)
        self.marks += [(partition, record) for record in records if is_mark(record)]
        self._note(topic, partition, [record for record in records if not is_mark(record)])

    async def send_keyed(
        self, topic: str, partitions: int, records: Iterable[OutRecord], *, headers: Headers = ()
    ) -> None:
        """Note records written by key."""
        self._note(topic, -partitions, list(records))
        self.common_headers[topic.partition("-")[2]] = headers

    def _note(self, topic: str, partition: int, records: list[OutRecord]) -> None:
        """Note a write, or refuse it."""
        name = topic.partition("-")[2]
        if name == self._refuse:
            raise OSError("refused")
        if records:
            self.written.append((name, partition, len(records)))
            self.records.setdefault(name, []).extend(records)
            self.limits_then.append(dict(self._limits))


def join_agent(
    settings: SettingsFactory, *, end: int = 0, refuse: str = "", passed: int = 0
) -> tuple[JoinAgent, Topics]:
    """Return a join agent with one partition and no broker."""
    agent = JoinAgent(JOIN, settings(kafka_bootstrap="127.0.0.1:1", join_window_s=1, lateness_s=0.1))
    limits: dict[TP, int] = {}
    consumer = SimpleNamespace(
        commit_limits=limits, highwater=lambda tp: end, read_past=lambda tp, offset: max(offset, passed)
    )
    agent.app = SimpleNamespace(consumer=consumer, crashed=False, rebalancing=False)
    agent.assigned = {PARTITION}
    topics = Topics(limits, refuse=refuse)
    agent._output = topics  # type: ignore[assignment] # stands in for the output
    tp = TP(agent.settings.topic("search-events"), PARTITION)
    state: PartitionJoin = JOIN.new_state(PARTITION, None, agent.settings)  # type: ignore[assignment] # the join's own
    agent.owned[PARTITION] = OwnedPartition(tp, state, None, 0, end)
    return agent, topics


def chunk(agent: JoinAgent, *events: dict[str, Any] | bytes) -> Chunk:
    """Return events as one chunk of the agent's partition."""
    return Chunk(agent.owned[PARTITION].tp, log(list(events)))


async def test_outputs_then_progress_then_the_commit(settings: SettingsFactory) -> None:
    """What may be committed moves last: while anything is being written it is what it was."""
    agent, topics = join_agent(settings)
    await agent._on_chunk(chunk(agent, impression(), click(), b"junk", tick(9_000), impression("s2", 9_000)))
    assert [name for name, _, _ in topics.written] == ["joined-searches", "dead-letters", "join-progress"]
    assert topics.limits_then == [{}, {}, {}]
    assert agent.app.consumer.commit_limits == {agent.owned[PARTITION].tp: 4}


@pytest.mark.parametrize("refused", ["joined-searches", "dead-letters"])
async def test_a_refused_output_moves_nothing(settings: SettingsFactory, refused: str) -> None:
    """The error goes up, no progress is written and nothing may be committed."""
    agent, topics = join_agent(settings, refuse=refused)
    with pytest.raises(OSError, match="refused"):
        await agent._on_chunk(chunk(agent, impression(), b"junk", tick(9_000)))
    assert "join-progress" not in topics.records
    assert agent.app.consumer.commit_limits == {}


async def test_a_refused_progress_moves_no_commit(settings: SettingsFactory) -> None:
    """What was not counted durably must be read again."""
    agent, _ = join_agent(settings, refuse="join-progress")
    with pytest.raises(OSError, match="refused"):
        await agent._on_chunk(chunk(agent, impression(), tick(9_000)))
    assert agent.app.consumer.commit_limits == {}


async def test_records_go_aside_unchanged_with_their_origin(settings: SettingsFactory) -> None:
    """Bytes and key as they came, the same partition, where they stood and why in the headers."""
    agent, topics = join_agent(settings)
    await agent._on_chunk(chunk(agent, impression(), b'{"type":"click"}', click(search_id="ghost"), tick(9_000)))
    (dead,) = topics.records["dead-letters"]
    headers = dict(dead.headers)
    assert (dead.key, dead.value) == (b"key-1", b'{"type":"click"}')
    assert headers["millrace.id"] == b"join:search-events:2:1"
    assert (headers["millrace.reason"], headers["millrace.stage"]) == (b"missing", b"join")
    (orphan,) = topics.records["orphan-events"]
    assert dict(orphan.headers)["millrace.reason"] == b"wrong_partition"
    assert {(name, partition) for name, partition, _ in topics.written if name != "joined-searches"} == {
        ("dead-letters", PARTITION),
        ("orphan-events", PARTITION),
        ("join-progress", PARTITION),
    }


async def test_progress_is_kept_fresh_while_something_moves(settings: SettingsFactory) -> None:
    """The timer writes what a chunk without outputs left unwritten, once, and then nothing more."""
    agent, topics = join_agent(settings, end=1)
    owned = agent.owned[PARTITION]
    owned.written_s = asyncio.get_running_loop().time() + 60
    await agent._on_chunk(chunk(agent, impression()))
    assert topics.written == []
    owned.written_s = 0.0
    await agent._on_timer()
    await agent._on_timer()
    assert topics.written == [("join-progress", PARTITION, 1)]
    progress = JoinProgress.model_validate_json(topics.records["join-progress"][0].value or b"")
    assert (progress.next_offset, progress.hold_offset, progress.counts.pending) == (1, 0, 1)


@pytest.mark.parametrize(("end", "ticks"), [(1, 1), (5, 0)])
async def test_a_partition_read_to_its_end_gets_ticks(settings: SettingsFactory, end: int, ticks: int) -> None:
    """A quiet partition that is read to its end gets a tick a second; one with records to read gets none."""
    agent, topics = join_agent(settings, end=end)
    await agent._on_chunk(chunk(agent, impression()))
    agent.owned[PARTITION].moved_s -= 2
    await agent._on_timer()
    await agent._on_timer()
    assert len(topics.records.get("search-events", [])) == ticks
    for record in topics.records.get("search-events", []):
        assert orjson.loads(record.value or b"")["event_time"] > T0


async def test_a_trickle_of_old_events_holds_no_tick_up(settings: SettingsFactory) -> None:
    """What counts is how long event time stands still, not how long ago something came."""
    agent, topics = join_agent(settings, end=2)
    owned = agent.owned[PARTITION]
    await agent._on_chunk(Chunk(owned.tp, log([impression("s1", 500)])))
    owned.moved_s -= 2
    agent.app.consumer.highwater = lambda _: 9
    await agent._on_timer()
    await agent._on_chunk(Chunk(owned.tp, log([impression("s2", 100)], first_offset=1)))
    agent.app.consumer.highwater = lambda _: 2
    await agent._on_timer()
    assert len(topics.records["search-events"]) == 1


async def test_a_partition_whose_log_ends_with_a_mark_is_read_to_its_end(settings: SettingsFactory) -> None:
    """What a transaction's commit leaves behind is no record to wait for: ticks come, and nothing is stuck."""
    agent, topics = join_agent(settings, end=2, passed=2)
    await agent._on_chunk(chunk(agent, impression()))
    assert agent.not_ready() is None
    owned = agent.owned[PARTITION]
    owned.moved_s = owned.at_end_s = owned.moved_s - STUCK_AFTER_S - 1
    assert agent.stuck() is None
    await agent._on_timer()
    assert len(topics.records["search-events"]) == 1


@pytest.mark.parametrize(("begin", "lost"), [(0, False), (3, True)])
async def test_only_what_kafka_deleted_is_lost(settings: SettingsFactory, begin: int, lost: bool) -> None:
    """Skipped offsets above the log's beginning are marks of transactions and worth no line."""
    agent, _ = join_agent(settings)
    owned = agent.owned[PARTITION]

    async def earliest_offsets(*tps: TP) -> dict[TP, int]:
        """Return where the log begins."""
        return dict.fromkeys(tps, begin)

    agent.app.consumer.earliest_offsets = earliest_offsets
    with structlog.testing.capture_logs() as lines:
        await agent._on_chunk(Chunk(owned.tp, log([impression()])))
        owned.written_s = 0.0
        await agent._on_chunk(Chunk(owned.tp, log([click()], first_offset=3)))
    assert [line["event"] for line in lines] == ["records_lost"] * lost


async def test_outcomes_are_counted_once(settings: SettingsFactory) -> None:
    """Metrics grow by what came, not by what progress repeats."""
    agent, _ = join_agent(settings)
    before = _joined_on_the_metric()
    await agent._on_chunk(chunk(agent, impression(), click(), tick(9_000)))
    agent.owned[PARTITION].written = None
    await agent._write_progress(agent.owned[PARTITION])
    assert _joined_on_the_metric() - before == 2


def _joined_on_the_metric() -> float:
    """Return what the outcome counter shows."""
    value: float = EVENT_OUTCOMES.labels("joined")._value.get()
    return value


async def test_an_agent_says_why_it_is_not_ready(settings: SettingsFactory) -> None:
    """Waiting, rebalancing, behind and crashed are told apart; one that has caught up is ready."""
    agent, _ = join_agent(settings, end=1)
    assert agent.not_ready() == "catches up on partitions [2]"
    await agent._on_chunk(chunk(agent, impression()))
    assert agent.not_ready() is None
    agent.app.rebalancing = True
    assert agent.not_ready() == "waits for its partitions"
    agent.app.crashed = True
    assert agent.not_ready() == agent.stuck() == "crashed"


async def test_lag_without_progress_for_long_is_death(settings: SettingsFactory) -> None:
    """A worker that reads nothing although there is something to read is restarted; an idle one is not."""
    agent, _ = join_agent(settings, end=4)
    assert agent.stuck() is None
    owned = agent.owned[PARTITION]
    owned.moved_s = owned.at_end_s = owned.moved_s - STUCK_AFTER_S - 1
    assert "partitions [2]" in (agent.stuck() or "")
    idle, _ = join_agent(settings, end=0)
    idle.owned[PARTITION].moved_s -= STUCK_AFTER_S + 1
    assert idle.stuck() is None


def test_an_agents_outcomes_are_shown_at_zero(settings: SettingsFactory) -> None:
    """A board shows zero, not "no data", for everything that may become of a record."""
    PartitionAgent(PAIRS, settings(kafka_bootstrap="127.0.0.1:1"))
    for outcome, reason in (("paired", ""), ("unpaired", "no_query"), ("filtered", "reload")):
        labels = {"outcome": outcome, "reason": reason}
        assert REGISTRY.get_sample_value("millrace_search_outcomes_total", labels) is not None


def test_a_loaded_partition_counts_on_from_its_progress(settings: SettingsFactory) -> None:
    """What an earlier process counted does not appear on the metrics again."""
    agent = JoinAgent(JOIN, settings(kafka_bootstrap="127.0.0.1:1"))
    join = PartitionJoin(PARTITION, window_ms=1_000, lateness_ms=100)
    for record in log([impression(), tick(9_000)]):
        join.take(record, [])
    tp = TP(agent.settings.topic("search-events"), PARTITION)
    owned = agent._keep_or_load(tp, SourcePartition(0, 2, join.progress()))
    assert owned.counted["joined", ""] == 1
    assert owned.read_offset == 2


def test_an_agent_without_a_class_of_its_own_is_built_alike(settings: SettingsFactory) -> None:
    """Group and topics are its own."""
    agent: PartitionAgent[Any, Any] = PartitionAgent(PAIRS, settings(kafka_bootstrap="127.0.0.1:1"))
    assert agent.app.conf.id == agent.settings.group("pairs")
    assert agent.app.batch_topics == {agent.settings.topic("joined-searches")}


async def test_output_goes_where_it_names_with_the_time_of_its_writing(settings: SettingsFactory) -> None:
    """Keyed topics are spread over their partitions; the stage's time is put on a whole send."""
    agent, topics = join_agent(settings)
    await agent._on_chunk(chunk(agent, impression(), tick(9_000)))
    assert ("joined-searches", -agent.settings.partitions, 1) in topics.written
    ((name, value),) = topics.common_headers["joined-searches"]
    assert name == "millrace.closed_at_ms"
    assert abs(int(value) - epoch_ms()) < 60_000
    assert list(topics.records["joined-searches"][0].headers) == [
        ("millrace.turn", b"2-0-%d:1" % T0),
        ("millrace.watermark", b"2:%d" % (T0 + 8_900)),
    ]


async def test_a_chunk_of_a_partition_that_is_gone_is_left_to_its_owner(settings: SettingsFactory) -> None:
    """Handed out before a rebalance, begun after it: nothing is written for somebody else's partition."""
    agent, topics = join_agent(settings)
    left_over = chunk(agent, impression(), tick(9_000))
    agent.owned.clear()
    await agent._on_chunk(left_over)
    assert topics.written == []


async def test_every_partition_is_told_how_far_a_join_has_come(settings: SettingsFactory) -> None:
    """Whoever reads joined searches learns it from any of them: what is closed is written before it is told."""
    agent, topics = join_agent(settings, end=3)
    await agent._on_chunk(chunk(agent, impression(), tick(9_000), impression("s2", 9_000)))
    assert [partition for partition, _ in topics.marks] == list(range(agent.settings.partitions))
    record = topics.marks[0][1]
    assert all(other == record for _, other in topics.marks)
    assert (record.key, dict(record.headers)) == (None, {"millrace.watermark": b"2:%d:open" % (T0 + 8_900)})
    assert orjson.loads(record.value or b"") == {
        "schema_version": 1, "type": "watermark", "partition": 2, "watermark_ms": T0 + 8_900, "idle": False,
    }  # fmt: skip


async def test_a_partition_that_holds_nothing_open_says_so_and_then_is_silent(settings: SettingsFactory) -> None:
    """Once a second while something changes, and now and then to show that somebody is there."""
    agent, topics = join_agent(settings)
    owned = agent.owned[PARTITION]
    told = []
    for _ in range(3):
        await agent.idle(owned)
        told.append(len(topics.marks))
    agent._marked[PARTITION] = (agent._marked[PARTITION][0], -99.0)
    await agent.idle(owned)
    everywhere = agent.settings.partitions
    assert [*told, len(topics.marks)] == [everywhere, everywhere, everywhere, 2 * everywhere]
    assert {dict(record.headers)["millrace.watermark"] for _, record in topics.marks} == {b"2:0:idle"}


async def test_what_is_not_acknowledged_is_not_told(settings: SettingsFactory) -> None:
    """A watermark is a promise about what stands in the log before it."""
    agent, topics = join_agent(settings)
    agent.owned[PARTITION].owes_outputs = True
    await agent.idle(agent.owned[PARTITION])
    assert topics.marks == []


@pytest.mark.parametrize("is_buried", [True, False])
async def test_progress_that_was_written_over_is_written_again(
    settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch, is_buried: bool
) -> None:
    """Compaction keeps what was written last: of a partition where nothing happens any more, that is what counts."""
    agent, topics = join_agent(settings)
    progress = JoinProgress(partition=PARTITION, next_offset=2, hold_offset=2, watermark_ms=T0)

    async def read_sources(*_arguments: Any, **_options: Any) -> dict[int, Any]:
        """Answer as Kafka would."""
        return {PARTITION: SourcePartition(0, 10, progress, is_buried)}

    monkeypatch.setattr(partition_agent, "read_sources", read_sources)
    await agent.take_over({TP(agent.settings.topic(SEARCH_EVENTS), PARTITION)})
    assert topics.written == [("join-progress", PARTITION, 1)] * is_buried
    assert topics.records == ({"join-progress": [OutRecord(b"2", encode(progress))]} if is_buried else {})

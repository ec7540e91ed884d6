"""What agents have in common: chunks in, a plan carried out, progress written, and only then the commit moved.

The order is the delivery promise. Outputs are acknowledged first; then the progress that counts them; then the offset
that may be committed moves. A crash between any two of these repeats work, byte for byte, and never loses any. What a
partition's rules know outlives a rebalance that gives the partition back, if nobody else wrote progress meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from faust.types import TP

from contracts.errors import DependencyDown
from contracts.progress import PartitionProgress
from contracts.telemetry import EventOutcome
from contracts.topics import TOPIC_BY_NAME, kept_aside, set_aside_headers
from contracts.wire import encode
from service import metrics
from service.kafka import translate_kafka_errors
from service.logging import get_logger
from service.machine import epoch_ms
from service.settings import Settings
from streams.agents.progress import SourcePartition, read_sources
from streams.agents.spec import ASIDE_TOPICS, AgentSpec, Emit, PartitionState, Plan, SetAside, outcome_counts
from streams.transport.app import BatchApp
from streams.transport.consumer import Chunk
from streams.transport.output import Output, OutRecord

TIMER_S: Final = 0.25
PROGRESS_EVERY_S: Final = 1.0
"""How old the ledger may be while something moves."""
PROGRESS_AFTER_OUTPUT_S: Final = 0.2
"""How much may be repeated after a kill; under load, most chunks are spared the wait for their progress."""
STUCK_AFTER_S: Final = 60.0
"""Lag without any progress for so long means that only a restart helps."""
TAKE_OVER_PATIENCE_S: Final = 60.0
"""How long Kafka may be away while partitions change hands: longer than a broker's restart."""
RETRY_S: Final = 0.5

P = TypeVar("P", bound=PartitionProgress)
S = TypeVar("S", bound=PartitionState[Any])


@dataclass(slots=True)
class OwnedPartition(Generic[S, P]):
    """One assigned partition.

    Args:
        tp: the partition.
        state: what the rules know of it.
        written: its progress as it was last read or written; None if there is none.
        begin_offset: first record that Kafka had when the partition was loaded.
        end_at_start: what has to be read before the process has caught up.
    """

    tp: TP
    state: S
    written: P | None
    begin_offset: int
    end_at_start: int
    read_offset: int = -1
    """Offset of the next record to hand to the state."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    owes_outputs: bool = False
    """Whether outputs of what the state has taken are not acknowledged: until they are, progress must not count it."""
    owes_progress: bool = False
    """Whether outputs were written that the written progress does not count."""
    written_s: float = 0.0
    moved_s: float = field(default_factory=time.monotonic)
    at_end_s: float = field(default_factory=time.monotonic)
    """When it was last seen to be read to its end."""
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    skipped_seen: int = 0

    def __post_init__(self) -> None:
        self.read_offset = max(self.read_offset, self.hold_offset, self.begin_offset)

    @property
    def hold_offset(self) -> int:
        """Oldest record that a restart has to read again."""
        return self.begin_offset if self.written is None else self.written.hold_offset

    @property
    def progress_age_s(self) -> float:
        """How long ago progress was written."""
        return time.monotonic() - self.written_s

    @property
    def has_news(self) -> bool:
        """Whether something happened that the written progress does not say and may say."""
        written = 0 if self.written is None else self.written.next_offset
        return not self.owes_outputs and self.state.next_offset > written


class PartitionAgent(Generic[S, P]):
    """An agent whose state is one set of rules per partition.

    Args:
        spec: what it is.
        settings: the settings in force.
        source_id: Kafka's id of the source topic, if Kafka tells one.
        progress_id: Kafka's id of the progress topic, if Kafka tells one.
    """

    def __init__(
        self,
        spec: AgentSpec[P],
        settings: Settings,
        *,
        source_id: str | None = None,
        progress_id: str | None = None,
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.settings = settings
        self.log = get_logger(agent=self.name)
        app: Any = BatchApp(settings, self.name, owner=self)
        self.app = app
        self.topic = self.app.batch_topic(settings.topic(spec.source))
        self.owned: dict[int, OwnedPartition[S, P]] = {}
        self.assigned: set[int] | None = None
        """The partitions whose state is here; None while they change hands."""
        self._source_id = source_id
        self.progress_id = progress_id
        self._revocations = 0
        self._output: Output | None = None
        self.app.on_partitions_assigned.connect(self._on_assigned, weak=False)
        self.app.on_partitions_revoked.connect(self._on_revoked, weak=False)
        self.app.agent(self.topic, name=self.name)(self._run)
        self.app.timer(TIMER_S)(self._on_timer)
        for labels in spec.outcome_labels():
            metrics.expose(spec.counter).labels(*labels)

    def observe(self, owned: OwnedPartition[S, P], progress: P) -> None:
        """Show what only this agent shows."""

    def save_state(self, owned: OwnedPartition[S, P]) -> None:
        """Spare a restart work, now that everything taken so far is acknowledged and counted."""

    def restore_state(self, tp: TP, state: S) -> int:
        """Bring a new state forward to what `save_state` kept; return from where on it needs the log.

        That is -1 if it needs all that is held.
        """
        return -1

    async def idle(self, owned: OwnedPartition[S, P]) -> None:
        """Do what an agent does with a partition while no record comes."""

    @property
    def output(self) -> Output:
        """What the agent writes through."""
        if self._output is None:
            self._output = self.app.output()
        return self._output

    def not_ready(self) -> str | None:
        """Return why the agent is not ready, or None."""
        if self.app.crashed:
            return "crashed"
        if self.assigned is None or self.app.rebalancing:
            return "waits for its partitions"
        behind = [number for number, owned in self.owned.items() if self.read_to(owned) < owned.end_at_start]
        return f"catches up on partitions {behind}" if behind else None

    def shown(self) -> Mapping[str, Callable[[], str]]:
        """Give what `/ready` shows beside the verdict: by name, how it is read."""
        return {}

    def stuck(self) -> str | None:
        """Return why only a restart helps, or None."""
        if self.app.crashed:
            return "crashed"
        now_s = time.monotonic()
        stuck = [
            number
            for number, owned in self.owned.items()
            if self._is_behind(owned) and now_s - max(owned.moved_s, owned.at_end_s) > STUCK_AFTER_S
        ]
        return f"no progress for {STUCK_AFTER_S:g} s on partitions {stuck}" if stuck else None

    def read_to(self, owned: OwnedPartition[S, P]) -> int:
        """Return how far a partition was read, past what holds no record; what is read a second time counts then."""
        read_to: int = self.app.consumer.read_past(owned.tp, owned.read_offset)
        return read_to

    def end(self, tp: TP) -> int | None:
        """Return where a partition's log ends, as far as is known."""
        end: int | None = self.app.consumer.highwater(tp)
        return end

    def _is_behind(self, owned: OwnedPartition[S, P]) -> bool:
        """Whether a partition holds records that are known and not taken."""
        return self.read_to(owned) < (self.end(owned.tp) or 0)

    async def _run(self, stream: Any) -> None:
        """Take chunk after chunk; what is raised here ends the process with the chunk uncommitted."""
        chunks: AsyncIterator[Chunk] = stream
        async for chunk in chunks:
            with translate_kafka_errors(self.settings):
                await self._on_chunk(chunk)

    async def _on_chunk(self, chunk: Chunk) -> None:
        """Carry out what follows from a chunk."""
        owned = self.owned.get(chunk.tp.partition)
        if owned is None:
            return  # handed out before a rebalance took the partition away: whoever has it now reads it
        async with owned.lock:
            plan: Plan = []
            take = owned.state.take
            owned.owes_outputs = True  # and for good if a step below fails: the timer writes progress too
            for record in chunk:
                take(record, plan)
            owned.read_offset = max(owned.read_offset, chunk[-1].offset + 1)
            owned.moved_s = time.monotonic()
            await self._carry_out(plan, chunk.tp)
            owned.owes_outputs = False
            owned.owes_progress = owned.owes_progress or bool(plan)
            if owned.progress_age_s >= (PROGRESS_AFTER_OUTPUT_S if owned.owes_progress else PROGRESS_EVERY_S):
                await self._write_progress(owned)

    async def _carry_out(self, plan: Plan, tp: TP) -> None:
        """Write everything that was planned and wait until it is acknowledged."""
        emitted: dict[str, list[Emit]] = {}
        aside: dict[EventOutcome, list[SetAside]] = {}
        for planned in plan:
            if isinstance(planned, Emit):
                emitted.setdefault(planned.topic, []).append(planned)
            else:
                aside.setdefault(planned.outcome, []).append(planned)
        await asyncio.gather(
            *(self._emit(topic, records) for topic, records in emitted.items()),
            *(self._set_aside(outcome, records, tp) for outcome, records in aside.items()),
        )

    async def _emit(self, topic: str, records: list[Emit]) -> None:
        headers = [(self.spec.written_at, b"%d" % epoch_ms())] if self.spec.written_at else []
        specs = TOPIC_BY_NAME | {own.name: own for own in self.spec.topics}
        partitions = self.settings.partitions if specs[topic].keyed else 1
        await self.output.send_keyed(self.settings.topic(topic), partitions, records, headers=headers)

    async def _set_aside(self, outcome: EventOutcome, planned: Iterable[SetAside], tp: TP) -> None:
        """Write records to the topic of their outcome, unchanged, in the partition they came from."""
        records = []
        for one in planned:
            headers = set_aside_headers(
                self.spec.source, tp.partition, one.record.offset, stage=self.name, reason=one.reason, error=one.error
            )
            records.append(OutRecord(*kept_aside(one.record.key, one.record.value), [*headers, *one.headers]))
        await self.output.send(self.settings.topic(ASIDE_TOPICS[outcome]), tp.partition, records)
        if outcome is EventOutcome.DEAD_LETTERED:
            for one in planned:
                metrics.DEAD_LETTERS.labels(self.name, one.reason).inc()

    async def _write_progress(self, owned: OwnedPartition[S, P]) -> None:
        """Write how far a partition has come, then let the committed offset follow."""
        if not owned.has_news:
            return
        progress: P = owned.state.progress().model_copy(update={"source_id": self._source_id})
        lowest_needed = owned.hold_offset
        await self._send_progress(progress)
        owned.written, owned.written_s, owned.owes_progress = progress, time.monotonic(), False
        self.app.consumer.commit_limits[owned.tp] = progress.hold_offset
        metrics.STAGE_PROGRESS.labels(self.name).set(time.time())
        self._show(owned, progress)
        self.save_state(owned)
        if owned.state.skipped_offsets > owned.skipped_seen:
            owned.skipped_seen = owned.state.skipped_offsets
            await self._report_lost(owned, lowest_needed)

    async def _send_progress(self, progress: P) -> None:
        record = OutRecord(b"%d" % progress.partition, encode(progress))
        await self.output.send(self.settings.topic(self.spec.progress_topic), progress.partition, [record])

    def _counts(self, progress: P) -> dict[tuple[str, str], int]:
        """Return every count of a progress message that is shown."""
        return outcome_counts(progress) | {(name, ""): getattr(progress, name) for name in self.spec.totals}

    def _show(self, owned: OwnedPartition[S, P], progress: P) -> None:
        """Bring the metrics of a partition up to date."""
        counts = self._counts(progress)
        for (outcome, reason), count in counts.items():
            more = count - owned.counted.get((outcome, reason), 0)
            if more > 0 and (outcome in self.spec.outcomes or outcome in self.spec.totals):
                counter, labels = self.spec.totals.get(outcome, (self.spec.counter, self.spec.labels(outcome, reason)))
                counter.labels(*labels).inc(more)
        owned.counted = counts
        event_time_ms = getattr(progress, self.spec.event_time, -1)
        if event_time_ms > 0:
            metrics.STAGE_WATERMARK.labels(self.name, str(owned.tp.partition)).set(event_time_ms / 1000)
        self.observe(owned, progress)

    async def _report_lost(self, owned: OwnedPartition[S, P], lowest_needed: int) -> None:
        """Say that records are gone, if skipped offsets mean that.

        Kafka deletes at the beginning of a log only: if that lies below what was needed, they are transactions' marks.
        """
        begins = await self.app.consumer.earliest_offsets(owned.tp)
        if begins[owned.tp] > lowest_needed:
            self.log.error("records_lost", partition=owned.tp.partition, records=owned.state.skipped_offsets,
                           fix="Kafka deleted them before they were read: raise the topic's retention")  # fmt: skip

    async def _on_timer(self) -> None:
        """Keep the written progress fresh, and let idle partitions be looked after."""
        if self.app.rebalancing or self.assigned is None:
            return
        with translate_kafka_errors(self.settings):
            for owned in list(self.owned.values()):
                if not self._is_behind(owned):
                    owned.at_end_s = time.monotonic()
                if owned.lock.locked():
                    continue
                async with owned.lock:
                    if owned.owes_progress or owned.progress_age_s >= PROGRESS_EVERY_S:
                        await self._write_progress(owned)
                    await self.idle(owned)

    async def settle(self) -> None:
        """Write the progress that is not written yet, so that whoever goes on repeats nothing."""
        with translate_kafka_errors(self.settings):
            for owned in list(self.owned.values()):
                async with owned.lock:
                    await self._write_progress(owned)

    async def take_over(self, assigned: set[TP]) -> Mapping[TP, int]:
        """Have the state of these partitions and of no others; return the offset from which each is read.

        A partition that comes back keeps its state if the newest progress is the one that was written here. Progress
        behind which a worker that woke late wrote its own is written again: it joins anew after that, so somebody sees.
        """
        revocations = self._revocations
        async with AsyncExitStack() as unmoved:
            for owned in self.owned.values():
                await unmoved.enter_async_context(owned.lock)
            found = await self._read_sources({tp.partition for tp in assigned})
            taken = {tp.partition: self._keep_or_load(tp, found[tp.partition]) for tp in assigned}
            with translate_kafka_errors(self.settings):
                for source in found.values():
                    if source.progress is not None and source.is_buried and revocations == self._revocations:
                        await self._send_progress(source.progress)
        if revocations != self._revocations:
            return {}  # taken away again meanwhile: what is here stays as it is until the next assignment
        self.owned, self.assigned = taken, set(taken)
        for owned in taken.values():
            self.app.consumer.commit_limits[owned.tp] = owned.hold_offset
        return {owned.tp: owned.read_offset for owned in taken.values()}

    async def _read_sources(self, numbers: set[int]) -> dict[int, SourcePartition[P]]:
        """Read what is known of partitions; a broker that restarts is waited for."""
        deadline_s = time.monotonic() + TAKE_OVER_PATIENCE_S
        while True:
            try:
                return await read_sources(self.settings, self.spec, numbers, source_id=self._source_id)
            except DependencyDown:
                if time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(RETRY_S)

    def _keep_or_load(self, tp: TP, source: SourcePartition[P]) -> OwnedPartition[S, P]:
        owned = self.owned.get(tp.partition)
        if owned is not None and not owned.owes_outputs and source.progress == owned.written:
            return owned
        progress = source.progress
        state: Any = self.spec.new_state(tp.partition, progress, self.settings)
        restored = self.restore_state(tp, state)
        owned = OwnedPartition(tp, state, progress, source.begin_offset, source.end_offset, restored)
        if progress is not None:
            owned.counted = self._counts(progress)
        decided = source.begin_offset if progress is None else progress.next_offset
        self.log.info("partition_loaded", partition=tp.partition, next_offset=decided, hold_offset=owned.read_offset)
        return owned

    async def _on_assigned(self, _app: Any, assigned: Iterable[TP], **_: Any) -> None:
        """Take note of the partitions; their state is seen to outside the rebalance."""
        numbers = sorted(tp.partition for tp in assigned if tp.topic == self.settings.topic(self.spec.source))
        self.log.info("partitions_assigned", partitions=numbers)
        if not numbers:
            self.owned, self.assigned = {}, set()

    async def _on_revoked(self, _app: Any, _revoked: Iterable[TP], **_: Any) -> None:
        """Leave the partitions alone until it is known who has them; their state may still be wanted."""
        self._revocations += 1
        self.assigned = None

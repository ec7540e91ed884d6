"""What join and pairs have in common: chunks in, a plan carried out, progress written, and only then the hold moved.

The order is the delivery promise. Outputs are acknowledged first; then the progress that counts them; then the offset
that may be committed moves. A crash between any two of these repeats work, byte for byte, and never loses any.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from faust.types import TP
from pydantic import TypeAdapter

from contracts.progress import JoinProgress, PairsProgress
from contracts.telemetry import EventOutcome
from contracts.topics import DEAD_LETTERS, LATE_EVENTS, ORPHAN_EVENTS, set_aside_headers
from contracts.wire import encode
from service import metrics
from service.kafka import translate_kafka_errors
from service.logging import get_logger
from service.settings import Settings
from streams.agents.outputs import Emit, LogRecord, Plan, SetAside
from streams.agents.progress import Standing, read_standings
from streams.transport.app import BatchApp
from streams.transport.chunk import Chunk
from streams.transport.output import Output, OutRecord

TIMER_S: Final = 0.25
PROGRESS_EVERY_S: Final = 1.0
"""How old the ledger may be while something moves."""
PROGRESS_AFTER_OUTPUT_S: Final = 0.2
"""How much may be repeated after a kill; under load, most chunks are spared the wait for their progress."""
STUCK_AFTER_S: Final = 60.0
"""Lag without any progress for so long means that only a restart helps."""
ASIDE_TOPICS: Final = {
    EventOutcome.LATE: LATE_EVENTS,
    EventOutcome.ORPHAN: ORPHAN_EVENTS,
    EventOutcome.DEAD_LETTERED: DEAD_LETTERS,
}

P = TypeVar("P", JoinProgress, PairsProgress)


class Core(Protocol):
    """The pure state of one partition."""

    next_offset: int
    skipped_offsets: int

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the next record and add what follows from it to the plan."""

    def progress(self) -> Any:
        """Return how far it has come, as the agent's progress message."""


C = TypeVar("C", bound=Core)


@dataclass(slots=True)
class PartitionWork(Generic[C]):
    """One assigned partition.

    Args:
        tp: the partition.
        core: its pure state.
        starts_at: where decisions go on.
        end_at_start: what has to be read before the process has caught up.
    """

    tp: TP
    core: C
    starts_at: int
    end_at_start: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    owes_outputs: bool = False
    """Whether outputs of what the core has taken are not acknowledged: until they are, progress must not count it."""
    owes_progress: bool = False
    """Whether outputs were written that the written progress does not count."""
    written_offset: int = -1
    written_s: float = 0.0
    moved_s: float = field(default_factory=time.monotonic)
    at_end_s: float = field(default_factory=time.monotonic)
    """When it was last seen to be read to its end."""
    counted: dict[str, int] = field(default_factory=dict)
    skipped_seen: int = 0

    @property
    def position(self) -> int:
        """Offset of the next record to decide on."""
        return max(self.core.next_offset, self.starts_at)

    @property
    def progress_age_s(self) -> float:
        """How long ago progress was written."""
        return time.monotonic() - self.written_s

    @property
    def has_news(self) -> bool:
        """Whether something happened that the written progress does not say and may say.

        What is read a second time lies below it.
        """
        return not self.owes_outputs and self.core.next_offset > max(self.written_offset, 0)


class PartitionAgent(ABC, Generic[C, P]):
    """An agent whose state is one pure core per partition.

    Args:
        settings: the settings in force.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    progress_topic: ClassVar[str]
    contract: ClassVar[TypeAdapter[Any]]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = get_logger(agent=self.name)
        self.app: Any = BatchApp(settings, self.name)
        self.topic = self.app.batch_topic(settings.topic(self.source))
        self.works: dict[int, PartitionWork[C]] = {}
        self.assigned: set[int] | None = None
        self._loading = asyncio.Lock()
        self._output: Output | None = None
        self.app.on_partitions_assigned.connect(self._on_assigned, weak=False)
        self.app.on_partitions_revoked.connect(self._on_revoked, weak=False)
        self.app.agent(self.topic, name=self.name)(self._run)
        self.app.timer(TIMER_S)(self._on_timer)

    @abstractmethod
    def new_core(self, partition: int, progress: P | None) -> C:
        """Return the state of a partition that was just assigned."""

    @abstractmethod
    async def emit(self, outputs: list[Emit], tp: TP) -> None:
        """Write a core's own outputs and wait until they are acknowledged."""

    @abstractmethod
    def observe(self, work: PartitionWork[C], progress: P) -> None:
        """Update the metrics of a partition."""

    async def idle(self, work: PartitionWork[C]) -> None:
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
        behind = [number for number in self.assigned if not self._caught_up(number)]
        return f"catches up on partitions {behind}" if behind else None

    def stuck(self) -> str | None:
        """Return why only a restart helps, or None."""
        if self.app.crashed:
            return "crashed"
        now_s = time.monotonic()
        stuck = [
            number
            for number, work in self.works.items()
            if self._is_behind(work) and now_s - max(work.moved_s, work.at_end_s) > STUCK_AFTER_S
        ]
        return f"no progress for {STUCK_AFTER_S:g} s on partitions {stuck}" if stuck else None

    def _caught_up(self, number: int) -> bool:
        """Return whether a partition was read to where it ended when it was assigned."""
        work = self.works.get(number)
        return work is not None and self._read_to(work) >= work.end_at_start

    def _is_behind(self, work: PartitionWork[C]) -> bool:
        """Return whether a partition holds records that are known and not taken."""
        return self._read_to(work) < (self._end(work.tp) or 0)

    def _read_to(self, work: PartitionWork[C]) -> int:
        """Return how far a partition was read, past what holds no record."""
        read_to: int = self.app.consumer.read_past(work.tp, work.position)
        return read_to

    def _end(self, tp: TP) -> int | None:
        """Return where a partition's log ends, as far as is known."""
        end: int | None = self.app.consumer.highwater(tp)
        return end

    async def _run(self, stream: Any) -> None:
        """Take chunk after chunk; what is raised here ends the process with the chunk uncommitted."""
        chunks: AsyncIterator[Chunk] = stream
        async for chunk in chunks:
            with translate_kafka_errors(self.settings):
                await self._on_chunk(chunk)

    async def _on_chunk(self, chunk: Chunk) -> None:
        """Carry out what follows from a chunk."""
        work = await self._work(chunk.tp)
        async with work.lock:
            plan: Plan = []
            take = work.core.take
            work.owes_outputs = True  # and for good where a step below fails: the timer writes progress too
            for record in chunk:
                take(record, plan)
            work.moved_s = time.monotonic()
            await self._carry_out(plan, chunk.tp)
            work.owes_outputs = False
            work.owes_progress = work.owes_progress or bool(plan)
            if work.progress_age_s >= (PROGRESS_AFTER_OUTPUT_S if work.owes_progress else PROGRESS_EVERY_S):
                await self._write_progress(work)

    async def _carry_out(self, plan: Plan, tp: TP) -> None:
        """Write everything a plan says and wait until it is acknowledged."""
        if not plan:
            return
        emitted = [output for output in plan if isinstance(output, Emit)]
        aside: dict[EventOutcome, list[SetAside]] = {}
        for output in plan:
            if isinstance(output, SetAside):
                aside.setdefault(output.outcome, []).append(output)
        await asyncio.gather(
            self.emit(emitted, tp), *(self._set_aside(outcome, outputs, tp) for outcome, outputs in aside.items())
        )

    async def _set_aside(self, outcome: EventOutcome, outputs: Iterable[SetAside], tp: TP) -> None:
        """Write records to the topic of their outcome, unchanged, in the partition they came from."""
        topic = self.settings.topic(ASIDE_TOPICS[outcome])
        await self.output.send(topic, tp.partition, [self._aside_record(output, tp) for output in outputs])
        if outcome is EventOutcome.DEAD_LETTERED:
            for output in outputs:
                metrics.DEAD_LETTERS.labels(self.name, output.reason).inc()

    def _aside_record(self, output: SetAside, tp: TP) -> OutRecord:
        """Return a record as it goes aside."""
        record = output.record
        headers = set_aside_headers(
            self.source, tp.partition, record.offset, stage=self.name, reason=output.reason, error=output.error
        )
        return OutRecord(record.key, record.value or b"", headers)

    async def _write_progress(self, work: PartitionWork[C]) -> None:
        """Write how far a partition has come, then let the committed offset follow."""
        if not work.has_news:
            return
        progress = work.core.progress()
        record = OutRecord(b"%d" % work.tp.partition, encode(progress))
        held_offset = self.app.consumer.hold.get(work.tp, 0)
        await self.output.send(self.settings.topic(self.progress_topic), work.tp.partition, [record])
        self.app.consumer.hold[work.tp] = progress.hold_offset
        work.written_offset, work.written_s = progress.next_offset, time.monotonic()
        work.owes_progress = False
        metrics.STAGE_PROGRESS.labels(self.name).set(time.time())
        self.observe(work, progress)
        if work.core.skipped_offsets > work.skipped_seen:
            work.skipped_seen = work.core.skipped_offsets
            await self._report_lost(work, held_offset)

    async def _report_lost(self, work: PartitionWork[C], held_offset: int) -> None:
        """Say that records are gone, where skipped offsets mean that.

        Kafka deletes at the beginning of a log only: where that lies below what was held, they are transactions' marks.
        """
        begins = await self.app.consumer.earliest_offsets(work.tp)
        if begins[work.tp] > held_offset:
            self.log.error("records lost", partition=work.tp.partition, records=work.core.skipped_offsets,
                           fix="Kafka deleted them before they were read: raise the topic's retention")  # fmt: skip

    def count(self, work: PartitionWork[C], counts: dict[str, int], add: Callable[[str, int], None]) -> None:
        """Add to counters what has come since the last time."""
        for name, now in counts.items():
            if now > work.counted.get(name, 0):
                add(name, now - work.counted.get(name, 0))
        work.counted = counts

    async def _on_timer(self) -> None:
        """Load what was assigned, keep the written progress fresh, and let idle partitions be looked after."""
        if self.app.rebalancing or self.assigned is None:
            return
        with translate_kafka_errors(self.settings):
            await self._load(self.assigned)
            for work in list(self.works.values()):
                if not self._is_behind(work):
                    work.at_end_s = time.monotonic()
                if work.lock.locked():
                    continue
                async with work.lock:
                    if work.owes_progress or work.progress_age_s >= PROGRESS_EVERY_S:
                        await self._write_progress(work)
                    await self.idle(work)

    async def _work(self, tp: TP) -> PartitionWork[C]:
        """Return the state of a partition, loaded where it is new."""
        if tp.partition not in self.works:
            await self._load({tp.partition, *(self.assigned or ())})
        return self.works[tp.partition]

    async def _load(self, numbers: set[int]) -> None:
        """Take up partitions where the last process left them."""
        async with self._loading:
            missing = numbers - self.works.keys()
            if not missing:
                return
            standings: dict[int, Standing[P]] = await read_standings(
                self.settings,
                missing,
                source=self.source,
                progress_topic=self.progress_topic,
                contract=self.contract,
            )
            for number in missing & (self.assigned or set()):
                self.works[number] = self._take_up(number, standings[number])

    def _take_up(self, number: int, standing: Standing[P]) -> PartitionWork[C]:
        """Return the state of a partition as its standing says."""
        progress = standing.progress
        starts_at = standing.begin_offset if progress is None else progress.next_offset
        tp = TP(self.settings.topic(self.source), number)
        work = PartitionWork(tp, self.new_core(number, progress), starts_at, standing.end_offset)
        # without a hold, what is only repeated or not counted yet would be committed as finished
        self.app.consumer.hold[tp] = standing.begin_offset if progress is None else progress.hold_offset
        if progress is not None:
            work.written_offset = progress.next_offset
            self.begin_counting(work, progress)
        self.log.info(
            "partition taken up", partition=number, next_offset=work.position, hold_offset=self.app.consumer.hold[tp]
        )
        return work

    @abstractmethod
    def begin_counting(self, work: PartitionWork[C], progress: P) -> None:
        """Take what was counted by an earlier process as already on the metrics."""

    async def _on_assigned(self, _app: Any, assigned: Iterable[TP], **_: Any) -> None:
        """Take note of the partitions; their state is loaded outside the rebalance."""
        self.assigned = {tp.partition for tp in assigned if tp.topic == self.settings.topic(self.source)}
        self.log.info("partitions assigned", partitions=sorted(self.assigned))

    async def _on_revoked(self, _app: Any, revoked: Iterable[TP], **_: Any) -> None:
        """Forget partitions; whoever gets them next reads their progress."""
        for tp in revoked:
            self.works.pop(tp.partition, None)
        self.assigned = None

"""The join agent: `search-events` -> `joined-searches`, with what could not be joined on topics of its own."""

import time
from typing import ClassVar

from faust.types import TP
from pydantic import TypeAdapter
from typing_extensions import override

from contracts.progress import JoinProgress
from contracts.telemetry import EventOutcome
from contracts.topics import JOIN_PROGRESS, JOINED_SEARCHES, SEARCH_EVENTS
from service import metrics
from streams.agents.outputs import TURN_HEADER, Emit
from streams.agents.partition_agent import PartitionAgent, PartitionWork
from streams.join.partition_join import PartitionJoin
from streams.join.ticks import is_due, now_ms, tick_value
from streams.transport.output import OutRecord

CLOSED_AT_HEADER = "millrace.closed_at_ms"
"""When the join wrote a closed search, by the wall clock: a stage's time, outside the message so that replays agree."""


class JoinAgent(PartitionAgent[PartitionJoin, JoinProgress]):
    """Joins impressions with what followed them."""

    name = "join"
    source = SEARCH_EVENTS
    progress_topic = JOIN_PROGRESS
    contract: ClassVar[TypeAdapter[JoinProgress]] = TypeAdapter(JoinProgress)

    @override
    def new_core(self, partition: int, progress: JoinProgress | None) -> PartitionJoin:
        """Return the join of a partition."""
        return PartitionJoin(
            partition,
            window_ms=self.settings.join_window_ms,
            lateness_ms=self.settings.lateness_ms,
            progress=progress,
        )

    @override
    async def emit(self, outputs: list[Emit], tp: TP) -> None:
        """Write closed searches, keyed by session."""
        closed_at = (CLOSED_AT_HEADER, b"%d" % now_ms())
        records = [
            OutRecord(output.key, output.value, [closed_at, (TURN_HEADER, output.turn.encode())])
            for output in outputs
            if output.turn is not None
        ]
        await self.output.send_keyed(self.settings.topic(JOINED_SEARCHES), self.settings.partitions, records)

    @override
    async def idle(self, work: PartitionWork[PartitionJoin]) -> None:
        """Append a tick where the partition is quiet."""
        idle_s = time.monotonic() - work.moved_s
        tick_ms = work.core.tick_time_ms(now_ms())
        if tick_ms is None or work.core.replaying:
            return
        if is_due(position=self._read_to(work), end=self._end(work.tp), idle_s=idle_s):
            await self.output.send(work.tp.topic, work.tp.partition, [OutRecord(None, tick_value(tick_ms))])
            work.moved_s = time.monotonic()

    @override
    def begin_counting(self, work: PartitionWork[PartitionJoin], progress: JoinProgress) -> None:
        """Count on from what an earlier process counted."""
        work.counted = progress.counts.model_dump()

    @override
    def observe(self, work: PartitionWork[PartitionJoin], progress: JoinProgress) -> None:
        """Show outcomes, the watermark and how many searches are open."""
        outcomes = {name: n for name, n in work.core.counts().items() if name not in {"ticks", EventOutcome.PENDING}}
        self.count(work, outcomes, lambda name, n: metrics.EVENT_OUTCOMES.labels(name).inc(n))
        metrics.STAGE_WATERMARK.labels(self.name, str(work.tp.partition)).set(progress.watermark_ms / 1000)
        metrics.JOIN_OPEN.set(sum(other.core.open_searches for other in self.works.values()))
        if work.core.replay_mismatch:
            work.core.replay_mismatch = False
            self.log.error(
                "records lost", partition=work.tp.partition, open_searches=progress.open_searches,
                fix="Kafka deleted records that were still pending: raise the topic's retention",
            )  # fmt: skip

"""The join agent: `search-events` -> `joined-searches`, with what could not be joined on topics of its own."""

import time

from typing_extensions import override

from contracts.progress import JoinProgress
from service import metrics
from service.clock import epoch_ms
from streams.agents.partition_agent import OwnedPartition, PartitionAgent
from streams.join.partition_join import PartitionJoin
from streams.join.ticks import is_due, tick_value
from streams.transport.output import OutRecord


class JoinAgent(PartitionAgent[PartitionJoin, JoinProgress]):
    """Joins impressions with what followed them; while a partition is quiet, ticks move its event time."""

    @override
    async def idle(self, owned: OwnedPartition[PartitionJoin, JoinProgress]) -> None:
        """Append a tick if one is due."""
        idle_s = time.monotonic() - owned.moved_s
        tick_ms = owned.state.tick_time_ms(epoch_ms())
        if tick_ms is None or owned.state.replaying:
            return
        if is_due(position=self.read_to(owned), end=self.end(owned.tp), idle_s=idle_s):
            await self.output.send(owned.tp.topic, owned.tp.partition, [OutRecord(None, tick_value(tick_ms))])
            owned.moved_s = time.monotonic()

    @override
    def observe(self, owned: OwnedPartition[PartitionJoin, JoinProgress], progress: JoinProgress) -> None:
        """Show how many searches are open, and say if a restart could not rebuild them all."""
        metrics.JOIN_OPEN.set(sum(other.state.open_searches for other in self.owned.values()))
        if owned.state.replay_mismatch:
            owned.state.replay_mismatch = False
            self.log.error(
                "records_lost", partition=owned.tp.partition, open_searches=progress.open_searches,
                fix="Kafka deleted records that were still pending: raise the topic's retention",
            )  # fmt: skip

"""The join agent: `search-events` -> `joined-searches`, with what could not be joined on topics of its own."""

import time
from typing import Final

from typing_extensions import override

from contracts.events import Tick
from contracts.progress import JoinProgress
from contracts.wire import encode
from service import metrics
from service.machine import epoch_ms
from streams.agents.partition_agent import OwnedPartition, PartitionAgent
from streams.join.partition_join import PartitionJoin
from streams.transport.output import OutRecord

IDLE_S: Final = 1.0
"""How long a partition is quiet before a tick is due."""


class JoinAgent(PartitionAgent[PartitionJoin, JoinProgress]):
    """Joins impressions with what followed them.

    While a partition is quiet, ticks move its event time: else the last searches of an evening would stay open until
    the next morning. A tick is a record like any other: what it closed, every replay closes at the same place.
    """

    @override
    async def idle(self, owned: OwnedPartition[PartitionJoin, JoinProgress]) -> None:
        """Append a tick to a partition that was read to its end and is quiet."""
        tick_ms, end = owned.state.tick_time_ms(epoch_ms()), self.end(owned.tp)
        if tick_ms is None or owned.state.replaying or end is None or self.read_to(owned) < end:
            return
        if time.monotonic() - owned.moved_s >= IDLE_S:
            tick = OutRecord(None, encode(Tick(type="tick", event_time=tick_ms)))
            await self.output.send(owned.tp.topic, owned.tp.partition, [tick])
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

"""The propensity agent: every worker sums what its partitions say; who owns partition 0 publishes.

The sums of all partitions are on `propensity-progress`, counted once each whatever was killed. The owner of partition 0
reads them there, so no sums travel and none is added twice.
"""

import asyncio
import time
from typing import Any, Final

from typing_extensions import override

from contracts.errors import DependencyDown
from contracts.propensities import CellPropensities
from contracts.topics import PROPENSITIES
from contracts.wire import encode
from service import metrics
from service.machine import epoch_ms
from streams.agents.partition_agent import OwnedPartition, PartitionAgent
from streams.agents.progress import read_progress
from streams.propensity.partition_propensity import PartitionPropensity, PropensityProgress
from streams.propensity.publishing import due_versions, outdated
from streams.propensity.reader import PropensityReader
from streams.transport.output import OutRecord, Tombstone

LOOKS_PER_INTERVAL: Final = 5
"""How often it is looked whether a version is due: often enough that none is late by more than a fifth."""
PROGRESS_TAIL: Final = 20
"""Records of each partition's progress that are read at a look; with many cells one is half a megabyte."""
LONGEST_LOOK_S: Final = 20.0
"""A look that took longer publishes nothing: somebody else may own partition 0 by now."""


class PropensityAgent(PartitionAgent[PartitionPropensity, PropensityProgress]):
    """Sums evidence, and publishes propensities where it owns partition 0."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader = PropensityReader(self.settings)
        self._looked_s = -float("inf")
        self._is_told = False
        """Whether it was said that nothing can be published."""

    @override
    async def idle(self, owned: OwnedPartition[PartitionPropensity, PropensityProgress]) -> None:
        """Publish what is due, once in a while; while Kafka is away there is nothing to publish from."""
        look_every_s = self.settings.propensity_interval_s / LOOKS_PER_INTERVAL
        if owned.tp.partition != 0 or time.monotonic() - self._looked_s < look_every_s:
            return
        self._looked_s = time.monotonic()
        problem: DependencyDown | None = None
        try:
            await self._publish_due(owned)
        except DependencyDown as error:
            problem = error
        except TimeoutError:
            told = f"Kafka did not answer for {LONGEST_LOOK_S:g} s"
            problem = DependencyDown(told, fix="look at the brokers' log; it is tried again")
        if problem is not None and not self._is_told:
            self.log.warning("propensities_not_published", error=problem.message, fix=problem.fix)
        self._is_told = problem is not None

    async def _publish_due(self, owned: OwnedPartition[PartitionPropensity, PropensityProgress]) -> None:
        began_s = time.monotonic()
        async with asyncio.timeout(LONGEST_LOOK_S):
            await self._reader.read_on()
            progresses = await read_progress(self.settings, self.spec, tail=PROGRESS_TAIL)
        interval_ms = round(self.settings.propensity_interval_s * 1000)
        newest = self._reader.newest()
        due = await asyncio.to_thread(due_versions, progresses, newest, now_ms=epoch_ms(), interval_ms=interval_ms)
        if time.monotonic() - began_s > LONGEST_LOOK_S or self.owned.get(0) is not owned or not due:
            return
        old = outdated([*self._reader.versions.values(), *(one.name for one in due)], seen_ms=due[0].estimated_at)
        records: list[OutRecord | Tombstone] = [OutRecord(one.key, encode(one)) for one in due]
        records += [Tombstone(one.key) for one in old]
        await self.output.send(self.settings.topic(PROPENSITIES), 0, records)
        for one in due:
            self._tell(one)
        newest |= {one.cell: one for one in due}
        metrics.TRUST_ALARMS.set(sum(one.trust_alarm for one in newest.values()))

    def _tell(self, published: CellPropensities) -> None:
        metrics.PROPENSITY_VERSIONS.inc()
        about = {"cell": published.cell.key, "version": published.version, "effective_from": published.effective_from}
        self.log.info("propensities_published", lists=published.lists, **about)
        if published.trust_alarm:
            self.log.warning("trust_bias", fix="`millrace propensities --json` shows the lines fitted", **about)

"""The pairs agent: `joined-searches` -> `preference-pairs`."""

from typing import ClassVar

from faust.types import TP
from pydantic import TypeAdapter
from typing_extensions import override

from contracts.progress import PairsProgress
from contracts.topics import JOINED_SEARCHES, PAIRS_PROGRESS, PREFERENCE_PAIRS
from service import metrics
from streams.agents.outputs import Emit
from streams.agents.partition_agent import PartitionAgent, PartitionWork
from streams.join.agent import CLOSED_AT_HEADER
from streams.join.ticks import now_ms
from streams.pairs.pairing import SOURCE
from streams.pairs.partition_pairs import PartitionPairs
from streams.transport.output import OutRecord

PAIRED_AT_HEADER = "millrace.paired_at_ms"
"""When the pair was written, by the wall clock."""


class PairsAgent(PartitionAgent[PartitionPairs, PairsProgress]):
    """Makes preference pairs of joined searches."""

    name = "pairs"
    source = JOINED_SEARCHES
    progress_topic = PAIRS_PROGRESS
    contract: ClassVar[TypeAdapter[PairsProgress]] = TypeAdapter(PairsProgress)

    @override
    def new_core(self, partition: int, progress: PairsProgress | None) -> PartitionPairs:
        """Return the pairing of a partition."""
        return PartitionPairs(partition, progress=progress)

    @override
    async def emit(self, outputs: list[Emit], tp: TP) -> None:
        """Write pairs, keyed by search, with the stages' times."""
        paired_at = (PAIRED_AT_HEADER, b"%d" % now_ms())
        records = [OutRecord(output.key, output.value, [*_stage_times(output), paired_at]) for output in outputs]
        await self.output.send_keyed(self.settings.topic(PREFERENCE_PAIRS), self.settings.partitions, records)

    @override
    def begin_counting(self, work: PartitionWork[PartitionPairs], progress: PairsProgress) -> None:
        """Count on from what an earlier process counted."""
        work.counted = _counts(progress)

    @override
    def observe(self, work: PartitionWork[PartitionPairs], progress: PairsProgress) -> None:
        """Show outcomes, pairs and the newest search seen."""
        self.count(work, _counts(progress), _add)
        if work.core.closed_at_ms > 0:
            partition = str(work.tp.partition)
            metrics.STAGE_WATERMARK.labels(self.name, partition).set(work.core.closed_at_ms / 1000)


def _stage_times(output: Emit) -> list[tuple[str, bytes]]:
    """Return the times that earlier stages put on the record a pair was made of."""
    headers = getattr(output.record, "headers", ())
    return [(name, value) for name, value in headers if name == CLOSED_AT_HEADER]


def _counts(progress: PairsProgress) -> dict[str, int]:
    """Return the counts as one level: outcome/reason -> number."""
    counts = progress.counts
    return {
        "pairs": progress.pairs,
        "paired/": counts.paired,
        "held_out/": counts.held_out,
        **{f"filtered/{reason}": n for reason, n in counts.filtered.items()},
        **{f"unpaired/{reason}": n for reason, n in counts.unpaired.items()},
    }


def _add(name: str, n: int) -> None:
    """Add to the metric that a count belongs to."""
    if name == "pairs":
        metrics.PAIRS_BUILT.labels(SOURCE).inc(n)
        return
    outcome, _, reason = name.partition("/")
    metrics.SEARCH_OUTCOMES.labels(outcome, reason).inc(n)

"""Consumer lag per group and partition, measured from outside the consumers.

A consumer that hangs reports whatever it last knew; the log's end and the group's position do not. Agents, which hold
commits back on purpose, are measured by their progress records, and what they hold is shown apart.
"""

from dataclasses import asdict, dataclass
from typing import Any

from millrace.watch.facts import KafkaFacts
from service.kafka import Committed, OffsetRange
from streams.registry import group_topics


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Lag of one group in one partition, in records."""

    group: str
    topic: str
    partition: int
    position: int
    end: int
    lag: int
    held: int
    """Read already, but to be read again after a restart."""


def partition_lags(facts: KafkaFacts) -> list[PartitionLag]:
    """Return the lag of every group, partition by partition."""
    return [
        _lag(facts, group, topic, partition, ends)
        for group, read in group_topics().items()
        for topic in read
        for partition, ends in facts.partitions(topic)
    ]


def _lag(facts: KafkaFacts, group: str, topic: str, partition: int, ends: OffsetRange) -> PartitionLag:
    committed = facts.committed.get(group, {}).get((topic, partition), Committed(ends.begin, "")).offset
    progress = facts.progress_of(group, partition)
    position, hold = (committed, committed) if progress is None else (progress.next_offset, progress.hold_offset)
    position = max(position, ends.begin)
    lag, held = max(ends.end - position, 0), max(position - hold, 0)
    return PartitionLag(group, topic, partition, position, ends.end, lag, held)


def lag_report(facts: KafkaFacts) -> dict[str, Any]:
    """Return the lag as stable JSON: totals per group and every partition."""
    rows = partition_lags(facts)
    groups = {
        group: {
            "records": sum(row.lag for row in rows if row.group == group),
            "held": sum(row.held for row in rows if row.group == group),
            "worst_partition": max((row.lag for row in rows if row.group == group), default=0),
        }
        for group in group_topics()
    }
    return {"groups": groups, "partitions": [asdict(row) for row in rows]}

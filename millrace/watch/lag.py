"""Consumer lag per group and partition, measured from outside the consumers.

A consumer that hangs reports whatever it last knew; the log's end and the group's position do not. The two agents that
hold commits back on purpose are measured by their progress records, and what they hold is shown apart.
"""

from dataclasses import asdict, dataclass
from typing import Any

from contracts.topics import GROUP_TOPICS, JOINED_SEARCHES, SEARCH_EVENTS
from millrace.watch.facts import KafkaFacts
from service.kafka import Committed, OffsetRange


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


BUILT_GROUPS = ("join", "pairs", "trainer", "indexer")


def partition_lags(facts: KafkaFacts) -> list[PartitionLag]:
    """Return the lag of every group that this version runs, partition by partition."""
    return [
        _lag(facts, group, topic, partition, ends)
        for group in BUILT_GROUPS
        for topic in GROUP_TOPICS[group]
        for partition, ends in facts.partitions(topic)
    ]


def _lag(facts: KafkaFacts, group: str, topic: str, partition: int, ends: OffsetRange) -> PartitionLag:
    committed = facts.committed.get(group, {}).get((topic, partition), Committed(ends.begin, "")).offset
    position, hold = _progress(facts, topic, partition) or (committed, committed)
    position = max(position, ends.begin)
    lag, held = max(ends.end - position, 0), max(position - hold, 0)
    return PartitionLag(group, topic, partition, position, ends.end, lag, held)


def _progress(facts: KafkaFacts, topic: str, partition: int) -> tuple[int, int] | None:
    if topic == SEARCH_EVENTS and partition in facts.join:
        return facts.join[partition].next_offset, facts.join[partition].hold_offset
    if topic == JOINED_SEARCHES and partition in facts.pairs:
        return facts.pairs[partition].next_offset, facts.pairs[partition].hold_offset
    return None


def lag_report(facts: KafkaFacts) -> dict[str, Any]:
    """Return the lag as stable JSON: totals per group and every partition."""
    rows = partition_lags(facts)
    groups = {
        group: {
            "records": sum(row.lag for row in rows if row.group == group),
            "held": sum(row.held for row in rows if row.group == group),
            "worst_partition": max((row.lag for row in rows if row.group == group), default=0),
        }
        for group in BUILT_GROUPS
    }
    return {"groups": groups, "partitions": [asdict(row) for row in rows]}

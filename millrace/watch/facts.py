"""Facts read from Kafka at one moment, before anything is concluded from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from contracts import wire
from contracts.progress import CatalogCounts, PartitionProgress
from service.kafka import Committed, OffsetRange, Partition

_CATALOG_COUNTS = TypeAdapter(CatalogCounts)


@dataclass(frozen=True, slots=True)
class Tail:
    """Records of `search-events` that the join had not read when the facts were taken, counted by reading them."""

    events: int
    ticks: int


@dataclass(frozen=True, slots=True)
class KafkaFacts:
    """One look at Kafka. Topics and groups are named without the deployment's prefix.

    Args:
        ends: (topic, partition) -> first offset kept and next offset to come.
        committed: group -> (topic, partition) -> what the group committed.
        progress: agent -> partition -> its last progress.
        tails: partition of `search-events` -> what lies between the join's `next_offset` and the end.
    """

    ends: Mapping[Partition, OffsetRange]
    committed: Mapping[str, Mapping[Partition, Committed]] = field(default_factory=dict)
    progress: Mapping[str, Mapping[int, PartitionProgress]] = field(default_factory=dict)
    tails: Mapping[int, Tail] = field(default_factory=dict)

    def partitions(self, topic: str) -> list[tuple[int, OffsetRange]]:
        """Return the partitions of a topic in order, with what each holds."""
        return sorted((number, ends) for (name, number), ends in self.ends.items() if name == topic)

    def progress_of(self, agent: str, partition: int) -> PartitionProgress | None:
        """Return an agent's last progress in a partition, or None if it has written none."""
        return self.progress.get(agent, {}).get(partition)


def catalog_counts(metadata: str) -> CatalogCounts:
    """Return the indexer's counts from its commit metadata; zeros where it has not committed.

    Raises:
        MalformedMessage: somebody else committed for the group with a text of their own.

    >>> catalog_counts("").catalogue
    0
    """
    return wire.decode(metadata.encode(), _CATALOG_COUNTS) if metadata else CatalogCounts()

"""Gives every partition to one member of the group: there is one model, so there is one trainer.

Whoever holds the partitions keeps them while it is in the group; the others stand by and one of them takes over when
it has gone. A member says with each join in which generation it last held them, so that one which was stalled and
comes back does not take them from its successor.
"""

from collections.abc import Iterable
from typing import Any, Final

from kafka.cluster import ClusterMetadata
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from typing_extensions import override

NEVER: Final = -1
VERSION: Final = 0


class SoleAssignor(AbstractPartitionAssignor):  # type: ignore[misc] # kafka-python ships without types
    """One instance per consumer; remembers when its consumer last held the partitions."""

    name = "millrace-sole"

    def __init__(self) -> None:
        self._held_generation = NEVER

    @override
    def metadata(self, topics: Iterable[str]) -> Any:
        """Return what this member tells the group at each join."""
        return ConsumerProtocolSubscription(VERSION, list(topics), str(self._held_generation).encode())

    @override
    def assign(self, cluster: ClusterMetadata, members: Iterable[Any]) -> dict[str, Any]:
        """Return each member's assignment: everything for one, nothing for the others."""
        told = {member.member_id: member.metadata for member in members}
        holder = max(told, key=lambda member_id: (_generation(told[member_id].user_data), member_id))
        topics = sorted(told[holder].topics)
        everything = [(topic, sorted(cluster.partitions_for_topic(topic) or ())) for topic in topics]
        return {
            member_id: ConsumerProtocolAssignment(VERSION, everything if member_id == holder else [], b"")
            for member_id in told
        }

    @override
    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Remember the generation if this member holds the partitions in it."""
        if any(partitions for _, partitions in assignment.assigned_partitions):
            self._held_generation = generation


def _generation(user_data: bytes | None) -> int:
    """Return in which generation a member last held the partitions."""
    try:
        return int(user_data or NEVER)
    except ValueError:
        return NEVER

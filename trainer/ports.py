"""What the loop needs of the world; each port has one real adapter and one fake for tests."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from contracts.releases import Kind, Serving
from trainer.core.learner import Products
from trainer.core.records import PairRecord
from trainer.core.state import Snapshot

__all__ = ["CheckpointStore", "ModelsView", "PairSource", "Products", "ReleaseWriter"]


class PairSource(Protocol):
    """`preference-pairs`, read by the one trainer that holds all of its partitions."""

    def held(self) -> bool:
        """Return whether this trainer holds every partition, after answering the group."""

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read on from these offsets; partitions that are not named are read from their beginning."""

    def poll(self, timeout_s: float) -> list[PairRecord]:
        """Return records in the order of each partition, none where the time is over.

        Raises:
            TransientError: another trainer holds the partitions now.
        """

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit as the member that holds the partitions.

        Raises:
            TransientError: it does not hold them any more.
        """


class CheckpointStore(Protocol):
    """Durable states, newest last."""

    def save(self, snapshot: Snapshot) -> None:
        """Make a state durable before returning."""

    def load(self) -> Snapshot | None:
        """Return the newest state that is whole, None where there is none."""


class ModelsView(Protocol):
    """`models` as it has been read so far."""

    def serving(self) -> Serving | None:
        """Return the pair in force, None where the topic names none."""

    def value(self, key: str) -> bytes | None:
        """Return a release's bytes, None where it is unknown or retired."""

    def seen(self, key: str) -> bool:
        """Return whether a release ever stood there, retired ones included."""

    def keys(self) -> Sequence[str]:
        """Return the releases that stand there."""

    def first_queries(self) -> Mapping[int, int]:
        """Return, for each product release that stands there, its first query release."""

    def highest(self, kind: Kind) -> int:
        """Return the highest number that a kind of release ever had there, 0 where none."""


class ReleaseWriter(Protocol):
    """Writes to `models`; every call returns after Kafka's acknowledgement."""

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Write releases in the order given."""

    def retire(self, keys: Sequence[str]) -> None:
        """Write tombstones."""

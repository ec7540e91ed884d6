"""What the indexer's loops need of Kafka. Each has one real adapter, and a fake in the tests.

The vector store needs no port: `ProductStore` takes any client of Qdrant's, in memory too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from contracts.errors import TransientError
from contracts.releases import Serving
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.planning import CatalogRecord, PartitionProgress, Refusal
from indexer.points import InForce


class Stopped(Exception):
    """The process is asked to stop in the middle of something, which is begun again after the restart."""


class PartitionsMoved(TransientError):
    """The group has given partitions to another member, who reads again what was not committed here."""


class CatalogSource(Protocol):
    """The catalogue as one member of the consumer group reads it."""

    def poll(self, most: int) -> list[CatalogRecord]:
        """Return the next records, none if there are none now."""
        ...

    def look_ahead(self) -> list[CatalogRecord]:
        """Return the last records that were not polled yet, each once; all of them will be polled in their turn."""
        ...

    def progress(self, partition: int) -> PartitionProgress:
        """Return how far a partition was worked off."""
        ...

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Keep how far partitions were worked off, with the counts.

        Raises:
            PartitionsMoved: the group has given one of them to another member.
        """
        ...

    def confirm(self, partitions: Iterable[int]) -> None:
        """Let the group confirm that this member holds partitions at this moment.

        Raises:
            PartitionsMoved: it does not.
        """
        ...

    def keep_membership(self) -> None:
        """Tell the group that this member lives while it works on a batch; reads nothing.

        Raises:
            PartitionsMoved: the group has moved partitions; the batch is read again by whoever holds them now.
        """
        ...

    def start_again(self) -> None:
        """Go back to what was committed."""
        ...


class VectorLog(Protocol):
    """`product-vectors`, and where refused records go. Everything is acknowledged on return."""

    @property
    def known(self) -> BaseVectors:
        """What is known of every product, kept current with what the others of the group write."""
        ...

    def publish(self, products: Sequence[BaseProduct]) -> None:
        """Write base vectors to `product-vectors`."""
        ...

    def forget(self, product_ids: Sequence[str]) -> None:
        """Write nulls to `product-vectors`: products that were deleted long ago."""
        ...

    def read_to_end(self) -> None:
        """Return once the base vectors hold every record that was acknowledged on the topic before the call.

        Raises:
            DependencyDown: they do not in time.
        """
        ...

    def complete(self) -> None:
        """Return once the base vectors hold every product: as `read_to_end`, and none is of another base.

        Raises:
            DependencyDown: Kafka does not answer.
            Stopped: asked to stop in the middle; what was encoded is kept.
        """
        ...

    def set_aside(self, refusals: Sequence[Refusal]) -> None:
        """Write refused records to `dead-letters`, bytes as they came."""
        ...


AskInForce = Callable[[], InForce]
"""Returns what is in force at the moment of asking, as the topic itself says.

Raises DependencyDown or TransientError if that cannot be known.
"""


class PutInForce(Protocol):
    """Writes to `models`."""

    def __call__(self, serving: Serving, releases: Mapping[str, bytes] = ...) -> None:
        """Put releases in force, after writing those that come with it; return once the topic shows them."""


Pause = Callable[[float], bool]
"""Pauses for so many seconds; True means that the process is asked to stop."""

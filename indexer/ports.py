"""What the indexer's lanes need of the world. Each has one real adapter, and a fake in the tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from contracts.catalog import PointVersion, ProductVector
from contracts.releases import ReleaseManifest, Serving
from indexer.core.planner import CatalogRecord, PartitionProgress, Refusal
from indexer.core.points import ProductPoint


class LiveCounts(Protocol):
    """What a collection holds."""

    @property
    def live(self) -> int:
        """Products that can be found."""
        ...


class VectorStore(Protocol):
    """The index. Every call raises TransientError where the store may answer later."""

    def ensure_collection(self, name: str, dim: int, *, metadata: Mapping[str, Any] | None = None) -> bool:
        """Make a collection if there is none; return whether it was made."""
        ...

    def write(self, collection: str, points: Iterable[ProductPoint]) -> int:
        """Write points, each only where it is newer; stored and searchable on return."""
        ...

    def counts(self, collection: str) -> LiveCounts:
        """Return what a collection holds."""
        ...

    def retrieve(self, collection: str, product_ids: Sequence[str]) -> dict[str, ProductPoint]:
        """Return what is stored of these products."""
        ...

    def versions(self, collection: str) -> dict[str, PointVersion]:
        """Return the stored version of every product."""
        ...

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        ...

    def publish_alias(self, alias: str, collection: str) -> None:
        """Let an alias name a collection."""
        ...

    def alias_target(self, alias: str) -> str | None:
        """Return the collection that an alias names."""
        ...

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        ...


class Encoder(Protocol):
    """The base encoder."""

    dim: int
    base_version: str

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Return unit float32 rows (N, D)."""
        ...


class CatalogSource(Protocol):
    """The catalogue as one member of the consumer group reads it."""

    def poll(self) -> list[CatalogRecord]:
        """Return the next records, none where there are none now."""
        ...

    def progress(self, partition: int) -> PartitionProgress:
        """Return how far a partition was worked off."""
        ...

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Keep how far partitions were worked off, with the counts.

        Raises:
            TransientError: the group has given a partition to another member.
        """
        ...

    def keep_membership(self) -> None:
        """Tell the group that this member lives while it works on a batch; reads nothing.

        Raises:
            TransientError: the group has moved partitions; the batch is read again by whoever holds them now.
        """
        ...

    def start_again(self) -> None:
        """Go back to what was committed."""
        ...


class VectorLog(Protocol):
    """Where base vectors and dead letters are kept; acknowledged on return."""

    def publish(self, vectors: Sequence[ProductVector]) -> None:
        """Write base vectors to `product-vectors`."""
        ...

    def set_aside(self, refusals: Sequence[Refusal]) -> None:
        """Write refused records to `dead-letters`, bytes as they came."""
        ...


class ReleaseView(NamedTuple):
    """What stands on `models` now."""

    serving: Serving | None
    manifests: Mapping[bytes, ReleaseManifest]
    switches: int = 0
    """How often the collection in force was seen to change, between two looks too."""


class Releases(Protocol):
    """The topic `models`, read by everyone, `serving` written by the indexer alone."""

    def view(self) -> ReleaseView:
        """Return what stands there now."""
        ...

    def value(self, key: bytes) -> bytes | None:
        """Return a release's bytes."""
        ...

    def publish(self, serving: Serving) -> None:
        """Put a pair in force; returns once the topic shows it."""
        ...


class ShadowQueries(Protocol):
    """Searches that no shopper asked for, against a collection that is not in force yet."""

    def answered(self, collection: str, vectors: np.ndarray) -> int:
        """Return how many of the query vectors (N, D) found something."""
        ...


InForce = Callable[[], str]
"""Returns the collection that is in force at the moment of asking, as the topic itself says.

Raises DependencyDown or TransientError where that cannot be known.
"""

CatchUp = Callable[[], None]
"""Returns once the base vectors hold every record that was acknowledged on `product-vectors` before the call.

Raises DependencyDown or TransientError where they do not in time.
"""

Pause = Callable[[float], bool]
"""Pauses for so many seconds; True means that the process is asked to stop."""

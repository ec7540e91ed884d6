"""Stand-ins for what the indexer's lanes talk to; the vector store is Qdrant's own in-memory client."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from qdrant_client import QdrantClient
from typing_extensions import override

from contracts.catalog import CatalogChange, ProductVector
from contracts.errors import DependencyDown, TransientError
from contracts.progress import CatalogCounts
from contracts.releases import ReleaseManifest, Serving, release_key
from indexer.adapters.qdrant import ProductStore
from indexer.core.base_vectors import BaseProduct, BaseVectors
from indexer.core.planner import CatalogRecord, PartitionProgress, Refusal
from indexer.core.points import ProductPoint
from indexer.models_lane import ModelsLane
from indexer.parts import Parts
from indexer.ports import ReleaseView
from indexer.targets import Target, Targets
from service.settings import Settings
from tests.support.indexing import product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.heads import ProductHead
from towers.release_files import Release, pack
from towers.text import product_text, text_hash

TIME_MS = 1_795_196_600_000


def record(change: CatalogChange | bytes | None, offset: int = 0, partition: int = 0) -> CatalogRecord:
    """Return a record of `catalog`."""
    value = change if isinstance(change, bytes) or change is None else orjson.dumps(change.model_dump(mode="json"))
    key = b"poison" if isinstance(change, bytes) or change is None else change.product_id.encode()
    return CatalogRecord(partition, offset, TIME_MS, key, value)


class Catalog:
    """A catalogue in memory: hands out its records until they are committed."""

    def __init__(self, *batches: Sequence[CatalogRecord]) -> None:
        self.batches = list(batches)
        self.committed: dict[int, PartitionProgress] = {}
        self.membership_kept = 0
        self.started_again = 0
        self.loses_group = False
        self._at = 0

    def poll(self) -> list[CatalogRecord]:
        """Return the next batch."""
        self._at += 1
        return list(self.batches[self._at - 1]) if self._at <= len(self.batches) else []

    def progress(self, partition: int) -> PartitionProgress:
        """Return what was committed."""
        return self.committed.get(partition, PartitionProgress(0, CatalogCounts()))

    def commit(self, progress: Mapping[int, PartitionProgress]) -> None:
        """Keep the progress."""
        self.committed.update(progress)

    def keep_membership(self) -> None:
        """Note the call; raise where the group is to be lost."""
        self.membership_kept += 1
        if self.loses_group:
            self.loses_group = False
            raise TransientError("the group has moved partitions meanwhile")

    def start_again(self) -> None:
        """Hand the batch out again whose commit is missing."""
        self.started_again += 1
        self._at -= 1


class Log:
    """`product-vectors` and `dead-letters` in memory; refuses to acknowledge as often as told."""

    def __init__(self, *, failures: int = 0) -> None:
        self.vectors: list[ProductVector] = []
        self.refusals: list[Refusal] = []
        self.failures = failures

    def publish(self, vectors: Sequence[ProductVector]) -> None:
        """Keep base vectors."""
        self._maybe_fail()
        self.vectors += vectors

    def set_aside(self, refusals: Sequence[Refusal]) -> None:
        """Keep refused records."""
        self._maybe_fail()
        self.refusals += refusals

    def _maybe_fail(self) -> None:
        """Fail as often as told."""
        if self.failures:
            self.failures -= 1
            raise DependencyDown("Kafka does not acknowledge")


class FlakyStore(ProductStore):
    """The product store over the in-memory client, with failures and a note of every write."""

    def __init__(self) -> None:
        super().__init__(QdrantClient(":memory:"))
        self.failures = 0
        self.writes: list[tuple[str, list[str]]] = []

    @override
    def write(self, collection: str, points: Iterable[ProductPoint]) -> int:
        """Write, or fail as told."""
        written = list(points)
        if self.failures:
            self.failures -= 1
            raise TransientError("Qdrant cannot be reached")
        self.writes.append((collection, [point.product_id for point in written]))
        return super().write(collection, written)


class Topic:
    """`models` in memory."""

    def __init__(self) -> None:
        self.serving: Serving | None = None
        self._switches = 0
        self.history: list[tuple[int, int]] = []
        self._values: dict[bytes, bytes] = {}
        self._manifests: dict[bytes, ReleaseManifest] = {}

    def add(self, *releases: Release) -> None:
        """Put releases on the topic."""
        for release in releases:
            key = release_key(release.manifest.kind, release.manifest.release)
            self._values[key] = pack(release)
            self._manifests[key] = release.manifest

    def remove(self, key: bytes) -> None:
        """Take a release back."""
        del self._values[key], self._manifests[key]

    def view(self) -> ReleaseView:
        """Return what stands there."""
        return ReleaseView(self.serving, dict(self._manifests), self._switches)

    def value(self, key: bytes) -> bytes | None:
        """Return a release's bytes."""
        return self._values.get(key)

    def publish(self, serving: Serving) -> None:
        """Put a pair in force."""
        self._switches += self.serving is None or self.serving.collection != serving.collection
        self.serving = serving
        self.history.append((serving.query_release, serving.product_release))


class Shadow:
    """Answers every shadow query, unless told otherwise."""

    def __init__(self) -> None:
        self.answers = True

    def answered(self, collection: str, vectors: np.ndarray) -> int:
        """Return how many were answered."""
        return len(vectors) if self.answers else 0


def base_product(encoder: TinyEncoder, product_id: str, version: int = 1, title: str = "quiet fridge") -> BaseProduct:
    """Return a product as `product-vectors` holds it."""
    from indexer.core.planner import payload_of
    from tests.support.indexing import product

    message = product(product_id, version, title)
    text = product_text(message)
    vector = encoder.encode([text])[0]
    return BaseProduct(product_id, version, encoder.base_version, text_hash(text), vector, payload_of(message))


def first_target(encoder: TinyEncoder, collection: str = "products-r0") -> Target:
    """Return a target of release 0."""
    return Target(collection, 0, ProductHead(encoder.dim))


class Deployment:
    """Everything that outlives an indexer: topics, the vector store, base vectors."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.encoder = TinyEncoder()
        self.store = FlakyStore()
        self.topic = Topic()
        self.vectors = BaseVectors()
        self.shadow = Shadow()
        self.leads = True
        self.targets = Targets()

    def fill(self, count: int) -> None:
        """Let there be products."""
        for number in range(count):
            self.vectors.apply(base_product(self.encoder, f"P-{number}", title=f"fridge {number}"))

    def new_process(self, **overrides: Any) -> ModelsLane:
        """Return the models lane of an indexer that has just started."""
        self.targets = Targets()
        parts: dict[str, Any] = {
            "settings": self.settings,
            "store": self.store,
            "releases": self.topic,
            "encoder": self.encoder,
            "vectors": self.vectors,
            "catch_up": lambda: None,
            "targets": self.targets,
            "shadow": self.shadow,
            "leads": lambda: self.leads,
            "pause": lambda _seconds: False,
        }
        return ModelsLane(Parts(**{**parts, **overrides}))


def run(lane: ModelsLane, *, steps: int = 200) -> int:
    """Take steps until there is nothing to do; return how many there were."""
    for taken in range(steps):
        if not lane.step():
            return taken
    raise AssertionError("the lane does not come to rest")


def release_1(shop: Deployment) -> None:
    """Put the first product release and its query release on the topic."""
    shop.topic.add(product_release(1, shop.encoder, query_release=1), query_release(1, shop.encoder, product_release=1))

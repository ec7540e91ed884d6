"""Stand-ins for what the indexer's loops talk to; the vector store is Qdrant's own in-memory client."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from qdrant_client import QdrantClient
from typing_extensions import override

from contracts import wire
from contracts.catalog import CatalogChange, ProductVector
from contracts.errors import DependencyDown, TransientError
from contracts.progress import CatalogCounts
from contracts.releases import SERVING_KEY, Serving, release_key
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.planning import CatalogRecord, PartitionProgress, Refusal, payload_of
from indexer.points import Owner, ProductPoint, Target
from indexer.ports import PartitionsMoved
from indexer.rollout.loop import RollOutLoop
from indexer.store import ProductStore
from service.models import ModelsTable
from tests.support.indexing import product, product_release, query_release
from tests.support.tiny_encoder import TinyEncoder
from towers.model import ProductTower, product_vectors
from towers.release_files import Release, pack
from towers.text import product_text, text_hash

TIME_MS = 1_795_196_600_000
OWNER = Owner("cluster", "")


def record(change: CatalogChange | bytes, offset: int = 0, partition: int = 0) -> CatalogRecord:
    """Return a record of `catalog`."""
    value = change if isinstance(change, bytes) else orjson.dumps(change.model_dump(mode="json"))
    key = b"poison" if isinstance(change, bytes) else change.product_id.encode()
    return CatalogRecord(partition, offset, TIME_MS + offset, key, value)


def null(product_id: str, offset: int = 0, partition: int = 0) -> CatalogRecord:
    """Return a record of `catalog` without a value."""
    return CatalogRecord(partition, offset, TIME_MS + offset, product_id.encode(), None)


class Catalog:
    """A catalogue in memory: hands out its records until they are committed."""

    def __init__(self, *batches: Sequence[CatalogRecord]) -> None:
        self.batches = list(batches)
        self.committed: dict[int, PartitionProgress] = {}
        self.membership_kept = 0
        self.confirmed: list[set[int]] = []
        self.started_again = 0
        self.loses_group = False
        self.is_taken_for_dead = False
        self.ahead: list[CatalogRecord] = []
        """What the next look ahead finds."""
        self.asked_for: list[int] = []
        self._at = 0

    def look_ahead(self) -> list[CatalogRecord]:
        """Return each record once."""
        found, self.ahead = self.ahead, []
        return found

    def poll(self, most: int) -> list[CatalogRecord]:
        """Return the next batch."""
        self.asked_for.append(most)
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
            raise PartitionsMoved("the group has moved partitions meanwhile")

    def confirm(self, partitions: Iterable[int]) -> None:
        """Note the call; refuse a member that the group takes for dead."""
        if self.is_taken_for_dead:
            raise PartitionsMoved("the group gave its partitions to another worker")
        self.confirmed.append(set(partitions))

    def start_again(self) -> None:
        """Hand the batch out again whose commit is missing."""
        self.started_again += 1
        self._at -= 1


class Log:
    """`product-vectors` and `dead-letters` in memory; refuses to acknowledge as often as told.

    Args:
        known: what is known of every product.
        failures: how often it refuses.
    """

    def __init__(self, known: BaseVectors | None = None, *, failures: int = 0) -> None:
        self.known = known or BaseVectors()
        self.vectors: list[BaseProduct] = []
        self.refusals: list[Refusal] = []
        self.forgotten: list[str] = []
        self.failures = failures
        self.before_end: Callable[[], None] = lambda: None
        """What has come to the topic by the time it is read to its end."""

    def publish(self, products: Sequence[BaseProduct]) -> None:
        """Keep base vectors."""
        self._maybe_fail()
        self.vectors += products

    def forget(self, product_ids: Sequence[str]) -> None:
        """Note nulls."""
        self._maybe_fail()
        self.forgotten += product_ids

    def read_to_end(self) -> None:
        """Take what has come meanwhile."""
        self._maybe_fail()
        self.before_end()

    def complete(self) -> None:
        """Nothing is of another base."""
        self.read_to_end()

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
        super().__init__(QdrantClient(":memory:"), owner=OWNER)
        self.failures = 0
        self.answers = True
        self.looks_until_optimized = 0
        self.writes: list[tuple[str, list[str]]] = []

    @override
    def write(self, collection: str, points: Iterable[ProductPoint], *, again: Collection[str] = ()) -> int:
        """Write, or fail as told."""
        written = list(points)
        if self.failures:
            self.failures -= 1
            raise TransientError("Qdrant cannot be reached")
        self.writes.append((collection, [point.product_id for point in written]))
        return super().write(collection, written, again=again)

    @override
    def is_optimized(self, collection: str) -> bool:
        """Say no as often as told."""
        self.looks_until_optimized -= 1
        return self.looks_until_optimized < 0 and super().is_optimized(collection)

    @override
    def answered(self, collection: str, vectors: np.ndarray) -> int:
        """Answer shadow queries, unless told otherwise."""
        return super().answered(collection, vectors) if self.answers else 0


class Topic(ModelsTable):
    """`models` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[int, int]] = []

    def add(self, *releases: Release) -> None:
        """Put releases on the topic."""
        for release in releases:
            self.apply(release_key(release.manifest.kind, release.manifest.release), pack(release))

    def put_in_force(self, serving: Serving, releases: Mapping[str, bytes] | None = None) -> None:
        """Write releases, and put some in force."""
        for key, value in (releases or {}).items():
            self.apply(key.encode(), value)
        self.history.append((serving.query_release, serving.product_release))
        self.apply(SERVING_KEY, wire.encode(serving))


def base_product(encoder: TinyEncoder, product_id: str, version: int = 1, title: str = "quiet fridge") -> BaseProduct:
    """Return a product as `product-vectors` holds it."""
    message = product(product_id, version, title)
    text = product_text(message)
    vector = encoder.encode([text])[0]
    return BaseProduct(product_id, version, encoder.base_version, text_hash(text), vector, payload_of(message))


def told(*products: BaseProduct | None) -> list[ProductVector | None]:
    """Return all that is known of products, to be compared."""
    return [None if product is None else product.to_message() for product in products]


def whole(vectors: BaseVectors) -> list[BaseProduct]:
    """Return everything that is known of every product."""
    found = [vectors.get(state.product_id) for state in vectors.states()]
    return [product for product in found if product is not None]


def foreign(vectors: BaseVectors) -> list[BaseProduct]:
    """Return the products of another base."""
    found = [vectors.foreign(state.product_id) for state in vectors.foreign_states()]
    return [product for product in found if product is not None]


def first_target(encoder: TinyEncoder, collection: str = "products-r0") -> Target:
    """Return a target of release 0."""
    return Target(collection, 0, ProductTower.untrained())


class Deployment:
    """Everything that outlives an indexer: topics, the vector store, base vectors."""

    def __init__(self) -> None:
        self.encoder = TinyEncoder()
        self.store = FlakyStore()
        self.topic = Topic()
        self.vectors = BaseVectors()
        self.log = Log(self.vectors)
        self.leads = True
        self.loop = self._loop()

    def fill(self, count: int) -> None:
        """Let there be products."""
        for number in range(count):
            self.vectors.apply(base_product(self.encoder, f"P-{number}", title=f"fridge {number}"))

    def new_process(self, **overrides: Any) -> RollOutLoop:
        """Return the roll-out loop of an indexer that has just started."""
        self.loop = self._loop(**overrides)
        return self.loop

    def _loop(self, **overrides: Any) -> RollOutLoop:
        """A loop over these fakes."""
        arguments: dict[str, Any] = {
            "store": self.store,
            "owner": OWNER,
            "models": self.topic,
            "put_in_force": self.topic.put_in_force,
            "log": self.log,
            "encoder": self.encoder,
            "pause": lambda _seconds: False,
            "refresh_window_s": 900.0,
        }
        return RollOutLoop(**{**arguments, **overrides})

    def step(self, loop: RollOutLoop | None = None) -> bool:
        """Let a loop take a step, by default that of the newest process."""
        return (loop or self.loop).step(leads=self.leads)

    def run(self, loop: RollOutLoop | None = None, *, steps: int = 200) -> int:
        """Take steps until there is nothing to do; return how many there were."""
        for taken in range(steps):
            if not self.step(loop):
                return taken
        raise AssertionError("the loop does not come to rest")


def release_1(shop: Deployment) -> None:
    """Put the first product release and its query release on the topic."""
    shop.topic.add(product_release(1, shop.encoder), query_release(1, shop.encoder, product_release=1))


def assert_serves_release_1(shop: Deployment, *, collection: str = "products-r0") -> None:
    """Check that everything is at release 1, whole and right."""
    serving = shop.topic.serving()
    assert serving is not None
    assert (serving.query_release, serving.product_release, serving.collection) == (1, 1, collection)
    assert shop.store.alias_target("products") == collection
    assert shop.store.counts(collection) == (599, 1)
    tower = product_release(1, shop.encoder).product_tower()
    products = [product for product in whole(shop.vectors) if not product.is_deleted]
    quality = tower.quality([one.product_id for one in products], [one.features for one in products])
    stored = shop.store.retrieve(collection, [one.product_id for one in products])
    found = np.array([stored[one.product_id].vector for one in products])
    base = np.stack([one.vector for one in products if one.vector is not None])
    np.testing.assert_allclose(found, product_vectors(base, quality), atol=1e-5)
    assert [stored[one.product_id].payload["quality"] for one in products] == pytest.approx(quality, abs=1e-5)


def in_force(shop: Deployment) -> tuple[int, int, str]:
    """Return what `serving` names."""
    serving = shop.topic.serving()
    assert serving is not None
    return serving.query_release, serving.product_release, serving.collection

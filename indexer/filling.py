"""Bringing a collection to what the base vectors say: the missing points, batch by batch, with room for searches."""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import numpy as np

from contracts.catalog import PointVersion, is_newer
from contracts.errors import CheckFailed
from indexer.core.base_vectors import BaseProduct, BaseVectors
from indexer.core.points import ProductPoint
from indexer.core.rollover import pause_s
from indexer.ports import CatchUp, ShadowQueries, VectorStore
from indexer.targets import Target

BATCH: Final = 256
SAMPLE: Final = 64
VECTOR_TOLERANCE: Final = 1e-4
"""Largest difference at which a stored vector still is the one that the head makes of its base vector."""


class Filling:
    """What one collection lacks of the base vectors, taken when it began; writes made meanwhile reach it by themselves.

    Args:
        target: the collection and its head.
        store: the index.
        vectors: every product.
        window_s: within which it must be done.
    """

    def __init__(self, target: Target, store: VectorStore, vectors: BaseVectors, *, window_s: float) -> None:
        self._target = target
        self._store = store
        self._deadline = time.monotonic() + window_s
        self.products = vectors.snapshot()
        self.stored = store.versions(target.collection)
        self._missing = [
            product
            for product in self.products
            if is_newer(product.point_version(target.product_release), self.stored.get(product.product_id))
        ]
        self.total = len(self._missing)
        self.written = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing any more."""
        return self.written >= self.total

    @property
    def progress(self) -> float:
        """Share that is written, 0 to 1."""
        return self.written / self.total if self.total else 1.0

    def write_batch(self) -> float:
        """Write the next batch; return for how many seconds to leave the store alone."""
        batch = list(islice(self._missing, self.written, self.written + BATCH))
        began = time.monotonic()
        self._store.write(self._target.collection, self._target.points(batch))
        now = time.monotonic()
        self.written += len(batch)
        batches_left = -(-(self.total - self.written) // BATCH)
        return pause_s(now - began, batches_left, self._deadline - now)

    def write_all(self) -> None:
        """Write every batch, one after the other."""
        while not self.is_done:
            self.write_batch()


def check_collection(
    target: Target,
    reference: str,
    *,
    store: VectorStore,
    vectors: BaseVectors,
    catch_up: CatchUp,
    shadow: ShadowQueries,
    probes: np.ndarray,
) -> None:
    """Raise where a new collection must not come into force.

    It is held against what the collection in force holds at the beginning and what is known of every product a moment
    later, so that changes which arrive meanwhile never fail it.

    Args:
        target: the new collection.
        reference: the collection in force.
        store: the index.
        vectors: every product.
        catch_up: makes them current.
        shadow: asks the new collection.
        probes: query vectors (N, D) of the query release that comes with it.

    Raises:
        CheckFailed: which check failed, with its numbers.
    """
    held = store.versions(reference)
    catch_up()
    filling = Filling(target, store, vectors, window_s=0.0)
    filling.write_all()
    _check_complete(target, filling, held, store)
    _check_known(target, filling, vectors, catch_up, store)
    _check_vectors(target, _sample(filling.products), store)
    live = store.counts(target.collection).live
    answered = shadow.answered(target.collection, probes) if live else len(probes)
    if answered < len(probes):
        raise CheckFailed(f"{target.collection} answered {answered} of {len(probes)} shadow queries")


def _check_complete(target: Target, filling: Filling, held: Mapping[str, PointVersion], store: VectorStore) -> None:
    """Raise where a product is missing or old although everything that is known was written."""
    wanted = {product_id: version.version for product_id, version in held.items()}
    for product in filling.products:
        wanted[product.product_id] = max(product.version, wanted.get(product.product_id, product.version))
    points = {product_id: PointVersion(version, target.product_release) for product_id, version in wanted.items()}
    doubtful = [product_id for product_id, point in points.items() if is_newer(point, filling.stored.get(product_id))]
    found = {point.product_id: point.point_version for point in _retrieved(target, doubtful, store)}
    lacking = [product_id for product_id in doubtful if is_newer(points[product_id], found.get(product_id))]
    if lacking:
        raise CheckFailed(f"{target.collection} lacks {len(lacking)} of {len(wanted)} products, {lacking[0]} for one")


def _check_known(target: Target, filling: Filling, vectors: BaseVectors, catch_up: CatchUp, store: VectorStore) -> None:
    """Raise where a product can be found that nobody ever sent: a base vector is acknowledged before its point."""
    known = {product.product_id for product in filling.products}
    unknown = filling.stored.keys() - known
    if unknown:
        catch_up()
    foreign = [product_id for product_id in sorted(unknown) if vectors.get(product_id) is None]
    live = [point.product_id for point in _retrieved(target, foreign, store) if not point.is_tombstone]
    if live:
        raise CheckFailed(f"{target.collection} holds {len(live)} products that nobody sent, {live[0]} for one")


def _retrieved(target: Target, product_ids: Sequence[str], store: VectorStore) -> Iterator[ProductPoint]:
    """Yield what is stored of these products, never more than a batch at once: after an outage it may be all."""
    for start in range(0, len(product_ids), BATCH):
        yield from store.retrieve(target.collection, product_ids[start : start + BATCH]).values()


def _sample(products: Sequence[BaseProduct]) -> list[BaseProduct]:
    """Return live products spread evenly over all."""
    live = [product for product in products if not product.is_deleted]
    return live[:: max(1, len(live) // SAMPLE)][:SAMPLE]


def _check_vectors(target: Target, sample: Sequence[BaseProduct], store: VectorStore) -> None:
    """Recompute a sample of what is stored."""
    stored = store.retrieve(target.collection, [product.product_id for product in sample])
    for expected in target.points(sample):
        found = stored.get(expected.product_id)
        if found is None:
            raise CheckFailed(f"{target.collection} lacks product {expected.product_id}")
        if found.point_version != expected.point_version or found.vector is None or expected.vector is None:
            continue  # changed since the sample was taken
        difference = float(np.abs(np.subtract(found.vector, expected.vector)).max())
        if not difference <= VECTOR_TOLERANCE:
            raise CheckFailed(f"{target.collection}: vector of {expected.product_id} differs by {difference:.2g}")

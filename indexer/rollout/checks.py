"""What a collection lacks of the base vectors, written batch by batch, and whether a new one may come into force."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import numpy as np

from contracts.catalog import PointVersion, is_newer
from contracts.errors import CheckFailed
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.points import ProductPoint, Target
from indexer.rollout.decisions import pause_s
from indexer.store import ProductStore

BATCH: Final = 256
SAMPLE: Final = 64
VECTOR_TOLERANCE: Final = 1e-4
"""Largest difference at which a stored vector still is the one that the head makes of its base vector."""


class MissingPoints:
    """What one collection lacks when this is made; writes that come later reach it by themselves.

    Args:
        target: the collection and its head.
        store: the index.
        vectors: every product.
        window_s: within which everything must be written.
        monotonic_s: clock that measures writes.
    """

    def __init__(
        self,
        target: Target,
        store: ProductStore,
        vectors: BaseVectors,
        *,
        window_s: float = 0.0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._store = store
        self._monotonic_s = monotonic_s
        self._deadline = monotonic_s() + window_s
        self.products = vectors.snapshot()
        self.stored = store.versions(target.collection)
        self._missing = [
            product
            for product in self.products
            if is_newer(target.version_of(product), self.stored.get(product.product_id))
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
        began = self._monotonic_s()
        self._store.write(self._target.collection, self._target.points(batch))
        now = self._monotonic_s()
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
    store: ProductStore,
    vectors: BaseVectors,
    read_to_end: Callable[[], None],
    probes: np.ndarray,
) -> None:
    """Raise if a new collection must not come into force.

    It is held against what the collection in force holds at the beginning and what is known of every product a moment
    later, so that changes which arrive meanwhile never fail it.

    Args:
        target: the new collection.
        reference: the collection in force.
        store: the index.
        vectors: every product.
        read_to_end: makes them current.
        probes: query vectors (N, D) of the query release that comes with it.

    Raises:
        CheckFailed: which check failed, with its numbers.
    """
    in_force = store.versions(reference)
    read_to_end()
    missing = MissingPoints(target, store, vectors)
    missing.write_all()
    _check_complete(target, missing, in_force, store)
    _check_known(target, missing, vectors, read_to_end, store)
    _check_vectors(target, _sample(missing.products), store)
    live = store.counts(target.collection).live
    answered = store.answered(target.collection, probes) if live else len(probes)
    if answered < len(probes):
        raise CheckFailed(f"{target.collection} answered {answered} of {len(probes)} shadow queries")


def _check_complete(
    target: Target, missing: MissingPoints, in_force: Mapping[str, PointVersion], store: ProductStore
) -> None:
    """Raise if a product is missing or old although everything that is known was written."""
    release = target.product_release
    wanted = {product_id: found._replace(product_release=release) for product_id, found in in_force.items()}
    for product in missing.products:
        if is_newer(version := target.version_of(product), wanted.get(product.product_id)):
            wanted[product.product_id] = version
    doubtful = [product_id for product_id, point in wanted.items() if is_newer(point, missing.stored.get(product_id))]
    found = {point.product_id: point.point_version for point in _retrieved(target, doubtful, store)}
    lacking = [product_id for product_id in doubtful if is_newer(wanted[product_id], found.get(product_id))]
    if lacking:
        raise CheckFailed(f"{target.collection} lacks {len(lacking)} of {len(wanted)} products, {lacking[0]} for one")


def _check_known(
    target: Target, missing: MissingPoints, vectors: BaseVectors, read_to_end: Callable[[], None], store: ProductStore
) -> None:
    """Raise if a product can be found that nobody ever sent: a base vector is acknowledged before its point."""
    unknown = missing.stored.keys() - {product.product_id for product in missing.products}
    if unknown:
        read_to_end()
    foreign = [product_id for product_id in sorted(unknown) if vectors.get(product_id) is None]
    live = [point.product_id for point in _retrieved(target, foreign, store) if not point.is_tombstone]
    if live:
        raise CheckFailed(f"{target.collection} holds {len(live)} products that nobody sent, {live[0]} for one")


def _retrieved(target: Target, product_ids: Sequence[str], store: ProductStore) -> Iterator[ProductPoint]:
    """Yield what is stored of these products, never more than a batch at once: after an outage it may be all."""
    for start in range(0, len(product_ids), BATCH):
        yield from store.retrieve(target.collection, product_ids[start : start + BATCH]).values()


def _sample(products: Sequence[BaseProduct]) -> list[BaseProduct]:
    """Return live products spread evenly over all."""
    live = [product for product in products if not product.is_deleted]
    return live[:: max(1, len(live) // SAMPLE)][:SAMPLE]


def _check_vectors(target: Target, sample: Sequence[BaseProduct], store: ProductStore) -> None:
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

"""Bringing a collection to what the base vectors say: the missing points, batch by batch, with room for searches."""

import time
from collections.abc import Sequence
from itertools import islice
from typing import Final

import numpy as np

from contracts.errors import CheckFailed
from contracts.versions import is_newer
from indexer.core.base_vectors import BaseProduct, BaseVectors
from indexer.core.rollover import pause_s
from indexer.ports import ShadowQueries, VectorStore
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
        stored = store.versions(target.collection)
        self._missing = [
            product
            for product in vectors.snapshot()
            if is_newer(product.point_version(target.product_release), stored.get(product.product_id))
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


def check_collection(
    target: Target,
    reference: str,
    *,
    store: VectorStore,
    vectors: BaseVectors,
    shadow: ShadowQueries,
    probes: np.ndarray,
) -> None:
    """Raise where a new collection must not come into force.

    Args:
        target: the new collection.
        reference: the collection in force.
        store: the index.
        vectors: every product.
        shadow: asks the new collection.
        probes: query vectors (N, D) of the query release that comes with it.

    Raises:
        CheckFailed: which check failed, with its numbers.
    """
    before = store.counts(reference).live
    live = store.counts(target.collection).live
    after = store.counts(reference).live
    if not min(before, after) <= live <= max(before, after):
        raise CheckFailed(f"{target.collection} holds {live} products, {reference} holds {after}")
    _check_vectors(target, _sample(vectors.snapshot()), store)
    answered = shadow.answered(target.collection, probes) if live else len(probes)
    if answered < len(probes):
        raise CheckFailed(f"{target.collection} answered {answered} of {len(probes)} shadow queries")


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

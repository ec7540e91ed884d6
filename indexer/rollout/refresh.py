"""What a collection lacks of the base vectors and of their quality, written batch by batch."""

import math
import time
from collections.abc import Callable, MutableMapping
from itertools import islice
from typing import Final

from contracts.catalog import is_newer
from indexer.catalog.base_vectors import BaseVectors
from indexer.catalog.product_file import State
from indexer.points import Target
from indexer.ports import VectorLog
from indexer.rollout.decisions import QUALITY_TOLERANCE, pause_s
from indexer.store import ProductStore, StoredPoint
from service import metrics
from service.logging import get_logger

BATCH: Final = 64
"""Points of one write: a search that comes meanwhile waits for no more than that."""
COMPARED: Final = 4_096
"""Products whose quality is computed at once."""
SAY_EVERY: Final = 0.1
"""Share of a refresh after which its progress is said again."""


class Refresh:
    """What one collection lacks when this is made; writes that come later reach it by themselves.

    What it lacks of the base vectors comes first, then what moved most: that changes most rankings. How often a product
    is served is not known here.

    Args:
        target: the collection and the product tower.
        store: the index.
        vectors: every product.
        stored: what is known of the points; kept current here.
        window_s: within which everything should be written; 0 hurries.
        monotonic_s: clock that measures writes.
    """

    def __init__(
        self,
        target: Target,
        store: ProductStore,
        vectors: BaseVectors,
        stored: MutableMapping[str, StoredPoint],
        *,
        window_s: float = 0.0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self._store = store
        self._stored = stored
        self._monotonic_s = monotonic_s
        self._deadline = monotonic_s() + window_s
        self._vectors = vectors
        moves = dict[str, float]()
        states = vectors.states()
        while some := list(islice(states, COMPARED)):
            for state, quality in zip(some, target.quality(some).tolist(), strict=True):
                if (move := self._move(state, quality)) > QUALITY_TOLERANCE:
                    moves[state.product_id] = move
        self._due = sorted(moves, key=lambda product_id: -moves[product_id])
        self.total = len(self._due)
        self.written = 0
        self._said = 0.0

    def _move(self, product: State, quality: float) -> float:
        """By how many nats a point's quality must change; infinite if the point is missing or of an older version."""
        stored = self._stored.get(product.product_id)
        if not is_newer(self.target.version_of(product), stored and stored.version):
            return 0.0
        if stored is None or stored.order != product.order:
            return math.inf
        return 0.0 if product.is_deleted else abs(quality - stored.quality)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to write."""
        return self.written >= self.total

    def is_late(self) -> bool:
        """Whether the time is over within which everything should be written."""
        return self._monotonic_s() > self._deadline

    @property
    def progress(self) -> float:
        """Share that is written, 0 to 1."""
        return self.written / self.total if self.total else 1.0

    def write_batch(self) -> float:
        """Write the next batch; return for how many seconds to leave the store alone."""
        batch = self._due[self.written : self.written + BATCH]
        known = map(self._vectors.get, batch)
        points = self.target.points([product for product in known if product is not None])  # else it was forgotten
        began = self._monotonic_s()
        self._store.write(self.target.collection, points)
        now = self._monotonic_s()
        self._stored.update(
            (point.product_id, StoredPoint(point.point_version, point.payload.get("quality", 0.0))) for point in points
        )
        self.written += len(batch)
        batches_left = -(-(self.total - self.written) // BATCH)
        return pause_s(now - began, batches_left, self._deadline - now)

    def say(self) -> None:
        """Show the progress."""
        metrics.ROLLOVER.set(self.progress)
        if self.is_done or self.progress >= self._said + SAY_EVERY:
            self._said = self.progress
            release = self.target.product_release
            get_logger().info("rollout_progress", product_release=release, written=self.written, of=self.total)


def forget_deletions(
    target: Target, store: ProductStore, log: VectorLog, stored: MutableMapping[str, StoredPoint], *, before_ms: int
) -> None:
    """Let go of some old deletions, first of their points: who ends between the two leaves what the next one finds.

    The next call takes the rest. They are known until the nulls are read; before that they would be written again, for
    nobody to collect.
    """
    gone = log.known.deleted_before(before_ms)
    for batch in (gone[start : start + BATCH] for start in range(0, len(gone), BATCH)):
        for collection in (target.collection, *([target.kept] if target.kept else [])):
            store.forget(collection, target.points(batch))
        log.forget([product.product_id for product in batch])
    if gone:
        log.read_to_end()
        for product in gone:
            stored.pop(product.product_id, None)
        get_logger().info("deletions_forgotten", products=len(gone), collection=target.collection)

"""The catalogue lane: changes become base vectors, then points, then the position moves.

poll -> newest per product -> base vectors (only where the text changed) -> product-vectors, acknowledged
     -> points of every target, stored -> commit with counts
"""

import base64
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from contracts import wire
from contracts.catalog import CatalogChange, Product
from contracts.errors import TransientError
from contracts.vectors import ProductVector
from indexer.adapters.catalog_source import CatalogSource
from indexer.adapters.outbox import Outbox
from indexer.adapters.qdrant import ProductStore
from indexer.core.changes import BatchPlan, CatalogRecord, new_first, payload_of, plan_batch
from indexer.ports import Encoder
from indexer.targets import Targets
from indexer.vectors import BaseVectors, base_of, points_of
from service import metrics
from service.logging import get_logger
from towers.text import product_text, text_hash

log = get_logger()
BATCH_SIZE: Final = 256
LONGEST_PAUSE_S: Final = 10.0


class CatalogueLane:
    """Applies catalogue changes until stopped.

    Args:
        source: the topic `catalog`.
        outbox: where base vectors and dead letters go.
        store: the vector store, for this thread alone.
        encoder: the base encoder.
        vectors: base vectors in memory.
        targets: the collections to write to.
    """

    def __init__(
        self,
        source: CatalogSource,
        outbox: Outbox,
        store: ProductStore,
        *,
        encoder: Encoder,
        vectors: BaseVectors,
        targets: Targets,
    ) -> None:
        self._source = source
        self._outbox = outbox
        self._store = store
        self._encoder = encoder
        self._vectors = vectors
        self._targets = targets
        self.trouble: str | None = None
        """Why nothing moves now; None while all is well."""

    def run(self, stop: threading.Event) -> None:
        """Apply changes until `stop` is set."""
        while not stop.is_set():
            records = self._source.poll()
            if records:
                self._apply(records, stop)

    def not_ready(self) -> str | None:
        """Return why changes are not applied now."""
        return self.trouble or (None if self._source.assigned() else "the group has given no partitions yet")

    def _apply(self, records: list[CatalogRecord], stop: threading.Event) -> None:
        plan = plan_batch(records)
        changes = new_first([change for change, _ in plan.changes.values()], self._known(plan))
        made = self._product_vectors(changes)
        self._until_done(lambda: self._outbox.publish([(one.product_id, wire.encode(one)) for one in made]), stop)
        self._vectors.apply(made)
        self._until_done(lambda: self._write(made), stop)
        self._until_done(lambda: self._outbox.set_aside(plan.refused), stop)
        if stop.is_set():
            return
        self._observe(plan)
        try:
            self._source.commit(records, [one.record for one in plan.refused])
        except TransientError as exc:
            log.warning("catalogue_commit_lost", error=exc.message, records=len(records))

    def _known(self, plan: BatchPlan) -> list[str]:
        return [name for name in plan.changes if self._vectors.version_of(name) is not None]

    def _product_vectors(self, changes: Sequence[CatalogChange]) -> list[ProductVector]:
        """Return what goes to `product-vectors`: each product with its base vector, each deletion without."""
        texts = {change.product_id: product_text(change) for change in changes if isinstance(change, Product)}
        hashes = {name: text_hash(text) for name, text in texts.items()}
        rows = {name: row for name in texts if (row := self._vectors.known_row(name, hashes[name])) is not None}
        missing = sorted((name for name in texts if name not in rows), key=lambda name: len(texts[name]))
        encoded = self._encoder.encode([texts[name] for name in missing])
        rows.update(zip(missing, encoded, strict=True))
        return [self._product_vector(change, rows, hashes) for change in changes]

    def _product_vector(
        self, change: CatalogChange, rows: dict[str, np.ndarray], hashes: dict[str, str]
    ) -> ProductVector:
        name, base_version = change.product_id, self._encoder.base_version
        if not isinstance(change, Product):
            return ProductVector(product_id=name, version=change.version, deleted=True, base_version=base_version)
        return ProductVector(
            product_id=name,
            version=change.version,
            base_version=base_version,
            text_hash=hashes[name],
            vector=base64.b64encode(rows[name].astype("<f4").tobytes()).decode(),
            payload=payload_of(change),
        )

    def _write(self, made: Sequence[ProductVector]) -> None:
        bases = [base_of(one) for one in made]
        for target in self._targets.now():
            began = time.perf_counter()
            points = points_of(bases, target.head, product_release=target.product_release)
            self._store.write(target.collection, points)
            metrics.INDEX_WRITE_SECONDS.observe(time.perf_counter() - began)
            tombstones = sum(point.is_tombstone for point in points)
            metrics.INDEX_WRITES.labels(kind="tombstone").inc(tombstones)
            metrics.INDEX_WRITES.labels(kind="upsert").inc(len(points) - tombstones)

    def _until_done(self, doing: Callable[[], None], stop: threading.Event) -> None:
        """Try until it succeeds or the lane is stopped; the group keeps this member meanwhile."""
        pause_s = 0.25
        while not stop.is_set():
            try:
                doing()
            except TransientError as exc:
                if self.trouble != exc.message:
                    log.warning("catalogue_waits", error=exc.message, fix=exc.fix)
                self.trouble = exc.message
                self._source.keep_membership()
                stop.wait(max(pause_s, exc.retry_after_s if pause_s > 1 else 0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self.trouble = None
                return

    def _observe(self, plan: BatchPlan) -> None:
        now_ms = time.time_ns() // 1_000_000
        for _, appended_ms in plan.changes.values():
            metrics.FRESHNESS.labels(path="product_to_search").observe(max(0.0, (now_ms - appended_ms) / 1000))
        metrics.STAGE_PROGRESS.labels(stage="indexer").set_to_current_time()

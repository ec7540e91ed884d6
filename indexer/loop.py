"""The catalogue lane: catalogue record -> text -> base vector -> `product-vectors` -> product head -> index -> commit.

Every output is acknowledged before the offset moves, so a crash repeats work and loses none; repeats change nothing
(newer-only). A vector store or a Kafka that does not answer holds the lane, visibly, and never ends it.
"""

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final, TypeVar

import numpy as np

from contracts.catalog import Product, ProductVector
from contracts.errors import DependencyDown, InvariantError, MillraceError, TransientError
from contracts.telemetry import Process
from indexer.core.base_vectors import BaseProduct, BaseVectors
from indexer.core.planner import CatalogRecord, Change, Plan, advance, payload_of, plan_batch
from indexer.ports import CatalogSource, Encoder, InForce, Pause, VectorLog, VectorStore
from indexer.targets import Target, Targets
from service import metrics
from service.logging import get_logger
from towers.text import product_text, text_hash

ENCODE_BATCH: Final = 64
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
TAKEOVER_PAUSE_S: Final = 0.05
STAGE: Final = "indexer"

T = TypeVar("T")


class Stopped(Exception):
    """The process is asked to stop in the middle of a batch; the batch is read again after the restart."""


class CatalogLane:
    """Works off `catalog`, batch by batch.

    Args:
        source: the catalogue.
        log: where base vectors and dead letters are kept.
        store: the index.
        encoder: the base encoder.
        vectors: what is known of every product.
        targets: where writes go.
        in_force: asked before every commit.
        pause: how to wait; True means stop.
    """

    def __init__(
        self,
        source: CatalogSource,
        log: VectorLog,
        *,
        store: VectorStore,
        encoder: Encoder,
        vectors: BaseVectors,
        targets: Targets,
        in_force: InForce,
        pause: Pause,
    ) -> None:
        self._source = source
        self._log = log
        self._store = store
        self._encoder = encoder
        self._vectors = vectors
        self._targets = targets
        self._in_force = in_force
        self._pause = pause
        self._held: str | None = None
        self._goes_back = False
        self._given_up: str | None = None

    def held(self) -> str | None:
        """Return what the lane waits for, as a readiness check."""
        return self._held

    def step(self) -> int:
        """Work off the next batch; return how many records it had.

        Raises:
            Stopped: the process is asked to stop meanwhile.
        """
        try:
            if self._goes_back:
                self._source.start_again()
                self._goes_back = False
            records = self._source.poll()
            if records:
                self._work_off(records)
        except (DependencyDown, TransientError) as error:
            self._goes_back = True
            self._hold(error)
            self._wait(FIRST_PAUSE_S)
            return 0
        self._held = None
        return len(records)

    def _work_off(self, records: Sequence[CatalogRecord]) -> None:
        plan = plan_batch(records, self._vectors.get)
        if plan.refusals:
            self._until_done(Process.KAFKA, lambda: self._log.set_aside(plan.refusals))
        for changes in plan.lanes():
            self._apply(changes, plan)
        self._commit(records, plan)
        self._show_progress(records)
        self._count(plan)

    def _apply(self, changes: Sequence[Change], plan: Plan) -> None:
        """Keep and write the changes of one lane."""
        products = self._encoded(changes)
        fresh = [product for product, change in zip(products, changes, strict=True) if not change.is_repeat]
        if fresh:
            messages = [_message(product) for product in fresh]
            self._until_done(Process.KAFKA, lambda: self._log.publish(messages))
        for product in fresh:
            self._vectors.apply(product)
        self._write_everywhere(products)
        now_s = time.time()
        for product in products:
            metrics.INDEX_WRITES.labels("tombstone" if product.is_deleted else "upsert").inc()
            waited_s = now_s - plan.timestamps_ms[product.product_id] / 1000
            metrics.FRESHNESS.labels("product_to_search").observe(max(waited_s, 0.0))

    def _write_everywhere(self, products: Sequence[BaseProduct]) -> None:
        """Write products to all targets; return once the collection that is in force after the writes has them."""
        written: set[str] = set()
        while True:
            for target in self._targets.current():
                if target.collection not in written and self._write(target, products):
                    written.add(target.collection)
            in_force = self._until_done(Process.KAFKA, self._in_force)
            if in_force in written:
                return
            self._held = f"{in_force} came into force and is not written to yet"
            self._wait(TAKEOVER_PAUSE_S)
            self._source.keep_membership()

    def _write(self, target: Target, products: Sequence[BaseProduct]) -> bool:
        """Write products to one target; return whether it has them.

        A collection under construction may have been given up by the indexer that leads; if not, that one's filling
        brings what is not written here.
        """
        points = target.points(products)
        began = time.perf_counter()
        try:
            self._until_done(Process.QDRANT, lambda: self._store.write(target.collection, points))
        except InvariantError as error:
            in_force = self._targets.in_force
            if in_force is None or in_force.collection == target.collection:
                raise
            if self._given_up != target.collection:
                get_logger().info("collection_left_to_its_filling", collection=target.collection, error=error.message)
            self._given_up = target.collection
            return False
        metrics.INDEX_WRITE_SECONDS.observe(time.perf_counter() - began)
        return True

    def _encoded(self, changes: Sequence[Change]) -> list[BaseProduct]:
        """Return the products as they are kept; what was encoded before is not encoded again."""
        texts = {text_hash(text): text for change in changes if (text := _text_to_encode(change)) is not None}
        known: dict[str, np.ndarray | None] = {
            change.known.text_hash: change.known.vector
            for change in changes
            if change.known is not None and change.known.base_version == self._encoder.base_version
        }
        missing = [text for key, text in texts.items() if known.get(key) is None]
        rows = self._encoder.encode(missing, batch_size=ENCODE_BATCH) if missing else ()
        vectors = known | {text_hash(text): row for text, row in zip(missing, rows, strict=True)}
        return [self._product(change, vectors) for change in changes]

    def _product(self, change: Change, vectors: Mapping[str, np.ndarray | None]) -> BaseProduct:
        message, base_version = change.message, self._encoder.base_version
        if change.is_repeat and change.known is not None:
            return change.known
        if not isinstance(message, Product):
            return BaseProduct(message.product_id, message.version, base_version)
        key = text_hash(product_text(message))
        return BaseProduct(message.product_id, message.version, base_version, key, vectors[key], payload_of(message))

    def _commit(self, records: Sequence[CatalogRecord], plan: Plan) -> None:
        """Move the offsets; everything before is acknowledged."""
        refused = {(refusal.record.partition, refusal.record.offset) for refusal in plan.refusals}
        by_partition = groupby(sorted(records, key=lambda record: record.partition), lambda record: record.partition)
        done = {}
        for partition, group in by_partition:
            offsets = frozenset(offset for number, offset in refused if number == partition)
            done[partition] = advance(self._source.progress(partition), list(group), offsets)
        self._until_done(Process.KAFKA, lambda: self._source.commit(done))

    def _show_progress(self, records: Sequence[CatalogRecord]) -> None:
        """Show up to when the catalogue is done, per partition."""
        metrics.STAGE_PROGRESS.labels(STAGE).set_to_current_time()
        for record in records:  # in the order of each partition: the last one stays
            metrics.STAGE_WATERMARK.labels(STAGE, record.partition).set(record.timestamp_ms / 1000)

    def _count(self, plan: Plan) -> None:
        """Say what became of the batch."""
        metrics.INDEX_WRITES.labels("stale").inc(plan.stale_count)
        for refusal in plan.refusals:
            record = refusal.record
            metrics.DEAD_LETTERS.labels(STAGE, refusal.reason).inc()
            get_logger().warning(
                "catalogue_record_refused",
                partition=record.partition,
                offset=record.offset,
                reason=refusal.reason,
                error=refusal.error,
            )
        if plan.nulls:
            get_logger().info(
                "null_catalogue_records_ignored",
                count=len(plan.nulls),
                fix="to take a product out of search send product_deleted with a version",
            )

    def _until_done(self, dependency: Process, action: Callable[[], T]) -> T:
        """Repeat an action until its dependency answers, staying a member of the group meanwhile."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                result = action()
            except (DependencyDown, TransientError) as error:
                metrics.DEPENDENCY_UP.labels(dependency).set(0)
                self._hold(error)
                self._wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._source.keep_membership()
            else:
                metrics.DEPENDENCY_UP.labels(dependency).set(1)
                self._held = None
                return result

    def _hold(self, error: MillraceError) -> None:
        """Keep why nothing moves, and say it once."""
        if self._held is None:
            get_logger().warning("catalogue_lane_waits", error=error.message, fix=error.fix)
        self._held = error.message

    def _wait(self, seconds: float) -> None:
        if self._pause(seconds):
            raise Stopped


def _text_to_encode(change: Change) -> str | None:
    """Return the text of a change that needs a vector, None where it needs none."""
    if change.is_repeat or not isinstance(change.message, Product):
        return None
    return product_text(change.message)


def _message(product: BaseProduct) -> ProductVector:
    """Return a product's record on `product-vectors`."""
    vector = None if product.vector is None else base64.b64encode(product.vector.astype("<f4").tobytes()).decode()
    return ProductVector(
        product_id=product.product_id,
        version=product.version,
        deleted=product.is_deleted,
        base_version=product.base_version,
        text_hash=product.text_hash,
        vector=vector,
        payload=product.payload,
    )

"""The catalogue loop: record -> text -> base vector -> `product-vectors` -> quality -> index -> commit.

Every output is acknowledged before the offset moves, so a crash repeats work and loses none; repeats change nothing
(newer-only). While much stands before them, the youngest changes are worked off ahead of their turn, in which they
come once more and change nothing. A vector store or a Kafka that does not answer holds the loop up, visibly, and never
ends it.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Final, TypeVar

import numpy as np

from contracts.catalog import Product
from contracts.errors import DependencyDown, TransientError
from contracts.telemetry import Process
from indexer.catalog.base_vectors import BaseProduct
from indexer.catalog.planning import (
    CatalogRecord,
    Change,
    Plan,
    advance,
    content_hash,
    in_any_order,
    payload_of,
    plan_batch,
)
from indexer.points import Target
from indexer.ports import AskInForce, CatalogSource, PartitionsMoved, Pause, Stopped, VectorLog
from indexer.store import ProductStore
from service import metrics
from service.logging import get_logger
from service.machine import epoch_ms
from towers.release_files import Encoder
from towers.text import product_text, text_hash

ENCODE_BATCH: Final = 64
MOST_RECORDS: Final = 256
FEWEST_RECORDS: Final = 16
AHEAD_SHARE: Final = 4
"""Of how many products that are encoded in their turn one more is encoded ahead of it."""
BATCH_S: Final = 1.0
"""How long a batch is to take: a product that is new waits for the one before it, whatever encoding costs."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
TAKEOVER_PAUSE_S: Final = 0.05

T = TypeVar("T")


class CatalogLoop:
    """Works off `catalog`, batch by batch.

    Args:
        source: the catalogue.
        log: where base vectors and dead letters are kept, and what is known of every product.
        store: the index.
        encoder: the base encoder.
        target: tells where writes go.
        in_force: asked before every commit.
        pause: how to wait; True means stop.
        monotonic_s: clock that measures batches.
    """

    def __init__(
        self,
        source: CatalogSource,
        log: VectorLog,
        *,
        store: ProductStore,
        encoder: Encoder,
        target: Callable[[], Target],
        in_force: AskInForce,
        pause: Pause,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._source = source
        self._log = log
        self._store = store
        self._encoder = encoder
        self._target = target
        self._in_force = in_force
        self._pause = pause
        self._waiting_for: str | None = None
        self._goes_back = False
        self._most = FEWEST_RECORDS

    def waiting_for(self) -> str | None:
        """Return what the loop waits for, as a readiness check."""
        return self._waiting_for

    def step(self) -> int:
        """Work off the next batch; return how many records it had.

        Raises:
            Stopped: the process is asked to stop meanwhile.
        """
        try:
            if self._goes_back:
                self._source.start_again()
                self._goes_back = False
            records = self._source.poll(self._most)
            if records:
                began = self._monotonic_s()
                self._work_off(records)
                self._most = records_in_time(len(records), self._monotonic_s() - began)
                self._work_ahead()
        except (DependencyDown, TransientError) as error:
            self._goes_back = True
            self._waiting_for = error.message
            if isinstance(error, PartitionsMoved):
                get_logger().info("batch_given_up", error=error.message)
            self._wait(FIRST_PAUSE_S)
            return 0
        self._waiting_for = None
        return len(records)

    def _work_off(self, records: Sequence[CatalogRecord]) -> None:
        if any(record.value is None for record in records):
            self._until_done(self._log.read_to_end)  # a null deletes what is known: also what another member wrote
        plan = plan_batch(records, self._log.known.get)
        if plan.refusals:
            self._until_done(lambda: self._log.set_aside(plan.refusals))
        for changes in plan.batches():
            self._apply(changes)
        self._commit(records, plan)
        self._show_progress(records)
        self._count(plan)

    def _work_ahead(self) -> None:
        """Apply the youngest changes behind those whose turn it is; neither commit nor count them."""
        ahead = plan_batch(in_any_order(self._source.look_ahead()), self._log.known.get)
        for changes in ahead.youngest(MOST_RECORDS, to_encode=self._most // AHEAD_SHARE):
            self._apply(changes)

    def _apply(self, changes: Sequence[Change]) -> None:
        products = self._encoded(changes)
        fresh = [product for product, change in zip(products, changes, strict=True) if not change.is_repeat]
        if fresh:
            self._until_done(lambda: self._publish(fresh, changes))
        for product in fresh:
            self._log.known.apply(product)
        self._write(products, again=frozenset(one.message.product_id for one in changes if one.is_anew))
        now_ms = epoch_ms()
        for product, change in zip(products, changes, strict=True):
            if not change.is_repeat:  # else it was found long ago, or a crash hides since when
                metrics.INDEX_WRITES.labels("tombstone" if product.is_deleted else "upsert").inc()
                waited_ms = max(now_ms - change.record.timestamp_ms, 0)
                metrics.FRESHNESS.labels("product_to_search").observe(waited_ms / 1000)

    def _publish(self, fresh: Sequence[BaseProduct], changes: Sequence[Change]) -> None:
        """Keep base vectors, as a member of the group: one that stalled would write what is old by now."""
        self._source.confirm({change.record.partition for change in changes})
        self._log.publish(fresh)

    def _write(self, products: Sequence[BaseProduct], *, again: Collection[str] = ()) -> None:
        """Write products; return once what was in force after the write is what was written to."""
        written: Target | None = None
        while True:
            target = self._target()
            if target is not written:
                points = target.points(products)
                began = time.perf_counter()
                self._until_done(partial(self._store.write, target.collection, points, again=again))
                metrics.INDEX_WRITE_SECONDS.observe(time.perf_counter() - began)
                if target.kept is not None:
                    self._until_done(partial(self._store.carry_over, target.kept, points, again=again))
                written = target
            in_force = self._until_done(self._in_force)
            if in_force == target.in_force:
                return
            self._waiting_for = f"{in_force.collection} at product release {in_force.product_release} came into force"
            self._wait(TAKEOVER_PAUSE_S)
            self._source.keep_membership()

    def _encoded(self, changes: Sequence[Change]) -> list[BaseProduct]:
        """Return the products as they are kept; what was encoded before is not encoded again."""
        texts = {text_hash(text): text for change in changes if (text := _text_to_encode(change)) is not None}
        known: dict[str, np.ndarray | None] = {
            change.known.text_hash: change.known.vector
            for change in changes
            if change.known is not None
            and change.known.base_version == self._encoder.base_version
            and not change.record.again
        }
        missing = [text for key, text in texts.items() if known.get(key) is None]
        rows = self._encoder.encode(missing, batch_size=ENCODE_BATCH) if missing else ()
        # Copies: a row is a view, and one that is kept would keep the vectors of its whole batch in memory.
        vectors = known | {text_hash(text): row.copy() for text, row in zip(missing, rows, strict=True)}
        return [self._product(change, vectors) for change in changes]

    def _product(self, change: Change, vectors: Mapping[str, np.ndarray | None]) -> BaseProduct:
        message, base_version, place = change.message, self._encoder.base_version, change.record.place
        if change.is_repeat and change.known is not None:
            return change.known
        if not isinstance(message, Product):
            return BaseProduct(message.product_id, message.version, base_version, place=place)
        key = text_hash(product_text(message))
        return BaseProduct(
            message.product_id,
            message.version,
            base_version,
            key,
            vector=vectors[key],
            payload=payload_of(message),
            place=place,
            content_hash=content_hash(message),
        )

    def _commit(self, records: Sequence[CatalogRecord], plan: Plan) -> None:
        """Move the offsets; everything before is acknowledged."""
        refused = {(refusal.record.partition, refusal.record.offset) for refusal in plan.refusals}
        by_partition = groupby(sorted(records, key=lambda record: record.partition), lambda record: record.partition)
        done = {}
        for partition, group in by_partition:
            offsets = frozenset(offset for number, offset in refused if number == partition)
            done[partition] = advance(self._source.progress(partition), list(group), offsets)
        self._until_done(lambda: self._source.commit(done))

    def _show_progress(self, records: Sequence[CatalogRecord]) -> None:
        metrics.STAGE_PROGRESS.labels(Process.INDEXER).set_to_current_time()
        for record in records:  # in the order of each partition: the last one stays
            metrics.STAGE_WATERMARK.labels(Process.INDEXER, record.partition).set(record.timestamp_ms / 1000)

    def _count(self, plan: Plan) -> None:
        metrics.INDEX_WRITES.labels("stale").inc(plan.stale_count + plan.unknown_nulls)
        metrics.INDEX_WRITES.labels("same_version").inc(len(plan.same_version))
        for refusal in plan.refusals:
            record = refusal.record
            metrics.DEAD_LETTERS.labels(Process.INDEXER, refusal.reason).inc()
            get_logger().warning(
                "catalogue_record_refused",
                partition=record.partition,
                offset=record.offset,
                reason=refusal.reason,
                error=refusal.error,
            )
        if plan.same_version:
            fix = "raise the version with every change of a product"
            get_logger().warning("same_version_other_content", **_where(plan.same_version), fix=fix)
        if plan.other_keys:
            fix = (
                "give each record its product_id as key, plain: else no null deletes the product, and compaction may "
                "leave another's record alone"
            )
            get_logger().warning("key_is_not_the_product_id", **_where(plan.other_keys), fix=fix)
        if plan.unknown_nulls:
            get_logger().info(
                "null_of_unknown_product",
                count=plan.unknown_nulls,
                fix="nothing if it was deleted long ago; else the key of the null must be the product_id",
            )

    def _until_done(self, action: Callable[[], T]) -> T:
        """Repeat an action until its server answers, staying a member of the group meanwhile."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                result = action()
            except PartitionsMoved:
                raise
            except (DependencyDown, TransientError) as error:
                self._waiting_for = error.message
                self._wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._source.keep_membership()
            else:
                self._waiting_for = None
                return result

    def _wait(self, seconds: float) -> None:
        if self._pause(seconds):
            raise Stopped


def records_in_time(records: int, took_s: float) -> int:
    """Return how many records the next batch may have if one of so many took so long.

    >>> records_in_time(100, 2.0), records_in_time(256, 0.1), records_in_time(1, 30.0)
    (50, 256, 16)
    """
    return min(max(int(records * BATCH_S / max(took_s, 1e-3)), FEWEST_RECORDS), MOST_RECORDS)


def _text_to_encode(change: Change) -> str | None:
    if change.is_repeat or not isinstance(change.message, Product):
        return None
    return product_text(change.message)


def _where(records: Sequence[CatalogRecord]) -> dict[str, int]:
    """How many records there are, and where the first stands."""
    return {"count": len(records), "partition": records[0].partition, "offset": records[0].offset}

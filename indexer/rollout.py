"""One product release on its way into force: a second collection is built, filled, checked and switched to."""

import time
from dataclasses import replace
from typing import Final

from contracts.errors import CheckFailed, InvariantError
from contracts.releases import Serving
from indexer.core.rollover import CHECK_ATTEMPTS, Construction
from indexer.filling import Filling, check_collection
from indexer.parts import Parts
from indexer.releases import product_head
from indexer.targets import Target
from service import metrics
from service.logging import get_logger
from towers.probes import PROBE_TEXTS

SAY_EVERY: Final = 0.1
"""Share of a fill after which its progress is said again."""
CHECK_PAUSE_S: Final = 1.0


class RollOut:
    """Carries out the steps of a roll-out; nothing of it survives the process, a restart begins it again.

    Args:
        parts: what it works with.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._filling: Filling | None = None
        self._said = 0.0
        self.construction: Construction | None = None

    def build(self, product_release: int, *, query_release: int) -> None:
        """Make the second collection and let every write go there from now on."""
        release = self._parts.use_or_refuse("product", product_release)
        if release is None:
            return
        collection = self._parts.settings.collection(product_release)
        self._parts.make_collection(collection, product_release=product_release, query_release=query_release)
        self._parts.targets.build(Target(collection, product_release, product_head(release)))
        self.construction, self._filling, self._said = Construction(product_release), None, 0.0
        metrics.ROLLOVER.set(0)
        get_logger().info("rollout_begins", product_release=product_release, collection=collection)

    def fill(self) -> None:
        """Write the next batch of what the new collection lacks, then leave the store to its searches for a while."""
        target, construction = self._under_construction()
        if self._filling is None:
            window_s = self._parts.settings.refresh_window_s
            self._filling = Filling(target, self._parts.store, self._parts.vectors, window_s=window_s)
        filling = self._filling
        if not filling.is_done:
            self._parts.pause(filling.write_batch())
        self._show(construction, filling)
        if filling.is_done:
            self.construction, self._filling = replace(construction, filled=True), None

    def _show(self, construction: Construction, filling: Filling) -> None:
        metrics.ROLLOVER.set(filling.progress)
        if filling.is_done or filling.progress >= self._said + SAY_EVERY:
            self._said = filling.progress
            get_logger().info(
                "rollout_progress",
                product_release=construction.product_release,
                written=filling.written,
                of=filling.total,
            )

    def check(self, serving: Serving) -> None:
        """Check the new collection; what a failed check found missing is filled in, a few times."""
        target, construction = self._under_construction()
        try:
            check_collection(
                target,
                serving.collection,
                store=self._parts.store,
                vectors=self._parts.vectors,
                catch_up=self._parts.catch_up,
                shadow=self._parts.shadow,
                probes=self._parts.encoder.encode(PROBE_TEXTS),
            )
        except CheckFailed as error:
            self._check_failed(construction, error.message)
        else:
            self.construction = replace(construction, checked=True)

    def _check_failed(self, construction: Construction, reason: str) -> None:
        product_release, failed_checks = construction.product_release, construction.failed_checks + 1
        get_logger().warning(
            "rollout_check_failed", product_release=product_release, error=reason, attempt=failed_checks
        )
        if failed_checks >= CHECK_ATTEMPTS:
            self._parts.refuse("product", product_release, reason)
            return
        self.construction = Construction(product_release, failed_checks=failed_checks)
        self._parts.pause(CHECK_PAUSE_S)

    def switch(self, query_release: int, serving: Serving) -> None:
        """Put (query head, collection) in force as one: the alias first, then the record that everybody moves on."""
        target, _ = self._under_construction()
        if self._parts.use_or_refuse("query", query_release) is None:
            return
        self._parts.store.publish_alias(self._parts.settings.alias(), target.collection)
        self._parts.publish(
            Serving(
                query_release=query_release,
                product_release=target.product_release,
                collection=target.collection,
                published_at=published_after(serving),
                previous_collection=serving.collection,
            )
        )
        metrics.RELEASES.labels("product", "in_force").inc()
        metrics.ROLLOVER.set(1)

    def taken_over(self, target: Target) -> None:
        """Let a target be in force; where it was the one under construction, the roll-out is over."""
        self._parts.targets.put_in_force(target)
        if self.construction is not None and self.construction.product_release == target.product_release:
            self.construction = self._filling = None

    def give_up(self) -> None:
        """End the roll-out; its collection is dropped later."""
        construction = self.construction
        self._parts.targets.build(None)
        self.construction = self._filling = None
        get_logger().warning("rollout_given_up", product_release=construction and construction.product_release)

    def _under_construction(self) -> tuple[Target, Construction]:
        target = self._parts.targets.construction
        if target is None or self.construction is None:
            raise InvariantError("there is no collection under construction")
        return target, self.construction


def now_ms() -> int:
    """Return the time on the wire."""
    return time.time_ns() // 1_000_000


def published_after(serving: Serving) -> int:
    """Return the time now, later than that of a record whatever the clock says: records are told apart by it."""
    return max(now_ms(), serving.published_at + 1)

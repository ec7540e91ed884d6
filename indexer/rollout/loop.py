"""The roll-out loop: carries out what `rollout/decisions.py` decides, one step at a time.

Each step is safe to repeat after a crash, and nothing of a roll-out survives the process: a restart begins it again.
"""

from dataclasses import replace
from typing import Final

from contracts.errors import CheckFailed, ContractError, InvariantError
from contracts.releases import Kind, Serving
from indexer.points import Owner, Target, Targets
from indexer.ports import Pause, PutInForce, VectorLog
from indexer.rollout import decisions
from indexer.rollout.checks import MissingPoints, check_collection
from indexer.rollout.decisions import CHECK_ATTEMPTS, Construction, ReleaseId, State
from indexer.store import ProductStore
from service import metrics
from service.logging import get_logger
from service.machine import epoch_ms
from service.models import ModelsTable
from towers.release_files import PROBE_TEXTS, Encoder, Release, product_head, verified_release

SAY_EVERY: Final = 0.1
"""Share of a fill after which its progress is said again."""
CHECK_PAUSE_S: Final = 1.0


class RollOutLoop:
    """Brings releases into force; owns the targets of every write.

    Args:
        store: the index, with a connection of this loop's own.
        owner: names our collections.
        models: the topic `models`.
        put_in_force: writes `serving`.
        log: `product-vectors`, and what is known from it.
        encoder: the base encoder.
        pause: how to wait; True means stop.
        refresh_window_s: within which a new collection is to be filled.
    """

    def __init__(
        self,
        store: ProductStore,
        owner: Owner,
        *,
        models: ModelsTable,
        put_in_force: PutInForce,
        log: VectorLog,
        encoder: Encoder,
        pause: Pause,
        refresh_window_s: float,
    ) -> None:
        self._store = store
        self._owner = owner
        self._models = models
        self._put_in_force = put_in_force
        self._log = log
        self._encoder = encoder
        self._pause = pause
        self._refresh_window_s = refresh_window_s
        self.targets = Targets()
        self._refused: dict[ReleaseId, str] = {}
        self._switches = 0
        self._repaired_at: int | None = None
        self._waits_for = ""
        self._index: tuple[int | None, frozenset[int]] | None = None
        self._construction: Construction | None = None
        self._missing: MissingPoints | None = None
        self._said = 0.0

    def step(self, *, leads: bool) -> bool:
        """Take the next step; return False if there is nothing to do until something changes.

        Args:
            leads: whether this indexer is the one that moves releases.

        Raises:
            TransientError: a server did not answer; the step is repeated.
        """
        if leads and self._log.known.outdated():
            self._write_newest_again()
            return True
        state = self._state(leads=leads)
        step = decisions.next_step(state)
        if isinstance(step, decisions.Wait):
            if step.reason and step.reason != self._waits_for:
                get_logger().info("rollout_waits", reason=step.reason)
            self._waits_for = step.reason
            return False
        self._waits_for = ""
        self._carry_out(step, state)
        return True

    def settle(self) -> None:
        """Take the steps without which nothing can be served: releases in force, and a collection that is complete.

        At its start each indexer takes them, whoever leads.
        """
        while True:
            state = self._state(leads=True)
            step = decisions.next_step(state)
            if not isinstance(step, decisions.Bootstrap | decisions.Repair):
                return
            self._carry_out(step, state)

    def count_points(self) -> None:
        """Show how many products the collections hold."""
        for target in self.targets.current():
            live = self._store.counts(target.collection).live
            metrics.INDEX_POINTS.labels(target.collection).set(live)

    def newest_refused(self) -> str | None:
        """Return why no newer release comes into force, as a readiness check."""
        view = self._models.look()
        refused = view.serving and decisions.newest_refused(view.serving, view.manifests.values(), dict(self._refused))
        return refused or self._models.newest_unreadable()

    def _write_newest_again(self) -> None:
        """Write again what a stalled writer has overtaken with something older, before compaction keeps only that."""
        self._log.read_to_end()
        if outdated := self._log.known.outdated():
            self._log.publish(outdated)
            self._log.read_to_end()
            get_logger().warning("newest_vectors_written_again", products=len(outdated), one=outdated[0].product_id)

    def _state(self, *, leads: bool) -> State:
        view = self._models.look()
        serving, self._switches = view.serving, view.switches
        if serving is not None:
            self._follow(serving)
        alias_target, collections = self._look_at_index()
        manifests = view.manifests.values()
        return State(
            serving=serving,
            leads=leads,
            repaired=self._repaired_at == view.switches,
            query_releases={m.release: m.product_release for m in manifests if m.kind == "query"},
            product_releases={m.release: m.query_release for m in manifests if m.kind == "product"},
            refused=frozenset(self._refused),
            construction=self._construction,
            alias_target=alias_target,
            collections=collections,
            previous=self._owner.release_of(serving.previous_collection) if serving else None,
        )

    def _look_at_index(self) -> tuple[int | None, frozenset[int]]:
        """Return (product release that the alias names, those of all collections of ours), asked again after a step."""
        if self._index is None:
            releases = map(self._owner.release_of, self._store.collections())
            alias_target = self._owner.release_of(self._store.alias_target(self._owner.alias))
            self._index = alias_target, frozenset(release for release in releases if release is not None)
        return self._index

    def _follow(self, serving: Serving) -> None:
        """Let writes go where `serving` says: at a start, and when another indexer moved it."""
        metrics.RELEASE_INFO.labels("query").set(serving.query_release)
        metrics.RELEASE_INFO.labels("product").set(serving.product_release)
        in_force, construction = self.targets.in_force, self.targets.construction
        if in_force is not None and in_force.collection == serving.collection:
            return
        if construction is not None and construction.collection == serving.collection:
            target = construction
        else:
            target = self._target(serving)
        self.targets.put_in_force(target)
        if self._construction is not None and self._construction.product_release == target.product_release:
            self._construction = self._missing = None
        self._index = None

    def _target(self, serving: Serving) -> Target:
        """Return the target of the releases in force.

        Raises:
            InvariantError: its release cannot be used, and no other may stand in for it.
        """
        number = serving.product_release
        try:
            release = verified_release("product", number, value_of=self._models.value, encoder=self._encoder)
        except (CheckFailed, ContractError) as error:
            raise InvariantError(
                f"product release {number} is in force and cannot be used: {error.message}",
                fix="give this process the base model of the others, or restore that record on models",
            ) from error
        return Target(serving.collection, number, product_head(release))

    def _carry_out(self, step: decisions.Step, state: State) -> None:
        serving = state.serving
        if not isinstance(step, decisions.Fill | decisions.ReleaseQuery):
            self._index = None
        match step:
            case decisions.Bootstrap():
                self._bootstrap()
            case decisions.Repair() if serving is not None:
                self._repair(serving)
            case decisions.PublishAlias(product_release):
                self._publish_alias(self._owner.collection(product_release))
            case decisions.ReleaseQuery(query_release) if serving is not None:
                self._release_query(query_release, serving)
            case decisions.Build(product_release):
                self._build(product_release, query_release=state.product_releases[product_release])
            case decisions.Fill():
                self._fill()
            case decisions.Check() if serving is not None:
                self._check(serving)
            case decisions.Switch(query_release) if serving is not None:
                self._switch(query_release, serving)
            case decisions.GiveUp():
                self._give_up()
            case decisions.Drop(product_release):
                self._drop(self._owner.collection(product_release))
            case _:
                raise InvariantError(f"step {step} does not fit the state")

    def _bootstrap(self) -> None:
        """Put release 0 in force; its collection is complete before, because `models` may have been lost."""
        collection = self._owner.collection(0)
        serving = Serving(query_release=0, product_release=0, collection=collection, published_at=epoch_ms())
        self._complete(self._target(serving), serving)
        self._publish(serving)
        self._publish_alias(collection)

    def _repair(self, serving: Serving) -> None:
        """Write what the collection in force lacks.

        All of it on a new store, the last seconds after a lost one, and after a switch what other indexers wrote to the
        one before only.
        """
        target = self.targets.in_force
        if target is None:
            raise InvariantError("there is no collection in force to repair")
        written = self._complete(target, serving)
        if self._store.alias_target(self._owner.alias) is None:
            self._publish_alias(target.collection)
        self._repaired_at = self._switches
        if written:
            get_logger().warning("collection_repaired", collection=target.collection, points=written)

    def _complete(self, target: Target, serving: Serving) -> int:
        """Make a collection if there is none, and write what it lacks; return how many points that were."""
        self._make_collection(target, query_release=serving.query_release)
        self._log.read_to_end()
        missing = MissingPoints(target, self._store, self._log.known)
        missing.write_all()
        return missing.total

    def _make_collection(self, target: Target, *, query_release: int) -> None:
        metadata = {
            "product_release": target.product_release,
            "query_release": query_release,
            "base_version": self._encoder.base_version,
        }
        self._store.ensure_collection(target.collection, self._encoder.dim, metadata=metadata)

    def _release_query(self, query_release: int, serving: Serving) -> None:
        if self._use_or_refuse("query", query_release) is not None:
            newer = {"query_release": query_release, "published_at": _published_after(serving)}
            self._publish(serving.model_copy(update=newer))

    def _build(self, product_release: int, *, query_release: int) -> None:
        """Make the second collection and let every write go there from now on."""
        release = self._use_or_refuse("product", product_release)
        if release is None:
            return
        target = Target(self._owner.collection(product_release), product_release, product_head(release))
        self._make_collection(target, query_release=query_release)
        self.targets.build(target)
        self._construction, self._missing, self._said = Construction(product_release), None, 0.0
        metrics.ROLLOVER.set(0)
        get_logger().info("rollout_begins", product_release=product_release, collection=target.collection)

    def _fill(self) -> None:
        """Write the next batch of what the new collection lacks, then leave the store to its searches for a while."""
        target, construction = self._under_construction()
        if self._missing is None:
            window_s = self._refresh_window_s
            self._missing = MissingPoints(target, self._store, self._log.known, window_s=window_s)
        missing = self._missing
        if not missing.is_done:
            self._pause(missing.write_batch())
        metrics.ROLLOVER.set(missing.progress)
        if missing.is_done or missing.progress >= self._said + SAY_EVERY:
            self._said = missing.progress
            get_logger().info(
                "rollout_progress",
                product_release=construction.product_release,
                written=missing.written,
                of=missing.total,
            )
        if missing.is_done:
            self._construction, self._missing = replace(construction, filled=True), None

    def _check(self, serving: Serving) -> None:
        """Check the new collection; what a failed check found missing is filled in, a few times."""
        target, construction = self._under_construction()
        number, attempt = construction.product_release, construction.failed_checks + 1
        try:
            check_collection(
                target,
                serving.collection,
                store=self._store,
                vectors=self._log.known,
                read_to_end=self._log.read_to_end,
                probes=self._encoder.encode(PROBE_TEXTS),
            )
        except CheckFailed as error:
            get_logger().warning("rollout_check_failed", product_release=number, error=error.message, attempt=attempt)
            if attempt >= CHECK_ATTEMPTS:
                self._refuse("product", number, error.message)
                return
            self._construction = Construction(number, failed_checks=attempt)
            self._pause(CHECK_PAUSE_S)
        else:
            self._construction = replace(construction, checked=True)

    def _switch(self, query_release: int, serving: Serving) -> None:
        """Put (query head, collection) in force as one; the alias follows the record, and is never ahead of it."""
        target, _ = self._under_construction()
        if self._use_or_refuse("query", query_release) is None:
            return
        self._publish(
            Serving(
                query_release=query_release,
                product_release=target.product_release,
                collection=target.collection,
                published_at=_published_after(serving),
                previous_collection=serving.collection,
            )
        )
        metrics.RELEASES.labels("product", "in_force").inc()
        metrics.ROLLOVER.set(1)
        self._publish_alias(target.collection)

    def _give_up(self) -> None:
        """End the roll-out; its collection is dropped later."""
        get_logger().warning("rollout_given_up", product_release=self._under_construction()[0].product_release)
        self.targets.build(None)
        self._construction = self._missing = None

    def _publish(self, serving: Serving) -> None:
        self._put_in_force(serving)
        metrics.RELEASES.labels("query", "in_force").inc()
        get_logger().info(
            "serving_published",
            query_release=serving.query_release,
            product_release=serving.product_release,
            collection=serving.collection,
        )

    def _publish_alias(self, collection: str) -> None:
        self._store.publish_alias(self._owner.alias, collection)
        get_logger().info("alias_published", collection=collection)

    def _drop(self, collection: str) -> None:
        self._store.drop(collection)
        metrics.INDEX_POINTS.labels(collection).set(0)
        get_logger().info("collection_dropped", collection=collection)

    def _use_or_refuse(self, kind: Kind, number: int) -> Release | None:
        """Return a release that may be used; one that may not is refused for good."""
        try:
            return verified_release(kind, number, value_of=self._models.value, encoder=self._encoder)
        except (CheckFailed, ContractError) as error:
            self._refuse(kind, number, error.message)
            return None

    def _refuse(self, kind: Kind, number: int, reason: str) -> None:
        """Never try a release again, count it and say why."""
        self._refused[kind, number] = reason
        metrics.RELEASES.labels(kind, "refused").inc()
        get_logger().error("release_refused", release=f"{kind}-{number}", error=reason)

    def _under_construction(self) -> tuple[Target, Construction]:
        target = self.targets.construction
        if target is None or self._construction is None:
            raise InvariantError("there is no collection under construction")
        return target, self._construction


def _published_after(serving: Serving) -> int:
    """Return the time now, later than that of a record whatever the clock says: records are told apart by it."""
    return max(epoch_ms(), serving.published_at + 1)

"""The roll-out loop: carries out what `rollout/decisions.py` decides, one step at a time.

Each step is safe to repeat after a crash, and nothing of a roll-out survives the process: a restart begins it again.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from contracts.errors import CheckFailed, ContractError, InvariantError, UsageError
from contracts.releases import Kind, ReleaseManifest, Rollback, Serving, withdrawn
from indexer.points import InForce, Owner, Target
from indexer.ports import Pause, PutInForce, VectorLog
from indexer.rollout import decisions
from indexer.rollout.collections import OwnCollections
from indexer.rollout.decisions import ReleaseId, State
from indexer.rollout.refresh import Refresh, forget_deletions
from indexer.rollout.rewritten import quality_again, with_fence
from indexer.store import ProductStore, StoredPoint
from service import metrics
from service.logging import get_logger
from service.machine import epoch_ms
from service.models import ModelsTable
from towers.release_files import (
    Encoder,
    Release,
    identity_release,
    verified_release,
)

ROLLED_BACK: Final = "rollback"
"""Reason of a `serving` that names an older query release."""
NO_RELEASES: Final[Mapping[str, bytes]] = {}


class RollOutLoop:
    """Brings releases into force; tells where every write goes.

    Args:
        store: the index, with a connection of this loop's own.
        owner: names our collections.
        models: the topic `models`.
        put_in_force: writes to `models`.
        log: `product-vectors`, and what is known from it.
        encoder: the base encoder.
        pause: how to wait; True means stop.
        refresh_window_s: within which a product release is to be written.
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
        self._collections = OwnCollections(store, owner, log=log, encoder=encoder, pause=pause)
        self._models = models
        self._put_in_force = put_in_force
        self._log = log
        self._encoder = encoder
        self._pause = pause
        self._refresh_window_s = refresh_window_s
        self._refused: dict[ReleaseId, str] = {}
        self._overtaken: set[ReleaseId] = set()
        self._damaged: set[str] = set()
        self._target: Target | None = None
        self._switches = 0
        self._repaired_at: int | None = None
        self._stored: dict[str, StoredPoint] | None = None
        self._index: tuple[str | None, dict[str, int]] | None = None
        self._refresh: Refresh | None = None

    def target(self) -> Target:
        """Tell where writes go: whoever asks once per batch writes what belongs together."""
        if self._target is None:
            raise InvariantError("nothing is in force yet")
        return self._target

    def step(self, *, leads: bool) -> bool:
        """Take the next step; return False if there is nothing to do until something changes.

        Args:
            leads: whether this indexer is the one that moves releases.

        Raises:
            TransientError: a server did not answer; the step is repeated.
        """
        if leads and self._log.known.outdated(1):
            self._write_newest_again()
            return True
        overwritten = {key: value for key, value in self._models.overwritten().items() if key not in self._damaged}
        if leads and overwritten and (serving := self._models.serving()) is not None:
            self._release_again(overwritten, serving)
            return True
        if not leads:
            self._stored = self._refresh = None  # whoever leads writes what was compared here
        state = self._state(leads=leads)
        step = decisions.next_step(state)
        if isinstance(step, decisions.Wait):
            return False
        self._carry_out(step, state.serving)
        return True

    def settle(self) -> None:
        """Take the steps without which nothing can be served: releases in force, and a collection that is complete.

        At its start each indexer takes them, whoever leads. A collection in force that cannot hold our vectors, of
        another base or from an earlier version of Millrace, is answered from until a second one is filled.
        """
        while True:
            serving = self._models.serving()
            misfit = serving and self._collections.misfit(serving.collection)
            if serving is not None and misfit:
                get_logger().info("second_collection_needed", collection=serving.collection, reason=misfit)
                self._begin(serving)
                continue
            state = self._state(leads=True)
            step = decisions.next_step(state)
            if not isinstance(step, decisions.Begin | decisions.Repair):
                return
            self._carry_out(step, serving)

    def count_points(self) -> None:
        """Show how many products the collection in force holds."""
        if self._target is not None:
            live = self._store.counts(self._target.collection).live
            metrics.INDEX_POINTS.labels(self._target.collection).set(live)

    def forget_deletions(self, before_ms: int) -> None:
        """Let go of some products that were deleted before a time; the next call takes the rest."""
        if self._target is not None and self._stored is not None:
            forget_deletions(self._target, self._store, self._log, self._stored, before_ms=before_ms)

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

    def _release_again(self, overwritten: Mapping[str, bytes], serving: Serving) -> None:
        """Write releases again under whose keys an overtaken trainer has written; what is in force stays so."""
        again = with_fence(overwritten, self._models.look().fence)
        self._damaged |= overwritten.keys() - again.keys()
        self._put_in_force(serving.model_copy(update={"published_at": _published_after(serving)}), again)
        get_logger().warning("releases_written_again", releases=sorted(again))

    def _state(self, *, leads: bool) -> State:
        view = self._models.look()
        serving, self._switches = view.serving, view.switches
        if serving is not None:
            self._follow(serving)
        if self._index is None:
            self._index = self._collections.look()
        alias_target, collections = self._index
        return State(
            serving=serving,
            leads=leads,
            repaired=self._stored is not None and self._repaired_at == view.switches,
            releases=self._usable(serving),
            alias_target=alias_target,
            collections=collections,
            rollback=view.rollback_due(),
        )

    def _usable(self, serving: Serving | None) -> frozenset[ReleaseId]:
        """Return the releases that may come into force: over our base, not refused, taken back or overtaken."""
        usable = set()
        manifests = self._models.look().manifests.values()
        gone = frozenset[int]() if serving is None else withdrawn(serving, manifests)
        for manifest in manifests:
            release: ReleaseId = manifest.kind, manifest.release
            if manifest.query_release in gone:  # its own number, or that of the query release it came with
                continue
            if manifest.base_version != self._encoder.base_version or release in self._refused:
                continue
            if serving is None or manifest.fence >= serving.fence:
                usable.add(release)
            elif manifest.release > serving.release_of(manifest.kind) and release not in self._overtaken:
                self._overtaken.add(release)
                overtaken = f"its trainer was overtaken: fence {manifest.fence}, in force {serving.fence}"
                get_logger().error("release_refused", release=f"{manifest.kind}-{manifest.release}", error=overtaken)
        return frozenset(usable)

    def _follow(self, serving: Serving) -> None:
        """Let writes go where `serving` says: at a start, and when another indexer moved it."""
        metrics.RELEASE_INFO.labels("query").set(serving.query_release)
        metrics.RELEASE_INFO.labels("product").set(serving.product_release)
        if self._target is not None and self._target.in_force == InForce.of(serving):
            return
        if self._refresh is not None and self._refresh.target.in_force == InForce.of(serving):
            self._target = self._refresh.target
        else:
            self._target = self._target_of(serving)
        self._index = self._refresh = None

    def _target_of(self, serving: Serving) -> Target:
        """Return the target of the releases in force.

        Raises:
            UsageError: their collection is of another base.
            InvariantError: the product release cannot be used, and no other may stand in for it.
        """
        if misfit := self._collections.misfit(serving.collection):
            raise UsageError(
                f"collection {serving.collection} is in force and {misfit}",
                fix="give every indexer, trainer and search the same MILLRACE_BASE_MODEL",
            )
        number = serving.product_release
        try:
            release = self._verified("product", number)
        except (CheckFailed, ContractError) as error:
            raise InvariantError(
                f"product release {number} is in force and cannot be used: {error.message}",
                fix="give this process the base model of the others, or restore that record on models",
            ) from error
        return Target(serving.collection, number, release.product_tower(), self._collections.kept(serving))

    def _carry_out(self, step: decisions.Step, serving: Serving | None) -> None:
        if not isinstance(step, decisions.Refresh | decisions.ReleaseQuery):
            self._index = None
        match step:
            case decisions.Begin():
                self._begin(None)
            case decisions.RollBack(request) if serving is not None:
                self._roll_back(request, serving)
            case decisions.Repair() if serving is not None:
                self._repair(serving)
            case decisions.PublishAlias() if serving is not None:
                self._collections.publish_alias(serving.collection)
            case decisions.ReleaseQuery(query_release) if serving is not None:
                self._release_query(query_release, serving)
            case decisions.Refresh(product_release) if serving is not None:
                self._refresh_product(product_release, serving)
            case decisions.Drop(collection):
                self._collections.drop(collection)
            case _:
                raise InvariantError(f"step {step} does not fit the state")

    def _begin(self, before: Serving | None) -> None:
        """Fill a collection and put it in force with the newest releases that can be used here.

        Raises:
            DependencyDown: it is not filled in time.
            InvariantError: a second collection does not hold what it should.
        """
        query = self._usable_or_identity("query", before)
        product = self._usable_or_identity("product", before)
        target, self._stored = self._collections.filled(product, query, before)
        if self._models.serving() is not before:
            return  # another indexer was quicker
        self._publish(
            Serving(
                query_release=query.manifest.release,
                product_release=target.product_release,
                collection=target.collection,
                published_at=epoch_ms() if before is None else _published_after(before),
                previous_collection=None if before is None else before.collection,
                fence=0 if before is None else before.fence,
                withdrawn_above=0 if before is None else before.withdrawn_above,
                withdrawn=0 if before is None else before.withdrawn,
                rollback_answered=0 if before is None else before.rollback_answered,
            )
        )
        self._collections.publish_alias(target.collection)

    def _usable_or_identity(self, kind: Kind, before: Serving | None) -> Release:
        ours = {number for its_kind, number in self._usable(before) if its_kind == kind}
        for number in sorted(ours if before is None else {*ours, before.release_of(kind)}, reverse=True):
            with suppress(CheckFailed, ContractError):
                return self._verified(kind, number)
        return identity_release(kind, self._encoder)

    def _repair(self, serving: Serving) -> None:
        """Write what the collection in force lacks.

        All of it on a new store, the last seconds after a lost one, what a leader left undone that ended, and after a
        change of what is in force only what other indexers wrote before they knew.
        """
        target, compares = self.target(), self._stored is None
        if self._stored is None:
            self._collections.make(target, query_release=serving.query_release)
            self._stored = self._store.stored(target.collection)
        self._collections.complete(target.collection, self._stored)
        repair = Refresh(target, self._store, self._log.known, self._stored)
        self._collections.write_all(repair)
        if self._collections.look()[0] is None:
            self._collections.publish_alias(target.collection)
        self._repaired_at = self._switches
        if repair.total and compares:
            get_logger().warning("collection_repaired", collection=target.collection, points=repair.total)

    def _release_query(self, query_release: int, serving: Serving) -> None:
        release = self._use_or_refuse("query", query_release)
        if release is not None:
            changes = {"query_release": query_release, "reason": "release"}
            self._publish(_with(release.manifest, serving, **changes))

    def _roll_back(self, request: Rollback, serving: Serving) -> None:
        """Put an older query release in force; one that cannot be is refused, and the request is answered."""
        number, answered = request.query_release, {"rollback_answered": request.requested_at}
        gone = withdrawn(serving, self._models.look().manifests.values())
        can_be = number < serving.query_release and number not in gone
        release = self._use_or_refuse("query", number) if can_be else None
        if release is None:
            get_logger().error("rollback_refused", query_release=number, in_force=serving.query_release)
            self._put_in_force(serving.model_copy(update={**answered, "published_at": _published_after(serving)}))
            return
        quality = self._quality_of(release.manifest, serving)
        # Above the last one in any case: who follows `serving` tells a rollback by it.
        highest = max(self._models.highest("query"), serving.query_release, serving.withdrawn + 1)
        taken_back = {"withdrawn_above": number, "withdrawn": highest}
        changes = {"query_release": number, **taken_back, "reason": ROLLED_BACK}
        self._publish(_with(release.manifest, serving, **changes, **answered), quality)
        get_logger().warning("rolled_back", query_release=number, withdrawn_up_to=highest)

    def _quality_of(self, query: ReleaseManifest, serving: Serving) -> dict[str, bytes]:
        try:
            release = self._verified("product", query.product_release)
        except (CheckFailed, ContractError) as error:
            get_logger().error("quality_not_rolled_back", product_release=query.product_release, error=error.message)
            return {}
        return quality_again(release, query, models=self._models, serving=serving)

    def _refresh_product(self, number: int, serving: Serving) -> None:
        """Write the next points whose quality a product release moves, and put it in force after the last."""
        if self._refresh is None or self._refresh.target.product_release != number:
            release = self._use_or_refuse("product", number)
            if release is None:
                return
            if self._stored is None:
                raise InvariantError("the collection was not compared with the base vectors yet")
            target = Target(serving.collection, number, release.product_tower())
            window_s = 0.0 if serving.reason == ROLLED_BACK else self._refresh_window_s
            self._refresh = Refresh(target, self._store, self._log.known, self._stored, window_s=window_s)
            get_logger().info("rollout_begins", product_release=number, moves=self._refresh.total)
        refresh = self._refresh
        if not refresh.is_done:
            self._pause(refresh.write_batch())
        refresh.say()
        if refresh.is_done and (release := self._use_or_refuse("product", number)) is not None:
            if serving.previous_collection is not None:  # before nobody knows of it: it may have the higher number
                self._collections.drop(serving.previous_collection)
            self._publish(_with(release.manifest, serving, product_release=number, previous_collection=None))
            metrics.RELEASES.labels("product", "in_force").inc()

    def _publish(self, serving: Serving, releases: Mapping[str, bytes] = NO_RELEASES) -> None:
        self._put_in_force(serving, releases)
        metrics.RELEASES.labels("query", "in_force").inc()
        get_logger().info(
            "serving_published",
            query_release=serving.query_release,
            product_release=serving.product_release,
            collection=serving.collection,
        )

    def _verified(self, kind: Kind, number: int) -> Release:
        return verified_release(kind, number, value_of=self._models.value, encoder=self._encoder)

    def _use_or_refuse(self, kind: Kind, number: int) -> Release | None:
        """Return a release that may be used; one that may not is refused for good, counted, and said why."""
        try:
            return self._verified(kind, number)
        except (CheckFailed, ContractError) as error:
            self._refused[kind, number] = error.message
            metrics.RELEASES.labels(kind, "refused").inc()
            get_logger().error("release_refused", release=f"{kind}-{number}", error=error.message)
            return None


def _with(manifest: ReleaseManifest, serving: Serving, **changes: Any) -> Serving:
    """Return what is in force once a release is: later than the record before, whatever the clock says.

    Records are told apart by their time.
    """
    fence = max(serving.fence, manifest.fence)
    return serving.model_copy(update={**changes, "fence": fence, "published_at": _published_after(serving)})


def _published_after(serving: Serving) -> int:
    return max(epoch_ms(), serving.published_at + 1)

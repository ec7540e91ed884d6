"""The models lane: follows `models`, rolls product releases out and puts pairs in force.

Decisions are `core/rollover.py`; here they are carried out, one step at a time, each safe to repeat after a crash.
"""

from dataclasses import replace

from contracts.errors import CheckFailed, ContractError, InvariantError
from contracts.releases import Serving
from indexer.core import rollover
from indexer.core.rollover import Facts
from indexer.filling import Filling
from indexer.parts import Parts
from indexer.releases import product_head
from indexer.rollout import RollOut, now_ms, published_after
from indexer.targets import Target
from service import metrics
from service.logging import get_logger


class ModelsLane:
    """Carries out the steps of `core/rollover.py`.

    Args:
        parts: what it works with.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rollout = RollOut(parts)
        self._switches = 0
        self._repaired_at: int | None = None
        self._waits_for = ""
        self._index: tuple[int | None, frozenset[int]] | None = None

    def step(self) -> bool:
        """Take the next step; return False where there is nothing to do until something changes.

        Raises:
            TransientError: the store did not answer; the step is repeated.
        """
        facts = self._facts()
        step = rollover.next_step(facts)
        if isinstance(step, rollover.Wait):
            self._say_wait(step.reason)
            return False
        self._waits_for = ""
        self._carry_out(step, facts)
        return True

    def settle(self) -> None:
        """Take the steps without which nothing can be served: a pair in force, and a collection that is complete.

        At its start each indexer takes them, whoever leads.
        """
        while True:
            facts = replace(self._facts(), leads=True)
            step = rollover.next_step(facts)
            if not isinstance(step, rollover.Bootstrap | rollover.Repair):
                return
            self._carry_out(step, facts)

    def count_points(self) -> None:
        """Show how many products the collections hold."""
        for target in self._parts.targets.current():
            live = self._parts.store.counts(target.collection).live
            metrics.INDEX_POINTS.labels(target.collection).set(live)

    def _facts(self) -> Facts:
        view = self._parts.releases.view()
        serving, self._switches = view.serving, view.switches
        if serving is not None:
            self._follow(serving)
        alias_target, collections = self._look_at_index()
        manifests = list(view.manifests.values())
        return Facts(
            serving=serving,
            leads=self._parts.leads(),
            repaired=self._repaired_at == view.switches,
            query_releases={m.release: m.product_release for m in manifests if m.kind == "query"},
            product_releases={m.release: m.query_release for m in manifests if m.kind == "product"},
            refused=frozenset(self._parts.refused),
            construction=self._rollout.construction,
            alias_target=alias_target,
            collections=collections,
            previous=self._release_of(serving.previous_collection) if serving else None,
        )

    def _look_at_index(self) -> tuple[int | None, frozenset[int]]:
        """Return (product release that the alias names, those of all collections of ours), asked again after a step."""
        if self._index is None:
            store, alias = self._parts.store, self._parts.settings.alias()
            ours = frozenset(release for name in store.collections() if (release := self._release_of(name)) is not None)
            self._index = self._release_of(store.alias_target(alias)), ours
        return self._index

    def _release_of(self, collection: str | None) -> int | None:
        if collection is None:
            return None
        return rollover.collection_release(collection, self._parts.settings.topic_prefix)

    def _follow(self, serving: Serving) -> None:
        """Let writes go where `serving` says; at a start, and where another indexer moved it."""
        metrics.RELEASE_INFO.labels("query").set(serving.query_release)
        metrics.RELEASE_INFO.labels("product").set(serving.product_release)
        in_force, construction = self._parts.targets.in_force, self._parts.targets.construction
        if in_force is not None and in_force.collection == serving.collection:
            return
        if construction is not None and construction.collection == serving.collection:
            self._rollout.taken_over(construction)
        else:
            self._rollout.taken_over(self._target(serving))
        self._index = None

    def _target(self, serving: Serving) -> Target:
        """Return the target of the pair in force.

        Raises:
            InvariantError: its release cannot be used, and no other may stand in for it.
        """
        product_release = serving.product_release
        try:
            release = self._parts.verified("product", product_release)
        except (CheckFailed, ContractError) as error:
            raise InvariantError(
                f"product release {product_release} is in force and cannot be used: {error.message}",
                fix="give this process the base model of the others, or restore that record on models",
            ) from error
        return Target(serving.collection, product_release, product_head(release))

    def _carry_out(self, step: rollover.Step, facts: Facts) -> None:
        serving = facts.serving
        if not isinstance(step, rollover.Fill | rollover.ReleaseQuery):
            self._index = None
        match step:
            case rollover.Bootstrap():
                self._bootstrap()
            case rollover.Repair() if serving is not None:
                self._repair(serving)
            case rollover.PublishAlias(product_release):
                self._publish_alias(product_release)
            case rollover.ReleaseQuery(query_release) if serving is not None:
                self._release_query(query_release, serving)
            case rollover.Build(product_release):
                self._rollout.build(product_release, query_release=facts.product_releases[product_release])
            case rollover.Fill():
                self._rollout.fill()
            case rollover.Check() if serving is not None:
                self._rollout.check(serving)
            case rollover.Switch(query_release) if serving is not None:
                self._rollout.switch(query_release, serving)
            case rollover.GiveUp():
                self._rollout.give_up()
            case rollover.Drop(product_release):
                self._drop(product_release)
            case _:
                raise InvariantError(f"step {step} does not fit the facts")

    def _bootstrap(self) -> None:
        settings = self._parts.settings
        collection = settings.collection(0)
        self._parts.make_collection(collection, product_release=0, query_release=0)
        self._parts.store.publish_alias(settings.alias(), collection)
        self._parts.publish(Serving(query_release=0, product_release=0, collection=collection, published_at=now_ms()))

    def _repair(self, serving: Serving) -> None:
        """Write what the collection in force lacks.

        All of it on a new store, the last seconds after a lost one, and after a switch what other indexers wrote to the
        one before only.
        """
        target = self._parts.targets.in_force
        if target is None:
            raise InvariantError("there is no collection in force to repair")
        self._parts.make_collection(
            target.collection, product_release=serving.product_release, query_release=serving.query_release
        )
        self._parts.catch_up()
        filling = Filling(target, self._parts.store, self._parts.vectors, window_s=0.0)
        filling.write_all()
        alias = self._parts.settings.alias()
        if self._parts.store.alias_target(alias) is None:
            self._parts.store.publish_alias(alias, target.collection)
        self._repaired_at = self._switches
        if filling.total:
            get_logger().warning("collection_repaired", collection=target.collection, points=filling.total)

    def _publish_alias(self, product_release: int) -> None:
        collection = self._parts.settings.collection(product_release)
        self._parts.store.publish_alias(self._parts.settings.alias(), collection)
        get_logger().info("alias_published", collection=collection)

    def _release_query(self, query_release: int, serving: Serving) -> None:
        if self._parts.use_or_refuse("query", query_release) is not None:
            self._parts.publish(
                serving.model_copy(update={"query_release": query_release, "published_at": published_after(serving)})
            )

    def _drop(self, product_release: int) -> None:
        collection = self._parts.settings.collection(product_release)
        self._parts.store.drop(collection)
        metrics.INDEX_POINTS.labels(collection).set(0)
        get_logger().info("collection_dropped", collection=collection)

    def _say_wait(self, reason: str) -> None:
        """Say what the lane waits for, once."""
        if reason and reason != self._waits_for:
            get_logger().info("rollout_waits", reason=reason)
        self._waits_for = reason

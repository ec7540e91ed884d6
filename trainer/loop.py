"""The trainer's loop: poll -> batch -> step -> checkpoint -> commit -> publish, each only after the one before.

A release leaves only after the state that made it is durable and the group has confirmed that this trainer is still
the one. A crash between any two of these repeats what is missing: the checkpoint carries the releases themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts.errors import InvariantError, UsageError
from contracts.releases import Kind, Serving, release_key
from service.logging import get_logger
from towers.heads import ProductHead, QueryHead
from towers.release_files import Encoder, Release, identity_release, unpack
from trainer.core.facts import PendingRelease
from trainer.core.learner import Learner
from trainer.core.microbatch import MicroBatcher
from trainer.core.records import PairRecord
from trainer.core.releasing import Cadence, plan_product_release, plan_query_release, retired_keys
from trainer.core.safety import SafetyCaps, Towers
from trainer.core.state import snapshot_of
from trainer.ports import CheckpointStore, ModelsView, PairSource, ReleaseWriter
from trainer.reporting import Reporting


class Ports(NamedTuple):
    """The world as the loop sees it."""

    source: PairSource
    checkpoints: CheckpointStore
    models: ModelsView
    writer: ReleaseWriter


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Sizes and times of the loop.

    Args:
        cadence: shortest times between releases.
        batch_pairs: pairs of a full micro-batch.
        batch_age_s: how long a pair waits for a full micro-batch; part of click-to-search freshness.
        checkpoint_ms: longest time that trained pairs stay without a checkpoint.
        poll_s: how long a poll waits for pairs.
        caps: how far one release may go.
    """

    cadence: Cadence
    batch_pairs: int = 128
    batch_age_s: float = 2.0
    checkpoint_ms: int = 15_000
    poll_s: float = 0.2
    caps: SafetyCaps = field(default_factory=SafetyCaps)


class TrainerLoop:
    """One trainer at work.

    Args:
        learner: fresh, or as its checkpoint had it.
        ports: the world.
        encoder: for the probe texts.
        settings: sizes and times.
        clock_ms: epoch milliseconds.
    """

    def __init__(
        self, learner: Learner, ports: Ports, *, encoder: Encoder, settings: LoopSettings, clock_ms: Callable[[], int]
    ) -> None:
        self.learner = learner
        self._ports = ports
        self._encoder = encoder
        self._settings = settings
        self._clock_ms = clock_ms
        self._batcher = MicroBatcher[PairRecord](settings.batch_pairs, settings.batch_age_s)
        self._saved_ms = clock_ms()
        self._unsaved = False
        self._reporting = Reporting()
        learner.timed = self._reporting.timed

    def resume(self, outbox: Mapping[str, bytes]) -> None:
        """Take up work where the checkpoint left it: position, numbers, and releases that were not published."""
        facts, models = self.learner.facts, self._ports.models
        facts.last_query_release = max(facts.last_query_release, models.highest("query"))
        facts.last_product_release = max(facts.last_product_release, models.highest("product"))
        self._ports.source.seek(facts.offsets)
        missing = {key: value for key, value in outbox.items() if not models.seen(key)}
        if missing:
            self._ports.source.commit(facts.offsets)
            self._ports.writer.publish(missing)
            get_logger().info("releases published after a restart", releases=sorted(missing))
        self._adopt()

    def turn(self) -> None:
        """Do one round: read, learn what is due, follow `serving`, release what is due."""
        records = self._ports.source.poll(self._settings.poll_s)
        now_ms = self._clock_ms()
        self._batcher.add(records, now_s=now_ms / 1000)
        while batch := self._batcher.take(now_s=now_ms / 1000):
            self._learn(batch, now_ms=now_ms)
        self._adopt()
        values = self._due_releases(now_ms)
        if values or (self._unsaved and now_ms - self._saved_ms >= self._settings.checkpoint_ms):
            self._make_durable(values)

    def finish(self) -> None:
        """Make what was learned durable; pairs that still wait are read again at the next start."""
        if self._unsaved:
            self._make_durable({})

    def _learn(self, batch: list[PairRecord], *, now_ms: int) -> None:
        """Train on one micro-batch."""
        lesson = self.learner.learn(batch)
        self._unsaved = True
        if lesson.reports and not self.learner.facts.product_released_ms:
            self.learner.facts.product_released_ms = (
                now_ms  # the product lane's first interval begins with its learning
            )
        self._reporting.lesson(lesson, batch, step=self.learner.facts.step)

    def _due_releases(self, now_ms: int) -> dict[str, bytes]:
        """Decide on every release that is due, note it in the state, and return what is to be published."""
        cadence, caps, facts = self._settings.cadence, self._settings.caps, self.learner.facts
        values: dict[str, bytes] = {}
        if cadence.query_due(facts, now_ms=now_ms):
            facts.query_released_ms = now_ms
            plan = plan_query_release(self.learner, self._encoder, caps=caps, now_ms=now_ms)
            self._reporting.plan("query", plan, facts)
            if plan.towers is not None:
                self.learner.note_query_release(plan.number, plan.towers.query, now_ms=now_ms)
            values |= plan.values
        if cadence.product_due(facts, now_ms=now_ms):
            facts.product_released_ms = now_ms
            plan = plan_product_release(self.learner, self._encoder, caps=caps, now_ms=now_ms)
            self._reporting.plan("product", plan, facts)
            if plan.towers is not None:
                pending = PendingRelease(product_release=plan.number, query_release=facts.last_query_release + 1)
                self.learner.note_product_release(pending, plan.towers, now_ms=now_ms)
            values |= plan.values
        return values

    def _make_durable(self, values: dict[str, bytes]) -> None:
        """Checkpoint, commit, publish, retire, in this order."""
        offsets = dict(self.learner.facts.offsets)
        self._ports.checkpoints.save(snapshot_of(self.learner, values))
        self._reporting.saved(self._clock_ms())
        self._ports.source.commit(offsets)
        self._saved_ms, self._unsaved = self._clock_ms(), False
        if values:
            self._ports.writer.publish(values)
            self._ports.writer.retire(self._retired())

    def _retired(self) -> list[str]:
        """Return the releases on `models` that nobody needs any more."""
        facts, models = self.learner.facts, self._ports.models
        in_force = (facts.query_release, facts.product_release)
        return retired_keys(models.keys(), models.first_queries(), in_force=in_force, pending=facts.pending)

    def _adopt(self) -> None:
        """Move to the pair that `serving` names, if it is another than before."""
        serving, facts = self._ports.models.serving(), self.learner.facts
        if serving is None:
            return
        named = serving.query_release, serving.product_release
        if named == (facts.query_release, facts.product_release):
            return
        if serving.product_release == facts.product_release:
            facts.query_release = serving.query_release
        elif facts.pending is not None and serving.product_release == facts.pending.product_release:
            self.learner.adopt_pending(serving.query_release)
        else:
            towers = self._published_towers(serving)
            if towers is None:
                return
            self.learner.adopt_foreign(towers, query_release=named[0], product_release=named[1])
        self._unsaved = True
        self._reporting.adopted(facts.query_release, facts.product_release)

    def _published_towers(self, serving: Serving) -> Towers | None:
        """Return the heads of a pair from its bytes on `models`, None while they have not been read yet."""
        query = self._published("query", serving.query_release)
        product = self._published("product", serving.product_release)
        if query is None or product is None:
            return None
        heads = query.head(), product.head()
        if not isinstance(heads[0], QueryHead) or not isinstance(heads[1], ProductHead):
            raise InvariantError(
                f"releases {serving.query_release} and {serving.product_release} are of the wrong kind"
            )
        return Towers(heads[0], heads[1])

    def _published(self, kind: Kind, number: int) -> Release | None:
        """Return a release; number 0 is built in.

        Raises:
            UsageError: it was trained over another base model, whose vectors ours must never meet.
        """
        if number == 0:
            return identity_release(kind, self._encoder)
        key = release_key(kind, number).decode()
        value = self._ports.models.value(key)
        if value is None:
            return None
        release, ours = unpack(value), self._encoder
        found = release.manifest
        if (found.base_version, found.dim) != (ours.base_version, ours.dim):
            raise UsageError(
                f"{key} is in force and was trained over {found.base_version} ({found.dim} dimensions),"
                f" not {ours.base_version} ({ours.dim})",
                fix="set the MILLRACE_BASE_MODEL that it was trained over, or choose another MILLRACE_TOPIC_PREFIX and"
                " send the catalogue anew",
            )
        return release

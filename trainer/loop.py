"""The trainer's loop: poll -> batch -> step -> checkpoint -> commit -> publish, each only after the one before.

A release leaves only after the state that made it is durable and the group has confirmed that this trainer is still
the one. A crash between any two of these repeats what is missing: the checkpoint carries the releases themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from contracts.errors import InvariantError, UsageError
from contracts.releases import Kind, Serving, release_key
from service.logging import get_logger
from service.machine import EpochClock
from service.models import ModelsTable
from towers.heads import ProductHead, QueryHead, Towers
from towers.release_files import Encoder, Release, identity_release, unpack
from trainer import reporting
from trainer.learner import Learner, PairRecord
from trainer.release.planning import Cadence, PlannedRelease, plan_product_release, plan_query_release, retired_keys
from trainer.release.safety import SafetyCaps
from trainer.state import Snapshot, snapshot_of

P = TypeVar("P")


class PairSource(Protocol):
    """`preference-pairs`, read by the one trainer that is assigned all of its partitions."""

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read on from these offsets; partitions that are not named are read from their beginning."""

    def poll(self, timeout_s: float) -> list[PairRecord]:
        """Give the next records in the order of each partition, none once the time is over.

        Raises:
            TransientError: another trainer may have the partitions now.
        """

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit as the member that is assigned the partitions.

        Raises:
            TransientError: another trainer may have them now.
        """


class CheckpointStore(Protocol):
    """Durable states."""

    def save(self, snapshot: Snapshot) -> None:
        """Make a state durable before returning."""


class ReleaseWriter(Protocol):
    """Writes to `models`; every call returns after Kafka's acknowledgement."""

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Write releases in the order given."""

    def retire(self, keys: Sequence[str]) -> None:
        """Write tombstones."""


class MicroBatcher(Generic[P]):
    """Collects pairs until there are enough for a step, or the oldest has waited long enough; first in, first out.

    Args:
        size: pairs of a full micro-batch.
        max_age_s: how long a pair waits for others at most.
    """

    def __init__(self, size: int, max_age_s: float) -> None:
        self._size = size
        self._max_age_s = max_age_s
        self._waiting: list[P] = []
        self._oldest_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pairs: Sequence[P], *, now_s: float) -> None:
        """Add pairs that arrived now."""
        if pairs and not self._waiting:
            self._oldest_s = now_s
        self._waiting.extend(pairs)

    def take(self, *, now_s: float) -> list[P]:
        """Take the next micro-batch, empty while none is due.

        >>> batcher = MicroBatcher[str](size=2, max_age_s=5.0)
        >>> batcher.add(["a", "b", "c"], now_s=0.0)
        >>> batcher.take(now_s=0.0), batcher.take(now_s=0.0), batcher.take(now_s=5.0)
        (['a', 'b'], [], ['c'])
        """
        full = len(self._waiting) >= self._size
        old = bool(self._waiting) and now_s - self._oldest_s >= self._max_age_s
        if not full and not old:
            return []
        batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        self._oldest_s = now_s
        return batch

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()


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
        source: the pairs.
        checkpoints: durable states.
        models: what was released and what is in force.
        writer: of releases.
        encoder: for the probe texts.
        settings: sizes and times.
        clock_ms: epoch milliseconds.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        source: PairSource,
        checkpoints: CheckpointStore,
        models: ModelsTable,
        writer: ReleaseWriter,
        encoder: Encoder,
        settings: LoopSettings,
        clock_ms: EpochClock,
    ) -> None:
        self.learner = learner
        self._source = source
        self._checkpoints = checkpoints
        self._models = models
        self._writer = writer
        self._encoder = encoder
        self._settings = settings
        self._clock_ms = clock_ms
        self._batcher = MicroBatcher[PairRecord](settings.batch_pairs, settings.batch_age_s)
        self._saved_ms = clock_ms()
        self._unsaved = False
        learner.timed = reporting.timed

    def resume(self, outbox: Mapping[str, bytes]) -> None:
        """Take up work where the checkpoint left it: position, numbers, and releases that were not published.

        Without a checkpoint it begins from the releases in force and the offsets that these were trained up to.
        """
        progress = self.learner.progress
        progress.last_query_release = max(progress.last_query_release, self._models.highest("query"))
        progress.last_product_release = max(progress.last_product_release, self._models.highest("product"))
        self._source.seek(progress.offsets)
        missing = {key: value for key, value in outbox.items() if not self._models.seen(key)}
        if missing:
            self._source.commit(progress.offsets)
            self._writer.publish(missing)
            get_logger().info("releases_published_after_restart", releases=sorted(missing))
        self._adopt()
        get_logger().info("training", pairs_trained=progress.pairs_trained, offsets=progress.offsets)

    def run_once(self) -> None:
        """Read, learn what is due, follow `serving`, release what is due."""
        records = self._source.poll(self._settings.poll_s)
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
        outcome = self.learner.learn(batch)
        self._unsaved = True
        progress = self.learner.progress
        if outcome.steps and not progress.product_decided_ms:
            progress.product_decided_ms = now_ms  # the first interval of product releases begins with the learning
        reporting.batch(outcome, batch, step=progress.step)

    def _due_releases(self, now_ms: int) -> dict[str, bytes]:
        """Decide on every release that is due, note it in the state, and give what is to be published."""
        cadence, learner, progress = self._settings.cadence, self.learner, self.learner.progress
        values: dict[str, bytes] = {}
        if cadence.query_due(progress, now_ms=now_ms):
            progress.query_decided_ms, progress.query_decided_step = now_ms, progress.step
            plan = plan_query_release(learner, self._encoder, caps=self._settings.caps, now_ms=now_ms)
            if plan.towers is not None:
                learner.note_query_release(plan.number, plan.towers.query)
            values |= self._reported("query", plan)
        if cadence.product_due(progress, now_ms=now_ms):
            progress.product_decided_ms, progress.product_decided_step = now_ms, progress.step
            plan = plan_product_release(learner, self._encoder, caps=self._settings.caps, now_ms=now_ms)
            if plan.towers is not None:
                learner.note_product_release(plan.number, progress.last_query_release + 1, plan.towers)
            values |= self._reported("product", plan)
        return values

    def _reported(self, tower: Kind, plan: PlannedRelease) -> dict[str, bytes]:
        reporting.decision(tower, plan, self.learner.progress)
        return plan.values

    def _make_durable(self, values: dict[str, bytes]) -> None:
        """Checkpoint, commit, publish, retire, in this order."""
        progress = self.learner.progress
        offsets = dict(progress.offsets)
        self._checkpoints.save(snapshot_of(self.learner, values))
        reporting.saved(self._clock_ms())
        self._source.commit(offsets)
        self._saved_ms, self._unsaved = self._clock_ms(), False
        if values:
            self._writer.publish(values)
            in_force = (progress.query_release, progress.product_release)
            manifests = self._models.look().manifests.values()
            self._writer.retire(retired_keys(manifests, in_force=in_force, pending=progress.pending))

    def _adopt(self) -> None:
        """Move to the pair that `serving` names, if it is another than before."""
        serving, progress = self._models.serving(), self.learner.progress
        if serving is None:
            return
        named = serving.query_release, serving.product_release
        if named == (progress.query_release, progress.product_release):
            return
        if progress.offsets and serving.product_release == progress.product_release:
            progress.query_release = serving.query_release
        elif progress.pending is not None and serving.product_release == progress.pending.product_release:
            self.learner.adopt_pending(serving.query_release)
        elif not self._adopt_published(serving):
            return
        self._unsaved = True
        reporting.adopted(progress.query_release, progress.product_release)

    def _adopt_published(self, serving: Serving) -> bool:
        """Go on from the heads in force by their bytes on `models`; return False if they are not there."""
        query = self._published("query", serving.query_release)
        product = self._published("product", serving.product_release)
        if query is None or product is None:
            return False
        query_head, product_head = query.head(), product.head()
        if not isinstance(query_head, QueryHead) or not isinstance(product_head, ProductHead):
            raise InvariantError(
                f"releases {serving.query_release} and {serving.product_release} are of the wrong kind"
            )
        towers = Towers(query_head, product_head)
        self.learner.adopt_published(towers, query.manifest, product_release=serving.product_release)
        self._batcher.clear()
        self._source.seek(self.learner.progress.offsets)
        return True

    def _published(self, kind: Kind, number: int) -> Release | None:
        """Read a release; number 0 is built in.

        Raises:
            UsageError: it was trained over another base model, whose vectors ours must never meet.
        """
        if number == 0:
            return identity_release(kind, self._encoder)
        key = release_key(kind, number).decode()
        value = self._models.value(key)
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

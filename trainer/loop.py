"""The trainer's loop: poll -> count -> solve -> checkpoint -> commit -> publish, each only after the one before.

A release leaves only after the state that made it is durable and the group has confirmed that this trainer is still
the one. A crash between any two of these repeats what is missing: the checkpoint carries the releases themselves. What
a trainer that was overtaken still publishes has a lower fence and numbers of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from threadpoolctl import threadpool_limits

from contracts.errors import ContractError, TransientError
from contracts.pairs import CuratedPair
from contracts.releases import Kind, ReleaseManifest, Serving, after, manifest_of, release_key
from contracts.structs import PreferencePair
from contracts.telemetry import ListOutcome, PairDropReason
from contracts.topics import CURATED_PAIRS
from service.logging import get_logger
from service.machine import EpochClock
from service.models import ModelsTable
from towers.release_files import Encoder, Release, unpack
from trainer import reporting
from trainer.learner import Learner, Towers
from trainer.records import LogRecord
from trainer.release.golden import GoldenCheck
from trainer.release.planning import MOVED_NATS, Cadence, Earlier, plan_release, retired_keys
from trainer.release.safety import LEAST_OVERLAP
from trainer.state import Progress, Snapshot, cut_of, joined, of_this_log

NUMBERS_LEFT: Final[Mapping[Kind, int]] = {"query": 3, "product": 2}
"""Release numbers that a trainer leaves out when it takes over: a stalled one may still publish under them."""
ROLLBACKS_KEPT: Final = 100
"""Rollbacks whose releases are never gone back to; states are kept for a day."""


class LogSource(Protocol):
    """What is learned from, read by the one trainer that is assigned all partitions; a place is `topic/partition`."""

    def seek(self, offsets: Mapping[str, int]) -> dict[str, int]:
        """Read on from these offsets, and from the beginning of other partitions; return from where."""

    def ends(self) -> dict[str, int]:
        """Where each partition ends now."""

    def generation(self) -> int:
        """In which generation of the group this trainer got the partitions; each successor has a higher one."""

    def poll(self, timeout_s: float) -> list[LogRecord]:
        """Give the next records in the order of each partition, none once the time is over.

        Raises:
            TransientError: another trainer may have the partitions now.
        """

    def commit(self, offsets: Mapping[str, int]) -> None:
        """Commit as the member that is assigned the partitions.

        Raises:
            TransientError: another trainer may have them now.
        """


class CheckpointStore(Protocol):
    """Durable states."""

    def save(self, snapshot: Snapshot) -> None:
        """Make a state durable before returning."""

    def load(self, *, query_release: int | None = None, taken_back: Sequence[tuple[int, int]] = ()) -> Snapshot | None:
        """Read the newest state, or the one that was saved with a release or the last one before it.

        States of releases that were taken back, those above the first of two numbers up to the second, are none.
        """


class ReleaseWriter(Protocol):
    """Writes to `models`; every call returns after Kafka's acknowledgement."""

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Write releases in the order given."""

    def retire(self, keys: Sequence[str]) -> None:
        """Write tombstones."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Sizes and times of the loop.

    Args:
        cadence: shortest times between releases.
        checkpoint_ms: longest time that what was counted stays without a checkpoint.
        poll_s: how long a poll waits for records.
        overlap: least share of the first ten answers that stays from release to release.
    """

    cadence: Cadence
    checkpoint_ms: int = 15_000
    poll_s: float = 0.2
    overlap: float = LEAST_OVERLAP


class TrainerLoop:
    """One trainer at work.

    Args:
        learner: fresh, or as its checkpoint had it.
        source: the log.
        checkpoints: durable states.
        models: what was released and what is in force.
        writer: of releases.
        encoder: for the probe texts.
        settings: sizes and times.
        clock_ms: epoch milliseconds.
        golden: finds the queries that the shop judged itself.
        judged: gives the query releases that are being judged: they are kept until that is decided.
    """

    def __init__(  # noqa: PLR0913 # every port of the trainer
        self,
        learner: Learner,
        *,
        source: LogSource,
        checkpoints: CheckpointStore,
        models: ModelsTable,
        writer: ReleaseWriter,
        encoder: Encoder,
        settings: LoopSettings,
        clock_ms: EpochClock,
        golden: GoldenCheck | None = None,
        judged: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        self.learner, self.progress = learner, learner.progress
        self._source, self._checkpoints = source, checkpoints
        self._models, self._writer = models, writer
        self._encoder = encoder
        self._settings = settings
        self._clock_ms = clock_ms
        self._golden = golden
        self._judged = judged
        self._made: dict[str, bytes] = {}
        """The newest releases of this trainer, which `models` may not show yet."""
        self._saved_ms, self._unsaved = clock_ms(), False

    def resume(self, outbox: Mapping[str, bytes]) -> None:
        """Take over: numbers and fence, releases that were not published, and where to read on.

        `models` has been read to its end, and this trainer is assigned the partitions.
        """
        progress, fence = self.progress, self._models.look().fence
        late = {key: value for key, value in outbox.items() if not self._models.seen(key)}
        missing = {key: value for key, value in late.items() if manifest_of(value).fence >= fence}
        self._made = dict(missing)
        highest = {kind: self._models.highest(kind) for kind in NUMBERS_LEFT}
        query = max(progress.last_query_release, highest["query"])
        product = max(progress.last_product_release, highest["product"])
        if query or product:
            progress.last_query_release = query + NUMBERS_LEFT["query"]
            progress.last_product_release = product + NUMBERS_LEFT["product"]
        progress.fence = max(fence + 1, progress.fence + 1, self._source.generation())
        progress.left_out = joined(of_this_log(progress.left_out, progress.offsets, self._source.ends()), {})
        progress.offsets = self._source.seek(progress.offsets)
        if missing:
            self._source.commit(progress.offsets)
            self._writer.publish(missing)
            get_logger().info("releases_published_after_restart", releases=sorted(missing))
        self._adopt()
        if not progress.catch_up:
            self._catch_up(progress.query_parent)
        get_logger().info("training", lists_trained=progress.lists_trained, fence=progress.fence)

    def run_once(self) -> None:
        """Read and count, follow `serving`, release what is due.

        Raises:
            TransientError: another trainer has taken over.
        """
        for record in self._source.poll(self._settings.poll_s):
            self._take(record)
        self._end_catch_up()
        if (fence := self._models.look().fence) > self.progress.fence:
            raise TransientError(
                f"another trainer took over with fence {fence}; this one has {self.progress.fence} and stops",
                fix="keep one trainer",
            )
        self._adopt()
        now_ms = self._clock_ms()
        is_due = self._settings.cadence.due(self.progress, now_ms=now_ms) and self.learner.has_catalogue
        values = self._decide(now_ms) if is_due else {}
        if values or (self._unsaved and now_ms - self._saved_ms >= self._settings.checkpoint_ms):
            self._make_durable(values)

    def finish(self) -> None:
        """Make what was counted durable."""
        if self._unsaved:
            self._make_durable({})

    def _take(self, record: LogRecord) -> None:
        """Count one record; the prior is learned as soon as there are lists enough, however they arrive."""
        progress, evidence = self.progress, self.learner.evidence
        is_left_out = after(record.offset, progress.left_out.get(record.place, ())) != record.offset
        if is_left_out and not record.ends_a_rule:
            progress.offsets[record.place], self._unsaved = record.offset + 1, True
            return
        outcome: ListOutcome | PairDropReason | None
        if record.content is None:
            outcome = ListOutcome.MALFORMED
        elif isinstance(record.content, PreferencePair):
            outcome = evidence.take_pair(record.content, time_ms=record.time_ms, offset=record.offset)
            progress.pairs_trained += outcome is None
        elif isinstance(record.content, CuratedPair):
            outcome = evidence.take_curated(record.content, time_ms=record.time_ms, offset=record.offset)
            progress.pairs_trained += outcome is None
        else:
            outcome = evidence.take_list(record.content, time_ms=record.time_ms)
        progress.offsets[record.place] = record.offset + 1
        progress.lists_trained = evidence.table.lists
        self._unsaved = True
        reporting.record(record, outcome)
        is_click = isinstance(record.content, PreferencePair) and record.content.source == "click"
        if outcome in {None, ListOutcome.LEARNED} and not is_click:
            progress.records += 1
            progress.decided_records += record.offset < progress.catch_up.get(record.place, 0)
            progress.product_decided_ms = progress.product_decided_ms or self._clock_ms()
        self._learn_prior_if_due()

    def _learn_prior_if_due(self) -> None:
        if self.learner.prior_due:
            with reporting.timed("prior"), threadpool_limits(1):
                self.learner.learn_prior()
            reporting.prior(self.learner)

    def _decide(self, now_ms: int) -> dict[str, bytes]:
        """Solve, decide on the releases that are due, note it in the state, and give what is to be published."""
        learner, progress = self.learner, self.progress
        self._learn_prior_if_due()  # over another base than before, no record may come that would have it learned
        parent = self._towers(progress.query_parent, progress.product_parent)
        with reporting.timed("weights"), threadpool_limits(1):
            solved = learner.solve(parent)
        reporting.solved(solved, learner)
        progress.query_decided_ms, progress.decided_records, self._unsaved = now_ms, progress.records, True
        # Written so that what is not finite counts as moved: the checks are to see it.
        moved = not learner.largest_move(parent.product, solved.towers.product) <= MOVED_NATS
        with_products = moved and self._settings.cadence.product_due(progress, now_ms=now_ms)
        progress.products_wait = moved and not with_products
        in_force = self._towers(progress.query_release, progress.product_release)
        plan = plan_release(
            learner, solved.towers, earlier=Earlier(parent, in_force), with_products=with_products,
            encoder=self._encoder, now_ms=now_ms, golden=self._golden, overlap=self._settings.overlap,
        )  # fmt: skip
        if plan is None:
            return {}
        reporting.decision(plan, progress)
        if plan.values:
            progress.last_query_release = progress.query_parent = plan.query_release
            self._made = {key: value for key, value in self._made.items() if key.startswith("product")} | plan.values
            learner.evidence.click_times = []
            if plan.verdict.share < 1:
                progress.decided_records -= 1  # the rest of the step is due after the next interval
        if with_products:
            progress.product_decided_ms = now_ms
            if plan.values:
                progress.last_product_release = progress.product_parent = plan.product_release
        return plan.values

    def _make_durable(self, values: dict[str, bytes]) -> None:
        """Checkpoint, commit, publish, retire, in this order."""
        progress, view = self.progress, self._models.look()
        progress.kept_for = sorted({*self._judged(), *view.gone_back_to()})
        self._checkpoints.save(Snapshot(self.learner.state(), progress.model_copy(deep=True), values))
        reporting.saved(self._clock_ms())
        self._source.commit(progress.offsets)
        self._saved_ms, self._unsaved = self._clock_ms(), False
        if values:
            self._writer.publish(values)
            view = self._models.look()
            needed: dict[Kind, set[int]] = {
                "query": {progress.query_release, progress.query_parent, *progress.kept_for},
                "product": {progress.product_release, progress.product_parent},
            }
            self._writer.retire(retired_keys(view.manifests.values(), needed=needed, now_ms=self._clock_ms()))

    def _adopt(self) -> None:
        """Note which releases `serving` names, and go back if that is a rollback.

        It is one if it says so and training went on from what was taken back, or if it names an older query release.
        Release 0 alone says nothing: the indexer begins with it over another base.
        """
        named, progress = self._models.serving(), self.progress
        if named is None:
            return
        before = progress.query_release, progress.product_release, progress.withdrawn
        if before == (named.query_release, named.product_release, named.withdrawn):
            return
        is_older = 0 < named.query_release < before[0] and self._is_of_our_base(before[0])
        is_news = named.withdrawn > before[2]
        takes_back = is_older or (is_news and named.query_release == named.withdrawn_above)
        progress.query_release, progress.product_release = named.query_release, named.product_release
        progress.withdrawn = named.withdrawn
        if is_older or (is_news and named.withdrawn_above < progress.query_parent):
            self._roll_back(named, takes_back=takes_back)
        else:
            if self._is_of_our_base(named.query_release):
                progress.query_parent = max(progress.query_parent, named.query_release)
            progress.product_parent = max(progress.product_parent, named.product_release)
            self._leave_out(named.query_release, since_cut=takes_back)
        progress.last_query_release = max(progress.last_query_release, named.query_release, named.withdrawn)
        progress.last_product_release = max(progress.last_product_release, named.product_release)
        self._unsaved = True
        reporting.adopted(named.query_release, named.product_release)

    def _is_of_our_base(self, query_release: int) -> bool:
        manifest = self._manifest(query_release)
        return manifest is None or manifest.base_version == self._encoder.base_version

    def _roll_back(self, named: Serving, *, takes_back: bool) -> None:
        """Go on from the evidence of the release in force; what was taken back is left out."""
        progress, query_release = self.progress, named.query_release
        progress.taken_back = [*progress.taken_back, (named.withdrawn_above, named.withdrawn)]
        snapshot = self._checkpoints.load(query_release=query_release, taken_back=progress.taken_back)
        highest = max(progress.last_query_release, progress.withdrawn)
        progress.taken_back = [*progress.taken_back, (query_release, highest)][-ROLLBACKS_KEPT:]
        known = Progress() if snapshot is None else snapshot.progress
        if snapshot is None:
            self.learner.forget()
        else:
            self.learner.restore(snapshot.tensors)
        progress.lists_trained, progress.pairs_trained = known.lists_trained, known.pairs_trained
        progress.offsets, progress.left_out = known.offsets, known.left_out
        self._leave_out(query_release, since_cut=takes_back)
        starts = {place: after(known.offsets.get(place, 0), ranges) for place, ranges in progress.left_out.items()}
        starts = {place: start for place, start in starts.items() if not place.startswith(f"{CURATED_PAIRS}/")}
        progress.offsets = self._source.seek({**known.offsets, **starts})
        get_logger().warning(
            "rolled_back", query_release=query_release, evidence_of=known.query_parent, left_out=progress.left_out
        )
        progress.query_parent, progress.product_parent = query_release, named.product_release
        progress.decided_records, progress.products_wait = progress.records, False
        self._catch_up(query_release)

    def _leave_out(self, query_release: int, *, since_cut: bool) -> None:
        """Leave out what a release did, and all that came since its cut if it was gone back to."""
        progress, manifest, ends = self.progress, self._manifest(query_release), self._source.ends()
        kept = of_this_log(progress.left_out, progress.offsets, ends)
        released = {} if manifest is None else of_this_log(manifest.left_out, manifest.offsets, ends)
        progress.left_out = joined(kept, released)
        if since_cut:
            cut = progress.offsets if manifest is None else cut_of(manifest, ends)
            gone = {place: [(cut.get(place, 0), end)] for place, end in ends.items()}
            progress.left_out = joined(progress.left_out, gone)

    def _catch_up(self, query_release: int) -> None:
        """Release nothing before everything is counted that a release knew: the disk may have been lost."""
        self.progress.catch_up = cut_of(self._manifest(query_release), self._source.ends())
        if self._is_behind():
            get_logger().warning("reading_again", up_to=self.progress.catch_up, begins_at=self.progress.offsets)
        else:
            self.progress.catch_up = {}

    def _is_behind(self) -> bool:
        return any(self.progress.offsets.get(place, 0) < offset for place, offset in self.progress.catch_up.items())

    def _end_catch_up(self) -> None:
        """Go on as ever once the cut is reached."""
        if self.progress.catch_up and not self._is_behind():
            self.progress.catch_up, self._unsaved = {}, True
            get_logger().info("read_again", lists_trained=self.progress.lists_trained)

    def _towers(self, query_release: int, product_release: int) -> Towers:
        """The towers of two releases; one that is gone gives an untrained tower."""
        query, product = self._released("query", query_release), self._released("product", product_release)
        untrained = Towers.untrained(self._encoder.dim)
        return Towers(
            untrained.query if query is None else query.query_tower(),
            untrained.product if product is None else product.product_tower(),
        )

    def _released(self, kind: Kind, number: int) -> Release | None:
        """Read a release, None if it is gone, cannot be read, or was trained over another base model.

        Vectors of that one must never meet ours.
        """
        key = release_key(kind, number).decode()
        value = self._made.get(key) or self._models.value(key)
        if value is None:
            return None
        found, ours = manifest_of(value), self._encoder
        if (found.base_version, found.dim) != (ours.base_version, ours.dim):
            return None
        try:
            return unpack(value)
        except ContractError as error:
            get_logger().warning("release_unreadable", key=key, error=error.message)
            return None

    def _manifest(self, query_release: int) -> ReleaseManifest | None:
        key = release_key("query", query_release).decode()
        return manifest_of(self._made[key]) if key in self._made else self._models.look().manifests.get(key)

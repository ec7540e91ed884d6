"""Everything that the trainer has learned, and how a micro-batch changes it.

Randomness is drawn from (seed, step), so that the same records after the same checkpoint give the same bits.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np

from contracts.pairs import PreferencePair
from contracts.releases import ReleaseManifest
from contracts.telemetry import PairDropReason
from towers.heads import QueryHead, Towers, copied
from trainer.batch import Batch, BatchContext, MaskSettings, assemble
from trainer.memory import (
    FrequencyEstimator,
    LikedProducts,
    PendingRelease,
    RecentIds,
    RecentQueries,
    TrainingProgress,
)
from trainer.training import LossSettings, StepReport, TowersInTraining

CLICK_TIMES: Final = 4096
"""Click times kept for the next release; a release carries an even sample of them."""


class PairRecord(NamedTuple):
    """A record of `preference-pairs`; a malformed one has no pair and is a dead letter already."""

    partition: int
    offset: int
    pair: PreferencePair | None


class Products(Protocol):
    """Base vectors of the catalogue, as far as `product-vectors` has been read."""

    def ids(self) -> Sequence[str]:
        """Give every product, in an order that depends on nothing but the products."""

    def __contains__(self, product_id: object) -> bool:
        """Tell whether a product has a vector."""

    def vectors(self, product_ids: Sequence[str]) -> np.ndarray:
        """Give base vectors (n, D) of known products."""


QueryVectors = Callable[[Sequence[str]], np.ndarray]
"""Gives base vectors (n, D) of texts; each depends on its own text only."""


class Sample(NamedTuple):
    """Base vectors that a release is judged on."""

    queries: np.ndarray
    """(n, D)."""
    products: np.ndarray
    """(m, D)."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How the trainer learns.

    Args:
        loss: constants of the loss and the optimiser.
        masks: which candidates are trusted as negatives.
        uniform_products: random products per step, for the anchor.
        anchor_queries: recent queries per step that only the anchor uses.
        seed: of all randomness.
    """

    loss: LossSettings = field(default_factory=LossSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    uniform_products: int = 512
    anchor_queries: int = 128
    seed: int = 1


class BatchOutcome(NamedTuple):
    """What one micro-batch came to."""

    trained: Counter[str]
    """Pairs by source."""
    dropped: Counter[PairDropReason]
    """Records by reason."""
    steps: Mapping[str, StepReport]
    """What each step measured, by what it trained; empty if nothing was left to train on."""


@dataclass(slots=True)
class TowerVersions:
    """The towers that learn side by side, and what was last released of them.

    Args:
        in_force: the query head trained for the product head in force.
        released: query head of the last release for the product release in force.
        candidate: both heads, for the next product release.
        pending: the query head trained for the product release on its way.
        pending_released: query head of that product release's first query release.
    """

    in_force: TowersInTraining
    released: QueryHead
    candidate: TowersInTraining
    pending: TowersInTraining | None = None
    pending_released: QueryHead | None = None

    @classmethod
    def begin(cls, towers: Towers, *, settings: LossSettings) -> "TowerVersions":
        """Let all learning begin from a pair of heads."""
        return cls(
            in_force=TowersInTraining(towers, settings=settings),
            released=copied(towers.query),
            candidate=TowersInTraining(towers, settings=settings, joint=True),
        )

    def each(self) -> dict[str, TowersInTraining]:
        """Give all that learn, by name."""
        learning = {"query": self.in_force, "product": self.candidate}
        return learning if self.pending is None else {**learning, "pending": self.pending}


class Learner:
    """Learns from micro-batches and knows what may be released.

    Args:
        versions: the heads.
        progress: how far training has come.
        settings: how to learn.
        products: base vectors of the catalogue.
        query_vectors: base vectors of texts.
    """

    def __init__(
        self,
        versions: TowerVersions,
        progress: TrainingProgress,
        *,
        settings: LearnerSettings,
        products: Products,
        query_vectors: QueryVectors,
    ) -> None:
        self.timed: Callable[[str], AbstractContextManager[None]] = _untimed
        """Surrounds each step with a clock, which the learner does not have."""
        self.versions = versions
        self.progress = progress
        self.settings = settings
        self.pair_ids = RecentIds()
        self.queries = RecentQueries()
        self.liked = LikedProducts()
        self.frequencies = FrequencyEstimator()
        self._products = products
        self._query_vectors = query_vectors

    def learn(self, records: Sequence[PairRecord]) -> BatchOutcome:
        """Take one step of everything that learns on a micro-batch, and move the offsets past it."""
        dropped: Counter[PairDropReason] = Counter()
        pairs = []
        for record in records:
            reason = self._reason_against(record.pair)
            if record.pair is None or reason is not None:
                dropped[reason or PairDropReason.MALFORMED] += 1
            else:
                pairs.append(record.pair)
                self._count_list(record.partition, record.pair.search_id)
            self.progress.offsets[record.partition] = record.offset + 1
        steps = self._step(pairs) if pairs else {}
        return BatchOutcome(Counter(pair.source for pair in pairs), dropped, steps)

    def towers_in_force(self) -> Towers:
        """Give what shoppers are served, as far as this trainer released it."""
        return Towers(self.versions.released, self.versions.in_force.product_head)

    def sample(self, *, queries: int, products: int) -> Sample:
        """Give what a release is judged on: the newest queries, and products drawn for this step."""
        texts = self.queries.newest(queries)
        return Sample(self._query_vectors(texts), self._products.vectors(self._drawn(products)))

    def note_query_release(self, number: int, head: QueryHead) -> None:
        """Note that a query release for the product release in force is on its way."""
        self.versions.released = copied(head)
        self.progress.last_query_release = self.progress.query_parent = number
        self.progress.click_times = []

    def note_product_release(self, product_release: int, query_release: int, towers: Towers) -> None:
        """Note that a product release and its first query release are on their way; both learn on from here."""
        self.versions.pending = TowersInTraining(towers, settings=self.settings.loss)
        self.versions.pending_released = copied(towers.query)
        self.progress.pending = PendingRelease(
            product_release=product_release, query_release=query_release, step=self.progress.step
        )
        self.progress.last_product_release = product_release
        self.progress.last_query_release = query_release

    def adopt_pending(self, query_release: int) -> None:
        """Move to the product release that was being rolled out: it is in force now."""
        pending, versions, progress = self.progress.pending, self.versions, self.progress
        if pending is None or versions.pending is None or versions.pending_released is None:
            raise ValueError("there is no pending product release")
        versions.in_force, versions.released = versions.pending, versions.pending_released
        versions.pending = versions.pending_released = None
        progress.product_release, progress.query_release = pending.product_release, query_release
        progress.query_parent = pending.query_release
        progress.query_decided_step = pending.step
        progress.pending = None

    def adopt_published(self, towers: Towers, manifest: ReleaseManifest, *, product_release: int) -> None:
        """Move to heads that this state does not know; all learning begins again from them.

        Args:
            towers: the heads in force.
            manifest: of the query release in force. What it was trained on is not learned again on top of it.
            product_release: in force.
        """
        self.versions = TowerVersions.begin(towers, settings=self.settings.loss)
        progress, known = self.progress, {int(number): offset for number, offset in manifest.offsets.items()}
        progress.offsets |= {number: max(offset, progress.offsets.get(number, 0)) for number, offset in known.items()}
        progress.pairs_trained = max(progress.pairs_trained, manifest.pairs_trained)
        progress.lists_trained = max(progress.lists_trained, manifest.lists_trained)
        progress.product_release = product_release
        progress.query_release = progress.query_parent = manifest.release
        progress.query_decided_step = progress.product_decided_step = progress.step
        progress.pending = None

    def _reason_against(self, pair: PreferencePair | None) -> PairDropReason | None:
        """Find why a pair must not be trained on; its id is remembered."""
        if pair is None:
            return PairDropReason.MALFORMED
        if pair.source != "click":
            return PairDropReason.UNSUPPORTED_SOURCE
        if not self.pair_ids.add(pair.pair_id):
            return PairDropReason.DUPLICATE
        known = pair.chosen.product_id in self._products and pair.rejected.product_id in self._products
        return None if known else PairDropReason.UNKNOWN_PRODUCT

    def _count_list(self, partition: int, search_id: str) -> None:
        if self.progress.newest_list.get(partition) != search_id:
            self.progress.lists_trained += 1
            self.progress.newest_list[partition] = search_id

    def _step(self, pairs: Sequence[PreferencePair]) -> dict[str, StepReport]:
        paired = [side.product_id for pair in pairs for side in (pair.chosen, pair.rejected)]
        self.frequencies.observe(paired, self.progress.step)
        batch = assemble(
            pairs,
            self._context(pairs),
            query_vectors=self._query_vectors,
            product_vectors=self._products.vectors,
            masks=self.settings.masks,
        )
        reports = {name: self._timed_step(name, towers, batch) for name, towers in self.versions.each().items()}
        self._remember(pairs)
        return reports

    def _timed_step(self, name: str, towers: TowersInTraining, batch: Batch) -> StepReport:
        with self.timed(name):
            return towers.step(batch)

    def _context(self, pairs: Sequence[PreferencePair]) -> BatchContext:
        own = {pair.query for pair in pairs}
        recent = [query for query in self.queries.newest(self.settings.anchor_queries) if query not in own]
        return BatchContext(
            uniform_ids=self._drawn(self.settings.uniform_products),
            anchor_queries=self._query_vectors(recent),
            positives=self.liked.by_query,
            rates=self.frequencies.rates,
        )

    def _drawn(self, count: int) -> list[str]:
        """Draw distinct products, the same for the same step and catalogue."""
        ids = self._products.ids()
        generator = np.random.default_rng((self.settings.seed, self.progress.step))
        return [ids[at] for at in generator.choice(len(ids), size=min(count, len(ids)), replace=False)]

    def _remember(self, pairs: Sequence[PreferencePair]) -> None:
        self.queries.add(pair.query for pair in pairs)
        for pair in pairs:
            self.liked.add(pair.query, pair.chosen.product_id)
        times = sorted({*self.progress.click_times, *(pair.event_time for pair in pairs)})
        self.progress.click_times = times if len(times) <= CLICK_TIMES else times[::2]
        self.progress.step += 1
        self.progress.pairs_trained += len(pairs)


def _untimed(_name: str) -> AbstractContextManager[None]:
    return nullcontext()

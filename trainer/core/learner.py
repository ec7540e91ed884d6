"""Everything that the trainer has learned, and how a micro-batch changes it.

The state is three lanes (`core/lanes.py`), bounded memories and a few numbers. All of it goes into the checkpoint;
randomness is drawn from (seed, step), so that the same records after the same checkpoint give the same bits.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from contracts.pairs import PreferencePair
from contracts.telemetry import PairDropReason
from towers.heads import QueryHead
from trainer.core.assembly import Batch, MaskSettings, Surroundings, assemble
from trainer.core.facts import Facts, PendingRelease
from trainer.core.frequency import FrequencyEstimator
from trainer.core.lanes import Lane, LossSettings, StepReport
from trainer.core.memory import LikedProducts, RecentIds, RecentQueries
from trainer.core.records import PairRecord
from trainer.core.safety import Sample, Towers, copied, mixed

CLICK_TIMES: Final = 4096
"""Click times kept for the next release; a release carries an even sample of them."""


class Products(Protocol):
    """Base vectors of the catalogue, as far as `product-vectors` has been read."""

    def ids(self) -> Sequence[str]:
        """Return every product, in an order that depends on nothing but the products."""

    def __contains__(self, product_id: object) -> bool:
        """Return whether a product has a vector."""

    def vectors(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return base vectors (n, D) of known products."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How the trainer learns.

    Args:
        loss: constants of the loss and the optimiser.
        masks: which candidates are trusted as negatives.
        uniform_products: random products per step, for the anchor.
        anchor_queries: recent queries per step that only the anchor uses.
        keep_ratio: share of the last release that a query release keeps (a moving average over releases).
        seed: of all randomness.
    """

    loss: LossSettings = field(default_factory=LossSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    uniform_products: int = 512
    anchor_queries: int = 128
    keep_ratio: float = 0.7
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one micro-batch came to.

    Args:
        trained: pairs by source.
        dropped: records by reason.
        reports: what the steps measured, by lane; empty where nothing was left to train on.
    """

    trained: Counter[str]
    dropped: Counter[PairDropReason]
    reports: Mapping[str, StepReport]


@dataclass(slots=True)
class Lanes:
    """The lanes and what was last released of them.

    Args:
        in_force: the query head trained for the product head in force.
        released: query head of the last release for the pair in force.
        candidate: both heads, for the next product release.
        pending: the query head trained for the product release on its way.
        pending_released: query head of that product release's first query release.
    """

    in_force: Lane
    released: QueryHead
    candidate: Lane
    pending: Lane | None = None
    pending_released: QueryHead | None = None

    def each(self) -> dict[str, Lane]:
        """Return the lanes that learn, by name."""
        lanes = {"query": self.in_force, "product": self.candidate}
        return lanes if self.pending is None else {**lanes, "pending": self.pending}


class Learner:
    """Learns from micro-batches and knows what may be released.

    Args:
        lanes: the heads.
        facts: the numbers.
        settings: how to learn.
        products: base vectors of the catalogue.
        query_vectors: base vectors (n, D) of texts; each depends on its own text only.
    """

    def __init__(
        self,
        lanes: Lanes,
        facts: Facts,
        *,
        settings: LearnerSettings,
        products: Products,
        query_vectors: Callable[[Sequence[str]], np.ndarray],
    ) -> None:
        self.timed: Callable[[str], AbstractContextManager[None]] = _untimed
        """Surrounds each lane's step; the core has no clock of its own."""
        self.lanes = lanes
        self.facts = facts
        self.settings = settings
        self.pair_ids = RecentIds()
        self.queries = RecentQueries()
        self.liked = LikedProducts()
        self.frequencies = FrequencyEstimator()
        self._products = products
        self._query_vectors = query_vectors

    def learn(self, records: Sequence[PairRecord]) -> Lesson:
        """Train every lane on one micro-batch, once, and move the offsets past it."""
        dropped: Counter[PairDropReason] = Counter()
        pairs = []
        for record in records:
            reason = self._reason_against(record.pair)
            if record.pair is None or reason is not None:
                dropped[reason or PairDropReason.MALFORMED] += 1
            else:
                pairs.append(record.pair)
                self._count_list(record.partition, record.pair.search_id)
            self.facts.offsets[record.partition] = record.offset + 1
        reports = self._step(pairs) if pairs else {}
        return Lesson(Counter(pair.source for pair in pairs), dropped, reports)

    def towers_in_force(self) -> Towers:
        """Return what shoppers are served, as far as this trainer released it."""
        return Towers(self.lanes.released, self.lanes.in_force.product_head)

    def next_query_towers(self) -> Towers:
        """Return what the next query release would be: the moving average of the trained head."""
        lane = self.lanes.in_force
        query = mixed(self.lanes.released, lane.query_head, share=1 - self.settings.keep_ratio)
        return Towers(query, lane.product_head)

    def candidate_towers(self) -> Towers:
        """Return what the next product release would be."""
        return Towers(self.lanes.candidate.query_head, self.lanes.candidate.product_head)

    def sample(self, *, queries: int, products: int) -> Sample:
        """Return what a release is judged on: the newest queries, and products drawn for this step."""
        texts = self.queries.newest(queries)
        return Sample(self._query_vectors(texts), self._products.vectors(self._drawn(products)))

    def note_query_release(self, number: int, head: QueryHead, *, now_ms: int) -> None:
        """Note that a query release for the pair in force is on its way."""
        self.lanes.released = copied(head)
        self.facts.last_query_release = self.facts.query_parent = number
        self.facts.click_times = []
        self.facts.unserved_ratio *= self.settings.keep_ratio
        self.facts.query_released_ms = now_ms

    def note_product_release(self, pending: PendingRelease, towers: Towers, *, now_ms: int) -> None:
        """Note that a product release and its first query release are on their way; its lane starts from them."""
        self.lanes.pending = Lane(copied(towers.query), copied(towers.product), settings=self.settings.loss)
        self.lanes.pending_released = copied(towers.query)
        self.facts.pending = pending
        self.facts.last_product_release = pending.product_release
        self.facts.last_query_release = pending.query_release
        self.facts.product_lane_moved = False
        self.facts.product_released_ms = now_ms

    def adopt_pending(self, query_release: int) -> None:
        """Move to the product release that was being rolled out: it is in force now."""
        pending, lanes = self.facts.pending, self.lanes
        if pending is None or lanes.pending is None or lanes.pending_released is None:
            raise ValueError("there is no pending product release")
        lanes.in_force, lanes.released = lanes.pending, lanes.pending_released
        lanes.pending = lanes.pending_released = None
        self.facts.product_release, self.facts.query_release = pending.product_release, query_release
        self.facts.query_parent = pending.query_release
        self.facts.unserved_ratio = 1.0
        self.facts.pending = None

    def adopt_foreign(self, towers: Towers, *, query_release: int, product_release: int) -> None:
        """Move to a pair that this trainer's state does not know: all lanes begin again from it."""
        loss = self.settings.loss
        self.lanes = Lanes(
            in_force=Lane(copied(towers.query), copied(towers.product), settings=loss),
            released=copied(towers.query),
            candidate=Lane(copied(towers.query), copied(towers.product), settings=loss, joint=True),
        )
        self.facts.product_release, self.facts.query_release = product_release, query_release
        self.facts.query_parent = query_release
        self.facts.pending = None
        self.facts.unserved_ratio, self.facts.product_lane_moved = 0.0, False

    def _reason_against(self, pair: PreferencePair | None) -> PairDropReason | None:
        """Return why a pair must not be trained on, and remember it."""
        if pair is None:
            return PairDropReason.MALFORMED
        if pair.source != "click":
            return PairDropReason.UNSUPPORTED_SOURCE
        if not self.pair_ids.add(pair.pair_id):
            return PairDropReason.DUPLICATE
        known = pair.chosen.product_id in self._products and pair.rejected.product_id in self._products
        return None if known else PairDropReason.UNKNOWN_PRODUCT

    def _count_list(self, partition: int, search_id: str) -> None:
        """Count a list at its first pair."""
        if self.facts.newest_list.get(partition) != search_id:
            self.facts.lists_trained += 1
            self.facts.newest_list[partition] = search_id

    def _step(self, pairs: Sequence[PreferencePair]) -> dict[str, StepReport]:
        """Assemble the tensors of one step and let every lane take it."""
        paired = [side.product_id for pair in pairs for side in (pair.chosen, pair.rejected)]
        self.frequencies.observe(paired, self.facts.step)
        batch = assemble(
            pairs,
            self._surroundings(pairs),
            query_vectors=self._query_vectors,
            product_vectors=self._products.vectors,
            masks=self.settings.masks,
        )
        reports = {name: self._lane_step(name, lane, batch) for name, lane in self.lanes.each().items()}
        self._remember(pairs)
        return reports

    def _lane_step(self, name: str, lane: Lane, batch: Batch) -> StepReport:
        """Let one lane take its step."""
        with self.timed(name):
            return lane.step(batch)

    def _surroundings(self, pairs: Sequence[PreferencePair]) -> Surroundings:
        """Return what a step needs besides its pairs."""
        own = {pair.query for pair in pairs}
        recent = [query for query in self.queries.newest(self.settings.anchor_queries) if query not in own]
        return Surroundings(
            uniform_ids=self._drawn(self.settings.uniform_products),
            anchor_queries=self._query_vectors(recent),
            positives=self.liked.by_query,
            rates=self.frequencies.rates,
        )

    def _drawn(self, count: int) -> list[str]:
        """Return random distinct products, the same for the same step and catalogue."""
        ids = self._products.ids()
        generator = np.random.default_rng((self.settings.seed, self.facts.step))
        return [ids[at] for at in generator.choice(len(ids), size=min(count, len(ids)), replace=False)]

    def _remember(self, pairs: Sequence[PreferencePair]) -> None:
        """Move the numbers and memories past a step."""
        self.queries.add(pair.query for pair in pairs)
        for pair in pairs:
            self.liked.add(pair.query, pair.chosen.product_id)
        times = sorted({*self.facts.click_times, *(pair.event_time for pair in pairs)})
        self.facts.click_times = times if len(times) <= CLICK_TIMES else times[::2]
        self.facts.step += 1
        self.facts.pairs_trained += len(pairs)
        self.facts.unserved_ratio, self.facts.product_lane_moved = 1.0, True


def _untimed(_lane: str) -> AbstractContextManager[None]:
    """Surround a step with nothing."""
    return nullcontext()

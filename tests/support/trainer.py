"""Fakes of the trainer's ports and a small shop to learn from, whose shoppers like what no text tells."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np

from contracts import wire
from contracts.catalog import PointPayload
from contracts.releases import SERVING_KEY, Serving, collection_name, manifest_of
from contracts.structs import JoinedSearch, JoinedSlot, TrainingSearch
from contracts.topics import TRAINING_SEARCHES
from service.models import ModelsTable
from streams.pairs.training import training_search
from tests.support.tiny_encoder import WORDS, TinyEncoder
from towers.features import FeatureSpace, key_of, keys_of, words
from towers.lexical import NO_WORDS, word_vector
from towers.word_index import WordIndex
from trainer.adapters.vectors import TextVectors
from trainer.learner import Learner, Looked, Towers
from trainer.loop import LoopSettings, TrainerLoop
from trainer.preference.debiasing import Debias
from trainer.preference.model import Prior
from trainer.preference.priors import Gain, Learned
from trainer.records import LogRecord
from trainer.release.golden import GoldenCheck
from trainer.release.planning import Cadence
from trainer.state import Progress, Snapshot

DIM = 16
UNTRAINED = Towers.untrained(DIM)
PRODUCTS = tuple(f"{first} {second}" for first in WORDS[:10] for second in WORDS[10:14])
QUERIES = tuple(f"{first} {second}" for first in WORDS[:12] for second in WORDS[12:20])
SHOWN = 6
EVERY_FOURTH: Final = frozenset(range(0, len(PRODUCTS), 4))
"""Liked products that share a word which the others lack."""
SCATTERED: Final = frozenset(product for product in range(len(PRODUCTS)) if 7 * product % len(PRODUCTS) < 10)
"""Liked products of which no word tells."""
START_MS = 1_795_196_000_000
OPEN_GATE: Final = Learned(Prior(), Gain(0.5, 0.01), Gain(0.5, 0.01), Gain(0.5, 0.01))
"""What a learner has found that may release from its first click."""


class FakeProducts:
    """A catalogue whose products are named by their texts."""

    def __init__(self, encoder: TinyEncoder, names: Sequence[str] = PRODUCTS) -> None:
        self._vectors = dict(zip(names, encoder.encode(names), strict=True))
        self._features = {name: keys_of(f"t:{word}" for word in words(name)) for name in names}
        titled = {name: PointPayload.model_construct(title=name) for name in names}
        self._words = {name: word_vector("", product) for name, product in titled.items()}

    def digests(self) -> np.ndarray:
        """Tell products apart."""
        return np.array([key_of(name) for name in self._vectors], dtype=np.uint64)

    def feature_space(self) -> FeatureSpace:
        """Count the features."""
        return FeatureSpace.of(list(self._features.values()))

    def word_index(self) -> WordIndex:
        """Index the words."""
        return WordIndex(list(self._words.values()))

    def look(self, product_ids: Sequence[str]) -> Looked:
        """Look products up."""
        nothing = np.zeros(DIM, dtype=np.float32)
        vectors = np.array([self._vectors.get(name, nothing) for name in product_ids], dtype=np.float32)
        known = np.array([name in self._vectors for name in product_ids], dtype=bool)
        features = [self._features.get(name, np.zeros(0, dtype=np.uint64)) for name in product_ids]
        words = [self._words.get(name, NO_WORDS) for name in product_ids]
        return Looked(known, vectors.reshape(-1, DIM), features, words)


def new_learner(
    snapshot: Snapshot | None = None,
    *,
    encoder: TinyEncoder | None = None,
    products: FakeProducts | None = None,
    debias: Debias = "auto",
) -> Learner:
    """Return the learner of a snapshot, or one that has seen nothing and whose gate is open."""
    encoder = encoder or TinyEncoder(DIM)
    products = products or FakeProducts(encoder)
    learner = Learner(DIM, products=products, encode=TextVectors(encoder), half_life_days=16.0, debias=debias)
    if snapshot is None:
        learner.preference.learned = OPEN_GATE
    else:
        learner.restore(snapshot.tensors)
        learner.progress = snapshot.progress.model_copy(deep=True)
    return learner


@cache
def search_number(number: int, *, liked: frozenset[int] = EVERY_FOURTH) -> TrainingSearch:
    """Return one of endlessly many lists; shoppers like a quarter of the products, whatever they asked for."""
    rng = np.random.default_rng(number)
    time_ms = START_MS + 1000 * number
    products = rng.permutation(len(PRODUCTS))[:SHOWN].tolist()
    chances = [(0.9 if product in liked else 0.2) / (place + 1) for place, product in enumerate(products)]
    slots = tuple(
        JoinedSlot(
            product_id=PRODUCTS[product],
            position=place + 1,
            clicked=clicked,
            click_time=time_ms + 5_000 if clicked else None,
        )
        for place, (product, clicked) in enumerate(zip(products, (rng.random(SHOWN) < chances).tolist(), strict=True))
    )
    return judged(
        JoinedSearch(
            search_id=f"s-{number}",
            search_time=time_ms,
            closed_at=time_ms + 60_000,
            query=QUERIES[int(rng.integers(len(QUERIES)))],
            slots=slots,
        )
    )


def judged(search: JoinedSearch) -> TrainingSearch:
    """Return what the pairs stage makes of a list that may be learned from."""
    training = training_search(search)
    assert training is not None
    return training


def list_record(search: TrainingSearch, *, offset: int, partition: int = 0) -> LogRecord:
    """Return the record of a list."""
    return LogRecord(TRAINING_SEARCHES, partition, offset, search.closed_at, search)


def records(first: int, last: int, *, partitions: int = 2) -> list[LogRecord]:
    """Return the records of lists from `first` up to `last`, spread over partitions."""
    return [
        list_record(search_number(number), offset=number // partitions, partition=number % partitions)
        for number in range(first, last)
    ]


def offsets(lists: int) -> dict[str, int]:
    """Return the offsets behind so many lists of `records`."""
    return {f"{TRAINING_SEARCHES}/0": (lists + 1) // 2, f"{TRAINING_SEARCHES}/1": lists // 2}


class FakeSource:
    """A log in a list; remembers what was committed."""

    def __init__(self, log: Sequence[LogRecord] = ()) -> None:
        self.log = list(log)
        self.committed: list[dict[str, int]] = []
        self.lost: Exception | None = None
        """Raised by the next commit, as from a group that has moved on."""
        self.begins = {f"{TRAINING_SEARCHES}/{partition}": 0 for partition in range(2)}
        """What retention has left."""
        self.joins = 0
        """How often a trainer took over."""
        self.readable: int | None = None
        """How many records of the log come in time; all if None."""
        self._next: dict[str, int] = {}

    def generation(self) -> int:
        """Give the group's generation."""
        self.joins += 1
        return self.joins

    def seek(self, offsets: Mapping[str, int]) -> dict[str, int]:
        """Read on from these offsets; what lies beyond the end is of another log, which is read from its beginning."""
        ends = self.ends()
        wanted = {place: (begin, offsets.get(place, 0)) for place, begin in self.begins.items()}
        self._next = {place: at if begin <= at <= ends[place] else begin for place, (begin, at) in wanted.items()}
        return dict(self._next)

    def ends(self) -> dict[str, int]:
        """Where the log ends."""
        found = dict(self.begins)
        for record in self.log:
            found[record.place] = max(found.get(record.place, 0), record.offset + 1)
        return found

    def poll(self, timeout_s: float) -> list[LogRecord]:
        """Return everything that was not read yet."""
        del timeout_s  # the fake never waits
        fresh = [record for record in self.log[: self.readable] if record.offset >= self._next.get(record.place, 0)]
        for record in fresh:
            self._next[record.place] = record.offset + 1
        return fresh

    def commit(self, offsets: Mapping[str, int]) -> None:
        """Commit."""
        if self.lost is not None:
            raise self.lost
        self.committed.append(dict(offsets))


class FakeCheckpoints:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.saved: list[Snapshot] = []

    def save(self, snapshot: Snapshot) -> None:
        """Keep a state."""
        self.saved.append(snapshot)

    def load(self, *, query_release: int | None = None, taken_back: Sequence[tuple[int, int]] = ()) -> Snapshot | None:
        """Return the newest state, or the one that was saved with a release or the last one before it."""
        found = self.saved
        if query_release is not None:
            found = [one for one in found if one.outbox and one.progress.query_parent <= query_release]
            ranges = [range(low + 1, high + 1) for low, high in taken_back]
            found = [one for one in found if not any(one.progress.query_parent in gone for gone in ranges)]
        return found[-1] if found else None


class FakeModels(ModelsTable):
    """`models` without a broker: what is published is read at once."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        """Every key ever published, in order."""
        self.retired: list[str] = []
        self._served = START_MS

    @property
    def values(self) -> dict[str, bytes]:
        """The releases that are there."""
        return {key: value for key in self.keys() if (value := self.value(key)) is not None}

    def publish(self, values: Mapping[str, bytes]) -> None:
        """Write releases."""
        for key, value in values.items():
            self.apply(key.encode(), value)
        self.order += values

    def retire(self, keys: Sequence[str]) -> None:
        """Write tombstones."""
        for key in keys:
            self.apply(key.encode(), None)
        self.retired += keys

    def serve(
        self, query_release: int, product_release: int, *, withdrawn: int = 0, withdrawn_above: int | None = None
    ) -> None:
        """Put releases in force; what a rollback took back lies above the one in force if nothing else is said."""
        self._served += 1
        fences = [manifest_of(value).fence for value in self.values.values()]
        serving = Serving(
            query_release=query_release,
            product_release=product_release,
            collection=collection_name(product_release),
            published_at=self._served,
            fence=max(fences, default=0),
            withdrawn=withdrawn,
            withdrawn_above=query_release if withdrawn_above is None else withdrawn_above,
        )
        self.apply(SERVING_KEY, wire.encode(serving))


class World:
    """Fakes, a clock in hand, and the trainer that lives in them."""

    def __init__(self, lists: int = 0, *, overlap: float = 0.0, golden: GoldenCheck | None = None) -> None:
        self.source = FakeSource(records(0, lists))
        self.checkpoints = FakeCheckpoints()
        self.models = FakeModels()
        self.now_ms = START_MS
        self.encoder = TinyEncoder(DIM)
        self.settings = LoopSettings(Cadence(query_ms=15_000, product_ms=60_000), overlap=overlap)
        self.golden = golden
        self.judged: set[int] = set()
        """Releases about which held-out lists are being asked."""
        self.loop = self.start()

    def start(self) -> TrainerLoop:
        """Start a trainer as a new process would: from the newest checkpoint."""
        snapshot = self.checkpoints.load()
        self.loop = TrainerLoop(
            new_learner(snapshot, encoder=self.encoder),
            source=self.source,
            checkpoints=self.checkpoints,
            models=self.models,
            writer=self.models,
            encoder=self.encoder,
            settings=self.settings,
            clock_ms=lambda: self.now_ms,
            golden=self.golden,
            judged=lambda: self.judged,
        )
        self.loop.resume({} if snapshot is None else snapshot.outbox)
        return self.loop

    @property
    def progress(self) -> Progress:
        """How far the trainer has come."""
        return self.loop.learner.progress

    def catching_up(self) -> bool:
        """Whether the log is being read again."""
        return bool(self.progress.catch_up)

    def send(self, first: int, last: int) -> None:
        """Append lists to the topic."""
        self.source.log += records(first, last)

    def run_once(self, *, after_s: float = 0.0) -> None:
        """Let time pass and go round the loop once."""
        self.now_ms += round(after_s * 1000)
        self.loop.run_once()


def lose_disk(world: World) -> Progress:
    """Start a trainer whose checkpoints are gone and return what it knows."""
    world.checkpoints.saved.clear()
    return world.start().learner.progress


def taught(lists: int = 400, learner: Learner | None = None) -> Learner:
    """Return a learner that has counted so many lists."""
    learner = learner or new_learner()
    for record in records(0, lists):
        assert isinstance(record.content, TrainingSearch)
        learner.evidence.take_list(record.content, time_ms=record.time_ms)
    return learner


def same(one: Towers, two: Towers, *, nats: float = 0.0) -> bool:
    """Whether towers are equal, up to some nats."""
    ours, theirs = ({**towers.query.tensors(), **towers.product.tensors()} for towers in (one, two))
    return all(
        ours[name].shape == theirs[name].shape
        and np.allclose(ours[name].astype(float), theirs[name].astype(float), rtol=0, atol=nats)
        for name in ours
    )

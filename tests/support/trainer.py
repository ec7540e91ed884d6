"""Fakes of the trainer's ports and a small world to learn from."""

from collections.abc import Mapping, Sequence

import numpy as np

from contracts import wire
from contracts.pairs import PreferencePair
from contracts.releases import SERVING_KEY, Serving, collection_name
from service.models import ModelsTable
from tests.support.pairs import preference_pair
from tests.support.tiny_encoder import WORDS, TinyEncoder
from trainer.adapters.vectors import QueryVectors
from trainer.learner import Learner, LearnerSettings, PairRecord
from trainer.state import Snapshot, learner_from

DIM = 16
PRODUCTS = tuple(f"{first} {second}" for first in WORDS[:10] for second in WORDS[10:14])
SETTINGS = LearnerSettings(uniform_products=12, anchor_queries=4)


class FakeProducts:
    """A catalogue whose products are named by their texts."""

    def __init__(self, encoder: TinyEncoder, names: Sequence[str] = PRODUCTS) -> None:
        self._names = sorted(names)
        self._vectors = dict(zip(self._names, encoder.encode(self._names), strict=True))

    def ids(self) -> Sequence[str]:
        """Return every product."""
        return self._names

    def __contains__(self, product_id: object) -> bool:
        return product_id in self._vectors

    def vectors(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return base vectors."""
        return np.array([self._vectors[name] for name in product_ids], dtype=np.float32).reshape(-1, DIM)


def new_learner(snapshot: Snapshot | None = None, *, encoder: TinyEncoder | None = None) -> Learner:
    """Return the learner of a snapshot, or one that has seen nothing, over a small catalogue."""
    encoder = encoder or TinyEncoder(DIM)
    return learner_from(
        snapshot,
        dim=DIM,
        settings=SETTINGS,
        products=FakeProducts(encoder),
        query_vectors=QueryVectors(encoder),
    )


def pair_number(number: int) -> PreferencePair:
    """Return one of endlessly many different pairs; shoppers prefer every tenth product."""
    return preference_pair(
        f"s-{number}",
        query=WORDS[number % 7],
        chosen=PRODUCTS[10 * (number % 4)],
        rejected=PRODUCTS[1 + number % 9],
        weight=0.25 + number % 3,
        event_time=1_795_196_000_000 + number,
    )


def records(first: int, last: int, *, partitions: int = 2) -> list[PairRecord]:
    """Return the records of pairs from `first` up to `last`, spread over partitions."""
    return [PairRecord(number % partitions, number // partitions, pair_number(number)) for number in range(first, last)]


class FakeSource:
    """Pairs from a list; remembers what was committed."""

    def __init__(self, log: Sequence[PairRecord] = ()) -> None:
        self.log = list(log)
        self.committed: list[dict[int, int]] = []
        self.lost: Exception | None = None
        """Raised by the next commit, as from a group that has moved on."""
        self._next: dict[int, int] = {}

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read on from these offsets."""
        self._next = dict(offsets)

    def poll(self, timeout_s: float) -> list[PairRecord]:
        """Return everything that was not read yet."""
        del timeout_s  # the fake never waits
        fresh = [record for record in self.log if record.offset >= self._next.get(record.partition, 0)]
        for record in fresh:
            self._next[record.partition] = record.offset + 1
        return fresh

    def commit(self, offsets: Mapping[int, int]) -> None:
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

    def load(self) -> Snapshot | None:
        """Return the newest state."""
        return self.saved[-1] if self.saved else None


class FakeModels(ModelsTable):
    """`models` without a broker: what is published is read at once."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        """Every key ever published, in order."""
        self.retired: list[str] = []

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

    def serve(self, query_release: int, product_release: int) -> None:
        """Put releases in force."""
        serving = Serving(
            query_release=query_release,
            product_release=product_release,
            collection=collection_name(product_release),
            published_at=1_795_196_006_756,
        )
        self.apply(SERVING_KEY, wire.encode(serving))

"""What the words of a query add to each product of a catalogue, as search computes it of the vector store's answers."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from contracts.catalog import Product
from towers.lexical import NAMED, QueryKind, Sparse, meant, product_words, read_query
from towers.model import Mix
from towers.word_index import WordIndex
from trainer.preference.matches import WordMatches

KEPT_BYTES: Final = 512 * 2**20
"""Of queries that were asked; more are looked up again each time."""
FIRST_NATS: Final = 1e4
"""What a pin adds: more than any score is."""


class Asked(NamedTuple):
    """A query and what its words find.

    Args:
        kind: of the query.
        rows: products whose words match, rising, (N,) int32.
        matches: how well, in nats, (N,) float32.
        pins: how surely the query names each of these products, (N,) float32.
    """

    kind: QueryKind
    rows: np.ndarray
    matches: np.ndarray
    pins: np.ndarray

    def scores(self, products: int) -> np.ndarray:
        """How well the words of each product of the catalogue match, in nats, (P,)."""
        found = np.zeros(products)
        found[self.rows] = self.matches
        return found

    def added(self, scores: np.ndarray, mix: Mix) -> np.ndarray:
        """Scores of the whole catalogue in nats, (P,), with what words add; what is pinned is before all else."""
        return self.pinned(self.mixed(scores, mix))

    def mixed(self, scores: np.ndarray, mix: Mix) -> np.ndarray:
        """Scores of the whole catalogue in nats, (P,), with what words add."""
        found = scores.astype(np.float64)
        found[self.rows] += mix.nats(self.kind, self.matches.tolist())
        return found

    def pinned(self, scores: np.ndarray) -> np.ndarray:
        """Scores of the whole catalogue in nats, (P,): what the query names is before all else."""
        found = scores.copy()
        found[self.rows] += FIRST_NATS * self.pins
        return found


class Words:
    """The words of a catalogue.

    Args:
        products: of the catalogue.
        kept_bytes: what is kept of queries. Those that came first stay: whoever goes through all of them, time and
            again, would find none that was kept if the newest did.
    """

    def __init__(self, products: Sequence[Product], *, kept_bytes: int = KEPT_BYTES) -> None:
        self._products = products
        self._vectors = [product_words(product.product_id, product) for product in products]
        self.of_products = [vectors.words for vectors in self._vectors]
        words, grams = (WordIndex(one) for one in zip(*self._vectors, strict=True))
        self._indexes = {"words": words, "grams": grams}
        self.matches = WordMatches(lambda: words, words.counts)
        """What the learner knows of it: as in the trainer, words alone, whatever the kind of query."""
        self._asked: dict[str, Asked] = {}
        self._room = kept_bytes

    def ask(self, text: str) -> Asked:
        """What the words of a query find, asked as search asks."""
        asked = self._asked.get(text)
        if asked is None:
            asked = self._found(text)
            size = sum(array.nbytes for array in asked[1:])
            if size <= self._room:
                self._asked[text] = asked
                self._room -= size
        return asked

    def _found(self, text: str) -> Asked:
        query = read_query(text)
        scores = self._scores(query.arms())
        if not scores.any():
            scores = self._scores(query.arms(mistyped=True))
        rows = np.flatnonzero(scores).astype(np.int32)
        pins = np.zeros(len(rows), dtype=np.float32)
        named = np.argsort(-scores[rows], kind="stable")[:NAMED]
        products = [self._products[row] for row in rows[named]]
        pins[named] = meant([query.pins(one.product_id, one.title, one.attributes) for one in products])
        return Asked(query.kind, rows, scores[rows], pins)

    def _scores(self, arms: Mapping[str, Sparse]) -> np.ndarray:
        found = np.zeros(len(self._products), dtype=np.float32)
        for name, arm in arms.items():
            found += self._indexes[name].scores(arm)
        return found

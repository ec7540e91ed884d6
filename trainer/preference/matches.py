"""How well the words of queries and products match, in the form in which search lets them count.

A product adds its share of the best match in the catalogue, times a rate that depends on the query alone: on its kind,
and on how strong that best match is. So a query costs one look into the index, whatever the number of its products.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from towers.features import matched
from towers.lexical import QueryKind, Sparse, read_query
from towers.model import DEFAULT_MIX, KINDS, strength_of
from towers.word_index import TermCounts, WordIndex
from trainer.preference.evidence import Cells

CHUNK: Final = 50_000
"""Cells that are multiplied at once."""


class Matches(NamedTuple):
    """Of N cells and Q queries.

    Args:
        shares: of each cell its match, as a share of the best of its query, from 0 to 1, (N,).
        strengths: of each query how much each rate of a mix counts, (Q, 2 * kinds): of its kind, strong and weak.
    """

    shares: np.ndarray
    strengths: np.ndarray


class _Reading(NamedTuple):
    kind: QueryKind
    words: Sparse


class WordMatches:
    """What the words of a catalogue say of queries: by what terms were worth when they were counted last.

    Of each query that was asked its reading and its best match are kept; `keep` says for how long.

    Args:
        index: gives that of the whole catalogue as it is now; needed for queries that were not asked yet.
        counts: of the catalogue's terms.
        best: of queries that were asked already the best match, in nats, by text.
    """

    def __init__(
        self, index: Callable[[], WordIndex], counts: TermCounts, best: Mapping[str, float] | None = None
    ) -> None:
        self._index, self.counts = index, counts
        self.best = dict(best or {})
        self._readings: dict[str, _Reading] = {}

    def recount(self, counts: TermCounts) -> None:
        """Say anew what terms are worth; every query's best match is sought again."""
        self.counts = counts
        self.best.clear()

    def keep(self, texts: Collection[str]) -> None:
        """Forget all queries but these."""
        self.best = {text: best for text, best in self.best.items() if text in texts}
        self._readings = {text: reading for text, reading in self._readings.items() if text in texts}

    def of(
        self, cells: Cells, texts: Sequence[str], products: Sequence[Sparse], *, is_text: np.ndarray | None = None
    ) -> Matches:
        """The matches of cells.

        Args:
            cells: the evidence.
            texts: of queries, by number.
            products: words of products, by number; they may be newer than the index.
            is_text: which of them are a person's texts, (all products,) of bool: none of the catalogue, so that none is
                a best match; None if all are products.
        """
        asked = [texts[number] for number in cells.queries.tolist()]
        readings, best = self._ask(asked)
        distinct, product_of = np.unique(cells.products, return_inverse=True)
        queries, described = self._matrices(readings, [products[one] for one in distinct.tolist()])
        if cells.width:
            found = (queries @ described[product_of[: cells.width]].T).toarray().reshape(-1)
        else:
            found = np.empty(len(cells))
            for first in range(0, len(found), CHUNK):
                part = slice(first, first + CHUNK)
                both = queries[cells.query_of[part]].multiply(described[product_of[part]])
                found[part] = np.asarray(both.sum(axis=1)).reshape(-1)
        if len(cells):
            best = np.maximum(best, cells.highest(found if is_text is None else found * ~is_text[cells.products]))
        shares = np.minimum(found / cells.spread(np.where(best > 0, best, 1.0)), 1.0)
        return Matches(shares, _strengths(readings, best))

    def grid(self, texts: Sequence[str], products: Sequence[Sparse]) -> Matches:
        """The matches of all pairs of some queries and products; shares are (Q, P)."""
        readings, best = self._ask(texts)
        queries, described = self._matrices(readings, products)
        found = (queries @ described.T).toarray()
        best = np.maximum(best, found.max(axis=1, initial=0.0))
        return Matches(found / np.where(best > 0, best, 1.0)[:, None], _strengths(readings, best))

    def _ask(self, texts: Sequence[str]) -> tuple[list[_Reading], np.ndarray]:
        """How queries are read, and the best match of each in the catalogue, in nats, (Q,)."""
        for text in texts:
            if text not in self._readings:
                query = read_query(text)
                self._readings[text] = _Reading(query.kind, query.words)
        if unknown := dict.fromkeys(text for text in texts if text not in self.best):
            index = self._index()
            for text in unknown:
                self.best[text] = float(index.scores(self._readings[text].words, self.counts).max(initial=0.0))
        return [self._readings[text] for text in texts], np.array([self.best[text] for text in texts])

    def _matrices(self, readings: Sequence[_Reading], products: Sequence[Sparse]) -> tuple[csr_matrix, csr_matrix]:
        """Queries and products over the terms that were asked for, by what these are worth, (Q, T) and (P, T)."""
        terms = np.unique(np.concatenate([np.zeros(0, np.uint32), *(one.words.indices for one in readings)]))
        queries = _matrix([one.words for one in readings], terms)
        queries.data *= self.counts.weighed(Sparse(terms, np.ones(len(terms), np.float32))).values[queries.indices]
        return queries, _matrix(products, terms)


def _strengths(readings: Sequence[_Reading], best: np.ndarray) -> np.ndarray:
    found = np.zeros((len(readings), len(KINDS), 2))
    for row, (one, score) in enumerate(zip(readings, best.tolist(), strict=True)):
        kind = KINDS.index(one.kind)
        strong = strength_of(score, DEFAULT_MIX[kind].full)
        found[row, kind] = strong, 1 - strong
    return found.reshape(len(readings), 2 * len(KINDS))


def _matrix(vectors: Sequence[Sparse], terms: np.ndarray) -> csr_matrix:
    rows = np.repeat(np.arange(len(vectors)), [len(vector.indices) for vector in vectors])
    indices = np.concatenate([np.zeros(0, np.uint32), *(vector.indices for vector in vectors)])
    values = np.concatenate([np.zeros(0, np.float32), *(vector.values for vector in vectors)])
    places, columns = matched(indices, terms)
    return csr_matrix((values[places], (rows[places], columns)), shape=(len(vectors), len(terms)))

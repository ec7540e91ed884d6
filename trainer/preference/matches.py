"""How well the words of queries and products match, in the form in which search lets them count.

A product adds its share of the best match in the catalogue, times a rate that depends on the query alone: on its kind,
and on how strong that best match is. So a query costs one look into the index, whatever the number of its products.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from cachetools import LRUCache
from scipy.sparse import csr_matrix

from towers.features import matched
from towers.lexical import QueryKind, Sparse, WordIndex, read_query
from towers.model import DEFAULT_MIX, KINDS, strength_of
from trainer.preference.evidence import Cells

KEPT_QUERIES: Final = 50_000
"""Queries whose words and best match are kept."""
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


class _Asked(NamedTuple):
    kind: QueryKind
    terms: Sparse
    best: float


class WordMatches:
    """What the words of a catalogue say of queries.

    Args:
        index: of the whole catalogue.
    """

    def __init__(self, index: WordIndex) -> None:
        self._index = index
        self._asked: LRUCache[str, _Asked] = LRUCache(KEPT_QUERIES)

    def of(self, cells: Cells, texts: Sequence[str], products: Sequence[Sparse]) -> Matches:
        """The matches of cells.

        Args:
            cells: the evidence.
            texts: of queries, by number.
            products: words of products, by number; they may be newer than the index.
        """
        asked = [self._ask(texts[number]) for number in cells.queries.tolist()]
        distinct, product_of = np.unique(cells.products, return_inverse=True)
        queries, described = _matrices(asked, [products[one] for one in distinct.tolist()])
        if cells.width:
            found = (queries @ described[product_of[: cells.width]].T).toarray().reshape(-1)
        else:
            found = np.empty(len(cells))
            for first in range(0, len(found), CHUNK):
                part = slice(first, first + CHUNK)
                both = queries[cells.query_of[part]].multiply(described[product_of[part]])
                found[part] = np.asarray(both.sum(axis=1)).reshape(-1)
        best = np.array([one.best for one in asked])
        if len(cells):
            best = np.maximum(best, cells.highest(found))
        shares = found / cells.spread(np.where(best > 0, best, 1.0))
        return Matches(shares, _strengths(asked, best))

    def grid(self, texts: Sequence[str], products: Sequence[Sparse]) -> Matches:
        """The matches of all pairs of some queries and products; shares are (Q, P)."""
        asked = [self._ask(text) for text in texts]
        queries, described = _matrices(asked, products)
        found = (queries @ described.T).toarray()
        best = np.maximum(np.array([one.best for one in asked]), found.max(axis=1, initial=0.0))
        return Matches(found / np.where(best > 0, best, 1.0)[:, None], _strengths(asked, best))

    def _ask(self, text: str) -> _Asked:
        asked = self._asked.get(text)
        if asked is None:
            query = read_query(text)
            best = float(self._index.scores(query.words).max(initial=0.0))
            asked = self._asked[text] = _Asked(query.kind, self._index.weighed(query.words), best)
        return asked


def _strengths(asked: Sequence[_Asked], best: np.ndarray) -> np.ndarray:
    found = np.zeros((len(asked), len(KINDS), 2))
    for row, (one, score) in enumerate(zip(asked, best.tolist(), strict=True)):
        kind = KINDS.index(one.kind)
        strong = strength_of(score, DEFAULT_MIX[kind].full)
        found[row, kind] = strong, 1 - strong
    return found.reshape(len(asked), 2 * len(KINDS))


def _matrices(asked: Sequence[_Asked], products: Sequence[Sparse]) -> tuple[csr_matrix, csr_matrix]:
    """Queries and products over the terms that were asked for, (Q, T) and (P, T)."""
    terms = np.unique(np.concatenate([np.zeros(0, np.uint32), *(one.terms.indices for one in asked)]))
    return _matrix([one.terms for one in asked], terms), _matrix(products, terms)


def _matrix(vectors: Sequence[Sparse], terms: np.ndarray) -> csr_matrix:
    rows = np.repeat(np.arange(len(vectors)), [len(vector.indices) for vector in vectors])
    indices = np.concatenate([np.zeros(0, np.uint32), *(vector.indices for vector in vectors)])
    values = np.concatenate([np.zeros(0, np.float32), *(vector.values for vector in vectors)])
    places, columns = matched(indices, terms)
    return csr_matrix((values[places], (rows[places], columns)), shape=(len(vectors), len(terms)))

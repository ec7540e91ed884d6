"""The words of a whole catalogue: how well each product matches a query, for whoever scores without a vector store.

Source: docs/papers.md, "Words beside meaning".
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy.sparse import csc_matrix

from towers.features import matched
from towers.lexical import Sparse

_PLACE: Final = np.uint64(2**32 - 1)


def idf(products: int, having: np.ndarray) -> np.ndarray:
    """What the match of a term is worth in nats, as the store computes it, (N,) float32.

    Args:
        products: that have a vector at all.
        having: how many of them have each term, (N,).

    >>> idf(20_000, np.array([0, 1, 20_000])).round(3).tolist()
    [10.597000122070312, 9.498000144958496, 0.0]
    """
    return np.asarray(np.log((products - having + 0.5) / (having + 0.5) + 1.0), dtype=np.float32)


class TermCounts(NamedTuple):
    """How many of a catalogue's products have each term: what says how much its match is worth.

    Args:
        products: that there are.
        terms: which any of them has, rising, (T,) uint32.
        having: how many have each, (T,).
    """

    products: int
    terms: np.ndarray
    having: np.ndarray

    def weighed(self, query: Sparse) -> Sparse:
        """A query's terms with what the match of each is worth; those that no product has are worth most."""
        having = np.zeros(len(query.indices), dtype=np.int64)
        places, columns = matched(query.indices, self.terms)
        having[places] = self.having[columns]
        return Sparse(query.indices, query.values * idf(self.products, having))


class WordIndex:
    """The words of a catalogue by term: how well each product matches a query, as the store scores it.

    Args:
        products: one vector of each, P of them.
    """

    def __init__(self, products: Sequence[Sparse]) -> None:
        rows = np.repeat(np.arange(len(products), dtype=np.int32), [len(vector.indices) for vector in products])
        found = np.concatenate([*(vector.indices for vector in products), np.zeros(0, np.uint32)])
        values = np.concatenate([*(vector.values for vector in products), np.zeros(0, np.float32)])
        # By term, then product: as the matrix lies, so that none is converted. Numbers sort faster than places.
        order = np.sort(found.astype(np.uint64) << np.uint64(32) | np.arange(len(found), dtype=np.uint64)) & _PLACE
        found = found[order]
        starts = np.flatnonzero(np.append(True, found[1:] != found[:-1])[: len(found)])
        terms = found[starts]
        parts = values[order], rows[order], np.append(starts, len(found))
        self._by_term = csc_matrix(parts, shape=(len(products), len(terms)))
        self.counts = TermCounts(len(products), terms, np.diff(self._by_term.indptr))

    def scores(self, query: Sparse, counts: TermCounts | None = None) -> np.ndarray:
        """The score of each product in nats, (P,) float32, by the counts of this catalogue if no other are given."""
        places, columns = matched(query.indices, self.counts.terms)
        weights = (counts or self.counts).weighed(query).values[places]
        return np.asarray(self._by_term[:, columns] @ weights, dtype=np.float32)

"""Some products of some queries, scored as search scores them: by meaning, quality, words and memory.

What a release is measured on before it serves: a shop's judged products, and what held-out lists showed. Boosts and the
pins of identifiers are left out: no release moves them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from towers.model import NATS_PER_COSINE, ProductTower, QueryTower, product_vectors
from trainer.learner import Looked, Products
from trainer.preference.evidence import Cells
from trainer.preference.matches import Matches, WordMatches
from trainer.preference.model import rates_of


class AskedProducts(NamedTuple):
    """Q queries, P products, and N pairs of them.

    Args:
        texts: of the queries, (Q,).
        query_vectors: base vectors, (Q, D).
        product_ids: (P,).
        products: what the catalogue knows of them.
        cells: which query is paired with which product; nothing is counted in them.
        matches: how well their words match.
    """

    texts: Sequence[str]
    query_vectors: np.ndarray
    product_ids: Sequence[str]
    products: Looked
    cells: Cells
    matches: Matches

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        query_vectors: np.ndarray,
        query_of: np.ndarray,
        product_ids: np.ndarray,
        products: Products,
        matches: WordMatches,
    ) -> "AskedProducts":
        """Look up what pairs name.

        Args:
            texts: of the queries, each of which has a pair, (Q,).
            query_vectors: their base vectors, (Q, D).
            query_of: of each pair, whatever numbers its query, rising, (N,).
            product_ids: of each pair, different ones of one query, in any order, (N,).
            products: the catalogue.
            matches: what its words say of queries.
        """
        distinct, places = np.unique(product_ids, return_inverse=True)
        _, starts, numbers = np.unique(query_of, return_index=True, return_inverse=True)
        nothing = np.zeros(len(places))
        cells = Cells(np.arange(len(starts)), starts, numbers, places, nothing, nothing)
        found = products.look(distinct.tolist())
        return cls(texts, query_vectors, distinct.tolist(), found, cells, matches.of(cells, texts, found.words))

    def looked_up(self, products: Products) -> "AskedProducts":
        """The same with what the catalogue knows now of vectors and features; words are as they were."""
        return self._replace(products=products.look(self.product_ids))

    def quality(self, tower: ProductTower) -> np.ndarray:
        """The quality of each product, in nats, (P,)."""
        return tower.quality(self.product_ids, self.products.features)

    def scores(self, tower: QueryTower, quality: np.ndarray) -> np.ndarray:
        """The score of each pair, (N,).

        Args:
            tower: of the queries.
            quality: of each product, in nats, (P,).
        """
        cells = self.cells
        products = product_vectors(self.products.vectors, quality)
        scores = (self.matches.strengths @ rates_of(tower.mix))[cells.query_of] * self.matches.shares / NATS_PER_COSINE
        ends = [*cells.starts[1:].tolist(), len(cells)]
        vectors = tower.vectors(self.query_vectors)
        for text, vector, first, last in zip(self.texts, vectors, cells.starts.tolist(), ends, strict=True):
            paired = cells.products[first:last]
            scores[first:last] += products[paired] @ vector
            names = [self.product_ids[one] for one in paired.tolist()]
            scores[first:last] += tower.memory.nats_of_products([text], names)[0] / NATS_PER_COSINE
        return np.asarray(scores)

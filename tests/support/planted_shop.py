"""A shop of random vectors whose shoppers choose by the text and, if planted, by a quality that no text tells."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from scipy.sparse import csr_matrix

from towers.model import NATS_PER_COSINE
from trainer.preference.evidence import Cells, EvidenceTable, Shown
from trainer.preference.model import Catalogue, Weights

DIM: Final = 16
NAMES: Final = 5
"""Features; the products have them in turn."""


def unit_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random directions not far from one another, as texts of one department are, (count, DIM) of float32."""
    rows = 0.7 * rng.standard_normal((count, DIM)) + np.linspace(-1, 1, DIM)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


class PlantedShop:
    """Products, queries, and what their shoppers like.

    Args:
        products: how many.
        queries: how many.
        quality_nats: standard deviation of the products' planted quality; 0 plants nothing.
        seed: of everything but the lists.
    """

    def __init__(self, *, products: int = 24, queries: int = 40, quality_nats: float = 0.0, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        names = np.arange(products) % NAMES
        features = csr_matrix((np.ones(products, np.float32), (np.arange(products), names)), shape=(products, NAMES))
        self.catalogue = Catalogue(unit_rows(rng, products), features)
        self.queries = unit_rows(rng, queries)
        self.quality = quality_nats * rng.standard_normal(products)

    def liking(self, query: int) -> np.ndarray:
        """What shoppers truly think of each product for a query, in nats, (P,)."""
        text = NATS_PER_COSINE * self.catalogue.vectors @ self.queries[query]
        return np.asarray(text + self.quality, dtype=np.float64)

    def lists(self, count: int, *, seed: int = 1, shown: int = 6) -> Iterator[tuple[int, list[Shown]]]:
        """Queries and their lists; each product that is looked at is clicked as often as the shoppers like it."""
        rng = np.random.default_rng(seed)
        looks = 1 / np.arange(1, shown + 1)
        for _ in range(count):
            query = int(rng.integers(len(self.queries)))
            liking = self.liking(query)
            products = rng.permutation(len(liking))[:shown]
            chances = looks * np.exp(liking[products] - liking.max())
            clicks = (rng.random(shown) < chances).astype(float)
            yield query, [Shown(*slot) for slot in zip(products.tolist(), looks.tolist(), clicks.tolist(), strict=True)]

    def cells(self, count: int, *, seed: int = 1) -> Cells:
        """The evidence of so many lists."""
        return table_of(self.lists(count, seed=seed)).cells()


def table_of(lists: Iterator[tuple[int, list[Shown]]] | Sequence[tuple[int, list[Shown]]]) -> EvidenceTable:
    """Count lists."""
    table = EvidenceTable()
    for query, shown in lists:
        table.add(query, shown)
    return table


def cells_of(rows: Sequence[tuple[int, int, float, float]]) -> Cells:
    """Cells of (query, product, clicks, showings), uncapped and in order of query, then product."""
    ordered = sorted(rows)
    queries = np.array([row[0] for row in ordered], dtype=np.int64)
    distinct, starts, query_of = np.unique(queries, return_index=True, return_inverse=True)
    return Cells(
        distinct,
        starts,
        query_of.reshape(-1),
        np.array([row[1] for row in ordered], dtype=np.int64),
        np.array([row[2] for row in ordered], dtype=np.float64),
        np.log(np.array([row[3] for row in ordered], dtype=np.float64)),
    )


def scores(weights: Weights, shop: PlantedShop) -> np.ndarray:
    """Return what the index would give each query and product, in nats, (Q, P)."""
    queries = weights.query_vectors(shop.queries)
    return np.asarray(NATS_PER_COSINE * queries @ weights.product_vectors(shop.catalogue).T, dtype=np.float64)

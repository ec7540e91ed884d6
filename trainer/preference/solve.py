"""The maximum a posteriori of the preference model over a table of evidence: one convex problem, one optimum.

Every part is solved in units of its prior's standard deviation, which makes the problem well-conditioned: 15 to 25
iterations of L-BFGS suffice. The result depends on no order, no rate and no size of batches.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import minimize

from trainer.preference.evidence import Cells
from trainer.preference.losses import AGAINST_REFERENCE, LOSSES, LossName, Pairs, Targets, pairs_of, surprise
from trainer.preference.model import NATS_PER_COSINE, Catalogue, Prior, Weights

MAX_ITERATIONS: Final = 25
TOLERANCE: Final = 1e-5
"""Relative decrease below which the loss has converged."""
NO_PAIRS: Final = Pairs(*(np.zeros(0, dtype=np.int64),) * 2, *(np.zeros(0),) * 2)


@dataclass(frozen=True)
class Solution:
    """Weights, and how they were found."""

    weights: Weights
    loss: float
    iterations: int
    converged: bool


class Problem:
    """The evidence of some queries with everything about it that does not change while it is solved.

    Args:
        cells: the evidence; N cells of Q queries and P' products.
        query_vectors: base vectors by query number, (all queries, D).
        catalogue: the products.
        loss: by name.
    """

    def __init__(
        self, cells: Cells, query_vectors: np.ndarray, catalogue: Catalogue, *, loss: LossName = "softmax"
    ) -> None:
        self.cells = cells
        self._loss = LOSSES[loss]
        self._targets = Targets(cells, NO_PAIRS if loss == "softmax" else pairs_of(cells))
        self._dim = catalogue.vectors.shape[1]
        self._features = catalogue.features.shape[1]
        self.products, self._product_of = np.unique(cells.products, return_inverse=True)
        queries = query_vectors[cells.queries].astype(np.float32)
        self.mean_query = queries.mean(axis=0) if len(queries) else np.zeros(self._dim, np.float32)
        self._queries = queries
        self._vectors = catalogue.vectors[cells.products].astype(np.float32)
        self._words = catalogue.features[self.products].astype(np.float64)
        text = NATS_PER_COSINE * np.einsum("nd,nd->n", queries[cells.query_of], self._vectors).astype(np.float64)
        self._offset = np.zeros_like(text) if loss in AGAINST_REFERENCE else text

    def solve(
        self, prior: Prior, *, start: Weights | None = None, memory: bool = True, max_iterations: int = MAX_ITERATIONS
    ) -> Solution:
        """The most probable weights.

        Args:
            prior: how strongly each part is held.
            start: where to begin; 0 if None.
            memory: whether queries get a memory of their own.
            max_iterations: budget; what is best then is returned, and said not to have converged.
        """
        dim, rows = self._dim, len(self.cells.queries)
        sizes = (dim * dim, dim, len(self.products), self._features, rows * dim if memory else 0)
        bounds = np.cumsum((0, *sizes))
        spread = 1 / np.sqrt(np.array(prior))
        centred = self._queries - self.mean_query

        def unpack(x: np.ndarray) -> list[np.ndarray]:
            return [x[bounds[i] : bounds[i + 1]] * spread[i] for i in range(len(sizes))]

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            taste, common, own, words, remembered = unpack(x)
            learned = centred @ taste.reshape(dim, dim).astype(np.float32) + common.astype(np.float32)
            if memory:
                learned += remembered.reshape(rows, dim).astype(np.float32)
            quality = own + self._words @ words
            scores = self._scores(learned, quality)
            value, slope = self._loss(scores, self._targets)
            pulls = np.add.reduceat(self._vectors * slope.astype(np.float32)[:, None], self.cells.starts, axis=0)
            by_product = np.bincount(self._product_of, slope, len(self.products))
            gradient = np.concatenate([
                (centred.T @ pulls).ravel() * spread[0],
                pulls.sum(axis=0) * spread[1],
                by_product * spread[2],
                (self._words.T @ by_product) * spread[3],
                *([pulls.ravel() * spread[4]] if memory else []),
            ])  # fmt: skip
            return value + x @ x / 2, gradient + x

        begin = np.zeros(bounds[-1]) if start is None else self._pack(start, bounds, spread, memory=memory)
        if not len(self.cells):
            return Solution(Weights.untrained(dim, self._features), 0.0, 0, converged=True)
        found = minimize(objective, begin, jac=True, method="L-BFGS-B",
                         options={"maxiter": max_iterations, "ftol": TOLERANCE, "gtol": 0.0})  # fmt: skip
        taste, common, own, words, remembered = unpack(found.x)
        vectors = remembered.reshape(rows, dim) if memory else ()
        weights = Weights(
            taste.reshape(dim, dim), common, self.mean_query.astype(np.float64), words, self.products, own,
            memory=dict(zip(self.cells.queries.tolist(), vectors, strict=False)),
        )  # fmt: skip
        return Solution(weights, float(found.fun), int(found.nit), bool(found.success))

    def surprise(self, weights: Weights) -> np.ndarray:
        """How unlikely the clicks of each of these queries, on which the weights were not solved, are; in nats, (Q,).

        Memory is left out: nobody typed these queries.
        """
        learned = weights.without_memory().learned_vectors(self.cells.queries, self._queries).astype(np.float32)
        quality = np.asarray(self._words @ weights.words, dtype=np.float64)
        known = np.isin(self.products, weights.products)
        quality[known] += weights.own[np.searchsorted(weights.products, self.products[known])]
        return surprise(self._scores(learned, quality), self.cells)

    def _scores(self, learned: np.ndarray, quality: np.ndarray) -> np.ndarray:
        """Of each cell, (N,), given what its query learned, (Q, D), and its product's quality, (P',)."""
        taste = np.einsum("nd,nd->n", learned[self.cells.query_of], self._vectors)
        return np.asarray(self._offset + taste + quality[self._product_of], dtype=np.float64)

    def _pack(self, start: Weights, bounds: np.ndarray, spread: np.ndarray, *, memory: bool) -> np.ndarray:
        x = np.zeros(bounds[-1])
        own = dict(zip(start.products.tolist(), start.own.tolist(), strict=True))
        parts = [start.taste.ravel(), start.common, np.array([own.get(one, 0.0) for one in self.products.tolist()]),
                 start.words]  # fmt: skip
        if memory:
            nothing = np.zeros(self._dim)
            rows = [start.memory.get(query, nothing) for query in self.cells.queries.tolist()]
            parts.append(np.concatenate(rows) if rows else nothing[:0])
        for i, part in enumerate(parts):
            x[bounds[i] : bounds[i + 1]] = part / spread[i]
        return x

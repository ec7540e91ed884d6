"""The maximum a posteriori of the preference model over a table of evidence: one convex problem, one optimum.

Every part is solved in units of its prior's standard deviation, which makes the problem well-conditioned: dozens of
iterations of L-BFGS suffice. The result depends on no order, no rate and no size of batches. What queries prefer is
sought among the directions in which queries and products differ most: the others would not leave 0 under the prior.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import OptimizeResult, minimize
from scipy.sparse import csr_matrix

from towers.features import matched
from towers.model import NATS_PER_COSINE
from trainer.preference.evidence import FORGOTTEN, Cells
from trainer.preference.losses import (
    AGAINST_REFERENCE,
    LOSSES,
    NO_PAIRS,
    LossName,
    Targets,
    expected_clicks,
    pairs_of,
    surprise,
)
from trainer.preference.matches import Matches
from trainer.preference.model import DEFAULT_RATES, HELD, LEAST_RATES, Catalogue, Deviations, Prior, Weights
from trainer.preference.rules import NO_RULES, capped

MAX_ITERATIONS: Final = 60
TOLERANCE: Final = 1e-5
"""Relative decrease below which the loss has converged."""
OUT_OF_BUDGET: Final = 1
"""Status of a search that ended by its iterations; one that finds no step down any more is where rounding allows."""
SEARCHES: Final = 8
"""At most, until it is known which rates are held at their least."""
RISING: Final = 0.1
"""Slope, in nats per standard deviation of the prior, from which a held rate is let go: less gains nothing."""
DIRECTIONS: Final = 256
"""In which learned tastes may differ, beginning with those in which queries and products differ most."""
CHUNK: Final = 2_000
"""Cells whose vectors are looked up at once: so many stay in the processor's cache until they are multiplied."""
NO_MATCHES: Final = Matches(np.zeros(0), np.zeros((0, 0)))


class Solution(NamedTuple):
    """Weights, and how they were found.

    Args:
        weights: the most probable ones.
        preferred: what they say of each cell by its query's taste alone, in nats, (N,).
        loss: at its least.
        iterations: that it took.
        converged: whether the budget sufficed.
    """

    weights: Weights
    preferred: np.ndarray
    loss: float
    iterations: int
    converged: bool


class Problem:
    """The evidence of some queries with everything about it that does not change while it is solved.

    Args:
        cells: the evidence; N cells of Q queries and P' products. A grid is solved without looking products up.
        query_vectors: base vectors by query number, (all queries, D).
        catalogue: the products.
        loss: by name.
        directions: in which learned tastes may differ.
        rules: pairs of rules, each as a query of its own; they count as far as `capped` lets them.
    """

    def __init__(
        self,
        cells: Cells,
        query_vectors: np.ndarray,
        catalogue: Catalogue,
        *,
        loss: LossName = "softmax",
        directions: int = DIRECTIONS,
        rules: Cells = NO_RULES,
    ) -> None:
        self._told = len(cells)
        """Cells that tell what shoppers chose; those of rules stand behind them."""
        asked = len(cells.queries)
        cells = cells.followed_by(capped(rules, float(cells.clicks.sum())))
        self.cells = cells
        self._directions = directions
        self._loss = LOSSES[loss]
        self._targets = Targets(cells, NO_PAIRS if loss == "softmax" else pairs_of(cells))
        self._dim = catalogue.vectors.shape[1]
        self._features = catalogue.features.shape[1]
        self._catalogue = catalogue
        self.products, self._product_of = np.unique(cells.products, return_inverse=True)
        queries = query_vectors[cells.queries].astype(np.float32)
        self.mean_query = queries[:asked].mean(axis=0) if asked else np.zeros(self._dim, np.float32)
        self._queries = queries
        self._words = catalogue.features[self.products].astype(np.float64)
        self._cosines = self._dots(queries, self._vectors()).astype(np.float64)
        self._matches = NO_MATCHES if catalogue.matches is None else catalogue.matches(cells)
        self._rated = bool(self._matches.strengths.size)
        """Whether words count, and how much beside meaning."""
        self._text = np.asarray(self._by_rates(DEFAULT_RATES) if self._rated else NATS_PER_COSINE * self._cosines)
        self._offset = np.zeros_like(self._text) if loss in AGAINST_REFERENCE else self._text

    def solve(
        self,
        prior: Prior,
        *,
        start: Weights | None = None,
        uncertainty: bool = False,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Solution:
        """The most probable weights.

        Args:
            prior: how strongly each part is held.
            start: where to begin; 0 if None.
            uncertainty: whether the weights come with their standard deviations.
            max_iterations: budget of one search; what is best then is returned, and said not to have converged. Rates
                that would fall below their least are held there, and have the rest searched again.
        """
        if not len(self.cells):
            return Solution(Weights.untrained(self._catalogue), np.zeros(0), 0.0, 0, converged=True)
        space = self._space
        dim = space.product_axes.shape[1]
        rates_count = len(DEFAULT_RATES) if self._rated else 0
        sizes = (dim * dim, dim, len(self.products), self._features, rates_count)
        bounds = np.cumsum((0, *sizes))
        spread = 1 / np.sqrt(np.array(prior))

        def unpack(x: np.ndarray) -> list[np.ndarray]:
            return [x[bounds[i] : bounds[i + 1]] * spread[i] for i in range(len(sizes))]

        begin = np.zeros(bounds[-1]) if start is None else self._pack(start, bounds, spread)
        least = (LEAST_RATES - DEFAULT_RATES)[: sizes[-1]] / spread[-1]
        found, iterations = _minimum(self._objective(unpack, spread), begin, least, max_iterations)
        taste, common, own, words, rates = (part.astype(np.float32) for part in unpack(found.x))
        preferred = self._dots(space.queries @ taste.reshape(dim, dim) + common, space.products)
        weights = Weights(
            space.query_axes @ taste.reshape(dim, dim) @ space.product_axes.T, space.product_axes @ common,
            self.mean_query, words, self.products, own, rates=DEFAULT_RATES + (rates if len(rates) else 0.0),
        )  # fmt: skip
        if uncertainty:
            weights = replace(weights, deviations=self._deviations(weights, preferred, prior))
        return Solution(weights, preferred, float(found.fun), iterations, found.status != OUT_OF_BUDGET)

    @cached_property
    def _space(self) -> "_Space":
        """The directions in which queries, and products, differ most: of one problem whatever its prior."""
        centred, vectors = self._queries - self.mean_query, self._vectors()
        query_axes, product_axes = _main_axes(centred, self._directions), _main_axes(vectors, self._directions)
        return _Space(query_axes, product_axes, centred @ query_axes, vectors @ product_axes)

    def _vectors(self) -> np.ndarray:
        """Of the products, (P', D); not kept, for a catalogue's are many and several problems may be solved in turn."""
        every = self._catalogue.vectors
        found = every if len(self.products) == len(every) else every[self.products]
        return np.asarray(found, dtype=np.float32)

    def _objective(
        self,
        unpack: Callable[[np.ndarray], list[np.ndarray]],
        spread: np.ndarray,
    ) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        """What is minimised, and its gradient."""
        centred, vectors = self._space.queries, self._space.products
        dim = vectors.shape[1]

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            taste, common, own, words, rates = unpack(x)
            learned = centred @ taste.reshape(dim, dim).astype(np.float32) + common.astype(np.float32)
            scores = self._scores(self._dots(learned, vectors), own + self._words @ words, rates)
            value, slope = self._loss(scores, self._targets)
            pulls, by_product = self._pulls(slope.astype(np.float32), vectors), self._by_product(slope)
            gradient = np.concatenate([
                (centred.T @ pulls).ravel() * spread[0],
                pulls.sum(axis=0) * spread[1],
                by_product * spread[2],
                (self._words.T @ by_product) * spread[3],
                self._by_rate(slope) * spread[4],
            ])  # fmt: skip
            return value + x @ x / 2, gradient + x

        return objective

    def _deviations(self, weights: Weights, preferred: np.ndarray, prior: Prior) -> Deviations:
        """From the curvature of the clicks' multinomial at its optimum, parameter by parameter, whatever the loss."""
        cells, prior = self.cells, prior.unheld()
        quality = weights.own + np.asarray(self._words @ weights.words, dtype=np.float64)
        scores = self._scores(preferred, quality, weights.rates - DEFAULT_RATES)
        chances = expected_clicks(self._text + scores - self._offset, cells)
        clicks = np.maximum(cells.spread(cells.query_clicks), FORGOTTEN)
        information = chances * (1 - chances / clicks)
        information[self._told :] = 0.0  # a rule makes nobody surer
        own = self._by_product(information)
        return Deviations(np.sqrt(1 / (prior.own + own)).astype(np.float32), float(prior.own**-0.5))

    def surprise(self, weights: Weights) -> np.ndarray:
        """How unlikely the clicks of these queries, on which the weights were not solved, are; in nats, (Q,)."""
        return surprise(self.scores_by(weights), self.cells)

    def scores_by(self, weights: Weights, preferred: np.ndarray | None = None) -> np.ndarray:
        """What weights say of each cell beyond what the loss holds them against, (N,); memory is no part of it.

        Args:
            weights: any.
            preferred: what they say by taste alone, (N,), if that is known.
        """
        if preferred is None:
            learned = weights.learned_vectors(self._queries).astype(np.float32)
            preferred = self._dots(learned, self._vectors())
        quality = weights.quality_of(self.products, self._words)
        return self._scores(preferred, quality, weights.rates - DEFAULT_RATES)

    def nats(self, weights: Weights, preferred: np.ndarray) -> np.ndarray:
        """The whole score of each cell, text included, (N,); memory is no part of it."""
        return np.asarray(self._text - self._offset + self.scores_by(weights, preferred))

    def _by_rates(self, rates: np.ndarray) -> np.ndarray | float:
        """What meaning and the match of words add to each cell at some rates, (N,); nothing without such rates."""
        if not self._rated:
            return 0.0
        words = self._matches.shares * self.cells.spread(self._matches.strengths @ rates[:-1])
        return np.asarray(words + rates[-1] * self._cosines)

    def _by_rate(self, values: np.ndarray) -> np.ndarray:
        """Of values of the cells, (N,), the sum of each rate, as often as it counts in each cell, (2 * kinds + 1,)."""
        if not self._rated:
            return np.zeros(0)
        words = self.cells.sums(values * self._matches.shares) @ self._matches.strengths
        return np.append(words, values @ self._cosines)

    def _scores(self, preferred: np.ndarray, quality: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Of each cell, (N,), given what taste, (N,), its product's quality, (P',), and rates say."""
        spread = np.tile(quality, len(self._queries)) if self.cells.width else quality[self._product_of]
        return np.asarray(self._offset + preferred + spread + self._by_rates(rates))

    def _by_product(self, values: np.ndarray) -> np.ndarray:
        """Of values of the cells, (N,), the sum of each product, (P',)."""
        if self.cells.width:
            return np.asarray(values.reshape(-1, self.cells.width).sum(axis=0))
        return np.asarray(np.bincount(self._product_of, values, len(self.products)))

    def _dots(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Of each cell the dot product of its query's vector, (Q, m), with its product's, (P', m); (N,)."""
        if self.cells.width:
            return np.asarray(queries @ vectors.T).reshape(-1)
        found = np.empty(len(self.cells), dtype=np.float32)
        for first in range(0, len(found), CHUNK):
            part = slice(first, first + CHUNK)
            pairs = queries[self.cells.query_of[part]], vectors[self._product_of[part]]
            found[part] = np.einsum("ij,ij->i", *pairs)
        return found

    def _pulls(self, slope: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Of each query the vectors of its products, (P', m), each as often as its cell says, (Q, m)."""
        if self.cells.width:
            return np.asarray(slope.reshape(len(self._queries), -1) @ vectors)
        starts = np.append(self.cells.starts, len(self.cells))
        return np.asarray(
            csr_matrix((slope, self._product_of, starts), shape=(len(starts) - 1, len(vectors))) @ vectors
        )

    def _pack(self, start: Weights, bounds: np.ndarray, spread: np.ndarray) -> np.ndarray:
        own, (places, rows) = np.zeros(len(self.products)), matched(self.products, start.products)
        own[places] = start.own[rows]
        parts = (
            (self._space.query_axes.T @ start.taste @ self._space.product_axes).ravel(),
            start.common @ self._space.product_axes,
            own,
            start.words if len(start.words) == self._features else np.zeros(self._features),
            (start.rates - DEFAULT_RATES)[: bounds[-1] - bounds[-2]],
        )
        x = np.zeros(bounds[-1])
        for i, part in enumerate(parts):
            if spread[i] > HELD**-0.5:  # what is held begins at 0: it would take the solver all its budget to get there
                x[bounds[i] : bounds[i + 1]] = part / spread[i]
        return x


class _Space(NamedTuple):
    """Where tastes are sought.

    Args:
        query_axes: directions, (D, m).
        product_axes: directions, (D, m).
        queries: centred, (Q, m).
        products: (P', m).
    """

    query_axes: np.ndarray
    product_axes: np.ndarray
    queries: np.ndarray
    products: np.ndarray


def _minimum(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]], begin: np.ndarray, least: np.ndarray, budget: int
) -> tuple[OptimizeResult, int]:
    """The minimum with none of the last parameters below its least, and the iterations it took.

    What would go below is held there and the rest sought anew; what would rise again is let go. With bounds of its own,
    L-BFGS-B takes several times as long for each iteration, for the sake of seven parameters among a hundred thousand.

    Args:
        objective: parameters, (X,) -> value and gradient.
        begin: where to begin, (X,).
        least: of the last parameters, (R,).
        budget: iterations of one search.
    """
    first, searches, iterations = len(begin) - len(least), 0, 0
    begin[first:] = np.maximum(begin[first:], least)
    last: tuple[np.ndarray, tuple[float, np.ndarray]] | None = None

    def known(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        if last is None or not np.array_equal(last[0], x):
            last = x.copy(), objective(x)
        return last[1]

    stays = (begin[first:] <= least) & (known(begin)[1][first:] > 0)

    def held(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = known(x)
        return value, np.concatenate([gradient[:first], np.where(stays, 0.0, gradient[first:])])

    while True:
        searches += 1
        found = minimize(held, begin, jac=True, method="L-BFGS-B",
                         options={"maxiter": budget, "ftol": TOLERANCE, "gtol": 0.0, "maxcor": 6})  # fmt: skip
        iterations += int(found.nit)
        below = found.x[first:] < least
        begin = found.x.copy()
        begin[first:] = np.maximum(begin[first:], least)
        rises = np.zeros_like(stays) if below.any() else stays & (known(begin)[1][first:] < -RISING)
        if searches == SEARCHES or not (below.any() or rises.any()):
            found.x = begin
            return found, iterations
        stays = (stays | below) & ~rises


def _main_axes(vectors: np.ndarray, count: int) -> np.ndarray:
    """Orthonormal directions in which vectors are long, longest first, (D, at most `count`)."""
    dim = vectors.shape[1]
    if dim <= count:
        return np.eye(dim, dtype=np.float32)
    found = eigh(vectors.T @ vectors, driver="evd", overwrite_a=True, check_finite=False)[1]
    return np.asarray(found[:, : -count - 1 : -1], dtype=np.float32)

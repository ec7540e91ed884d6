"""The prior's widths, learned: whatever predicts the clicks of left-out queries best.

Films want the quality of a product held ten times tighter than a shop does; a prior that is too loose ends below the
untrained model. So a part of the queries is left out, the others are solved, and each width moves by a factor of 3
while the left-out queries gain. It begins tight: few lists cannot loosen it. What cannot predict left-out queries
better than the text alone is not to be released.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.preference.evidence import Cells
from trainer.preference.losses import LossName
from trainer.preference.model import Catalogue, Prior, Weights
from trainer.preference.solve import Problem

FOLDS: Final = 5
LEFT_OUT_FOLDS: Final = 2
"""Folds that are left out in turn; each costs a solve for each width tried."""
ORDER: Final = ("words", "own", "taste", "common")
FACTOR: Final = 3.0
MAX_MOVES: Final = 3
"""Times that one width moves at most in one search."""
LEAST_GAIN: Final = 2e-4
"""Nats per click by which a width must be better."""
ITERATIONS: Final = 15
MIN_QUERIES: Final = 20
"""With fewer queries that were clicked, leaving some out tells nothing."""
CERTAIN_ERRORS: Final = 2.0
"""Standard errors by which the gain on left-out queries must lie above 0."""
_MIX: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Learned:
    """Widths, and what they are worth on left-out queries.

    Args:
        prior: the widths.
        gain: how much better what was learned predicts clicks than the text alone, in nats per click.
        error: standard error of the gain over queries.
    """

    prior: Prior
    gain: float
    error: float

    @property
    def helps(self) -> bool:
        """Whether the gain is certain enough to let shoppers see it."""
        return self.gain > CERTAIN_ERRORS * self.error


def fold_of(queries: np.ndarray) -> np.ndarray:
    """Which fold a query belongs to, always the same one, (Q,)."""
    with np.errstate(over="ignore"):
        mixed = (queries.astype(np.uint64) + np.uint64(1)) * np.uint64(_MIX)
    return ((mixed >> np.uint64(32)) % np.uint64(FOLDS)).astype(np.int64)


def learn_prior(
    cells: Cells, query_vectors: np.ndarray, catalogue: Catalogue, *, start: Prior, loss: LossName = "softmax"
) -> Learned | None:
    """Move the widths as far as left-out queries gain by it; None if there are too few queries.

    Args:
        cells: the evidence.
        query_vectors: base vectors by query number.
        catalogue: the products.
        start: widths to begin with: those of the last time.
        loss: what is solved and predicted.
    """
    folds = fold_of(cells.queries)
    if len(cells.queries) < MIN_QUERIES:
        return None
    chosen = np.unique(folds)[:LEFT_OUT_FOLDS].tolist()
    solved = [Problem(cells.of_queries(folds != fold), query_vectors, catalogue, loss=loss) for fold in chosen]
    left_out = [Problem(cells.of_queries(folds == fold), query_vectors, catalogue) for fold in chosen]
    clicks = np.concatenate([one.cells.query_clicks for one in left_out])
    warm: list[Weights | None] = [None] * len(chosen)

    def surprise(prior: Prior) -> np.ndarray:
        found = []
        for k, (problem, unseen) in enumerate(zip(solved, left_out, strict=True)):
            weights = problem.solve(prior, start=warm[k], memory=False, max_iterations=ITERATIONS).weights
            warm[k] = warm[k] or weights
            found.append(unseen.surprise(weights))
        return np.concatenate(found)

    best, prior = surprise(start), start
    for name in ORDER:
        for factor in (1 / FACTOR, FACTOR):
            moves = 0
            while moves < MAX_MOVES:
                tried = prior._replace(**{name: getattr(prior, name) * factor})
                surprise_tried = surprise(tried)
                if surprise_tried.sum() >= best.sum() - LEAST_GAIN * clicks.sum():
                    break
                best, prior, moves = surprise_tried, tried, moves + 1
            if moves:
                break
    nothing = Weights.untrained(catalogue)
    gains = np.concatenate([one.surprise(nothing) for one in left_out]) - best
    mean = gains.sum() / clicks.sum()
    error = np.sqrt(((gains - mean * clicks) ** 2).sum()) / clicks.sum()
    return Learned(prior, float(mean), float(error))

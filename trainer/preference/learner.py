"""From lists to weights: count, from time to time learn the prior, solve, and hold back what does not predict.

When the prior is learned depends on the lists alone, not on how often the model is solved: one log gives one result.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from trainer.preference.evidence import EvidenceTable, Shown
from trainer.preference.losses import LossName
from trainer.preference.model import Catalogue, Prior, Weights
from trainer.preference.priors import Learned, learn_prior
from trainer.preference.solve import Problem, Solution

PRIOR_LISTS: Final = 500
"""Lists after which the prior is learned for the first time."""
PRIOR_GROWTH: Final = 1.5
"""By which factor the evidence has to grow until it is learned anew, once it helps."""


class PreferenceLearner:
    """What one catalogue's clicks say.

    Args:
        catalogue: the products; evidence names their rows.
        query_vectors: base vectors of the queries; evidence names their rows, (all queries, D).
        loss: what is solved.
    """

    def __init__(self, catalogue: Catalogue, query_vectors: np.ndarray, *, loss: LossName = "softmax") -> None:
        self.catalogue = catalogue
        self.query_vectors = query_vectors
        self.table = EvidenceTable()
        self.loss: LossName = loss
        self.learned: Learned | None = None
        """The prior in force and what it predicts; None while there is too little evidence."""
        self.solution: Solution | None = None
        self._next_prior = float(PRIOR_LISTS)

    @property
    def weights(self) -> Weights:
        """What may be released: the untrained model if what was learned does not predict left-out queries better."""
        if self.solution is None or self.learned is None or not self.learned.helps:
            return Weights.untrained(self.catalogue.vectors.shape[1], self.catalogue.features.shape[1])
        return self.solution.weights

    def add(self, query: int, shown: Iterable[Shown]) -> None:
        """Count one list, and learn the prior anew when the evidence has grown enough."""
        self.table.add(query, shown)
        if self.table.lists >= self._next_prior:
            start = Prior() if self.learned is None else self.learned.prior
            cells = self.table.cells()
            self.learned = learn_prior(cells, self.query_vectors, self.catalogue, start=start, loss=self.loss)
            grown = self.table.lists * PRIOR_GROWTH if self.learned is not None and self.learned.helps else 0.0
            self._next_prior = max(self.table.lists + PRIOR_LISTS, grown)

    def solve(self) -> Weights:
        """Solve everything counted so far, under the prior in force."""
        prior = Prior() if self.learned is None else self.learned.prior
        problem = Problem(self.table.cells(), self.query_vectors, self.catalogue, loss=self.loss)
        start_at = None if self.solution is None else self.solution.weights
        self.solution = problem.solve(prior, start=start_at)
        return self.weights

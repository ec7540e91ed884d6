"""Whether weighing showings by their examination pays, told by what shoppers chose of neighbours in random order.

Whatever makes shoppers look further up, neighbours that were exchanged with chance 1/2 profit alike: no propensity is
needed. The model and its naive twin, for which each listed product was looked at, are solved without some queries, and
asked which of those queries' neighbours were chosen. Source: Radlinski, Joachims, AAAI 2006 (docs/papers.md).
"""

from collections import deque
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from trainer.preference.evidence import Cells, each_two
from trainer.preference.losses import LossName
from trainer.preference.model import Catalogue, Prior
from trainer.preference.priors import (
    ITERATIONS,
    KNOWN_CLICKS,
    SEARCH_DIRECTIONS,
    Gain,
    fold_of,
    gain_of,
    names_of,
    sampled,
)
from trainer.preference.solve import Problem

NAIVE, HALF, FULL = 0.0, 0.5, 1.0
STRENGTHS: Final = (NAIVE, HALF, FULL)
"""How strongly showings are weighed (`EvidenceTable.cells`)."""
MAX_EXCHANGES: Final = 20_000
"""The newest ones are kept, 0.8 MB."""
BEATEN_ERRORS: Final = 2.0
"""Standard errors by which weaker weighing must predict better than full weighing to take its place."""
MOST_SCALED: Final = 3.0
LEAST_EXCHANGES: Final = 100
LEAST_QUERIES: Final = 30
"""With fewer nothing is decided: the error, which is told by the spread between queries, is not known either."""

Debias = Literal["auto", "on", "off"]
"""Whether showings are weighed: in full (`on`), not (`off`), or in full until less is proven better (`auto`)."""


class Exchanges:
    """The newest neighbours in random order of which at least one was chosen.

    Args:
        rows: query, its two products, and what the choice of each was worth, (N, 5).
    """

    def __init__(self, rows: np.ndarray | None = None) -> None:
        found: list[tuple[float, ...]] = [] if rows is None else [tuple(row) for row in rows.tolist()]
        self._rows = deque(found, MAX_EXCHANGES)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, query: int, products: tuple[int, int], clicks: tuple[float, float]) -> None:
        """Count two neighbours; if neither was chosen they say nothing."""
        if max(clicks) > 0:
            self._rows.append((query, *products, *clicks))

    def rows(self, queries: np.ndarray | None = None, products: np.ndarray | None = None) -> np.ndarray:
        """What is kept of queries and products that may be used, oldest first, (N, 5).

        Args:
            queries: whether each may be, (all queries,) of bool; all if None.
            products: the same of products.
        """
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 5)
        query, one, other = rows[:, :3].astype(np.int64).T
        if queries is not None:
            rows = rows[queries[query]]
            _, one, other = rows[:, :3].astype(np.int64).T
        return rows if products is None else rows[products[one] & products[other]]

    def renumber(self, queries: np.ndarray, products: np.ndarray) -> None:
        """Give every query and product another number; those that have none any more, -1, are forgotten.

        Args:
            queries: the new number of each query, (all queries,).
            products: the new number of each product, (all products,).
        """
        rows = self.rows(queries >= 0, products >= 0)
        rows[:, 0], rows[:, 1:3] = queries[rows[:, 0].astype(np.int64)], products[rows[:, 1:3].astype(np.int64)]
        self._rows = Exchanges(rows)._rows


class Judgement(NamedTuple):
    """How the clicks on exchanged neighbours of left-out queries were predicted, in nats per click.

    Args:
        exchanges: neighbours that it is told by.
        queries: that they were shown for.
        loss: of full weighing.
        naive: of the naive twin.
        over_naive: by how much full weighing is better than the naive twin.
        over_half: by how much it is better than half weighing.
    """

    exchanges: int
    queries: int
    loss: float
    naive: float
    over_naive: Gain
    over_half: Gain

    @property
    def strength(self) -> float:
        """In full, unless one that weighs less surely predicts better; of two the better one.

        >>> Judgement(900, 40, 0.60, 0.58, Gain(-0.02, 0.005), Gain(-0.01, 0.005)).strength
        0.0
        >>> Judgement(90, 40, 0.60, 0.58, Gain(-0.02, 0.02), Gain(-0.01, 0.02)).strength
        1.0
        """
        sure = {
            strength: gain.mean
            for strength, gain in ((NAIVE, self.over_naive), (HALF, self.over_half))
            if self.exchanges >= LEAST_EXCHANGES
            and self.queries >= LEAST_QUERIES
            and gain.mean < -BEATEN_ERRORS * gain.error
        }
        return min(sure, key=sure.__getitem__, default=FULL)


def judge(
    exchanges: np.ndarray,
    weighed: Mapping[float, Cells],
    query_vectors: np.ndarray,
    catalogue: Catalogue,
    *,
    prior: Prior,
    loss: LossName = "softmax",
    query_keys: np.ndarray | None = None,
) -> Judgement | None:
    """Solve each strength without some queries in turn, and ask what was chosen there; None if nothing can be asked.

    Args:
        exchanges: rows of `Exchanges`, (N, 5).
        weighed: the evidence by strength.
        query_vectors: base vectors by query number.
        catalogue: the products.
        prior: widths, the same for all.
        loss: what is solved.
        query_keys: what names each query besides its number, (all queries,); None if numbers do not depend on the
            order in which queries arrived.
    """
    rows = exchanges[np.lexsort(exchanges.T[::-1])]
    queries = rows[:, 0].astype(np.int64)
    if not (len(rows) and len(weighed[FULL])):
        return None
    weighed = {strength: sampled(cells, names_of(cells.queries, query_keys)) for strength, cells in weighed.items()}
    folds = fold_of(names_of(weighed[FULL].queries, query_keys))
    asked = fold_of(names_of(queries, query_keys))
    margins = np.zeros((len(STRENGTHS), len(rows)))
    for fold in np.unique(asked).tolist():
        unseen = Problem(each_two(rows[asked == fold]), query_vectors, catalogue)
        for row, strength in enumerate(STRENGTHS):
            solved = weighed[strength].of_queries(folds != fold)
            problem = Problem(solved, query_vectors, catalogue, loss=loss, directions=SEARCH_DIRECTIONS)
            weights = problem.solve(prior, max_iterations=ITERATIONS).weights
            scores = unseen.scores_by(weights)
            margins[row, asked == fold] = scores[::2] - scores[1::2]
    _, query_of = np.unique(queries, return_inverse=True)
    clicks = np.bincount(query_of, rows[:, 3:].sum(axis=1))
    say = 1 / (1 + clicks / KNOWN_CLICKS)
    says = say * clicks
    naive, half, full = (say * np.bincount(query_of, _surprise(one, rows)) for one in margins)
    return Judgement(
        len(rows), len(clicks), float(full.sum() / says.sum()), float(naive.sum() / says.sum()),
        gain_of(naive, full, says), gain_of(half, full, says),
    )  # fmt: skip


def _surprise(margins: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How unlikely the choices of each two neighbours are, in nats, when the margins are scaled at their best, (N,).

    Clicks by mistake or by trust in the rank bring choices closer, which is no reason to prefer a timid model.
    """

    def scaled(scale: float) -> np.ndarray:
        z = scale * margins
        return np.asarray(rows[:, 3] * np.logaddexp(0.0, -z) + rows[:, 4] * np.logaddexp(0.0, z))

    return scaled(minimize_scalar(lambda scale: scaled(scale).sum(), bounds=(0.0, MOST_SCALED), method="bounded").x)

"""The losses: pure functions of the scores of cells, with one signature, and the pairs that clicks make of cells.

All of them say: of two products shown for one query, the one with more clicks per showing scores higher. They differ in
what they do with products that are far apart already. Each returns its value and its gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.special import expit

from trainer.preference.evidence import Cells

HINGE_MARGIN: Final = 1.0
"""Nats by which a preferred product should lead."""
SMOOTHING: Final = 0.5
"""Clicks added to every cell where a rate is taken of few."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two cells of one query, M of them; the first has at least one click.

    Args:
        chosen: cell, (M,).
        rejected: cell, (M,).
        weights: clicks of the first times the share of the query's showings that the second had, (M,).
        margins: log of the ratio of the smoothed click rates, first over second, (M,).
    """

    chosen: np.ndarray
    rejected: np.ndarray
    weights: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True, slots=True)
class Targets:
    """What scores are held against: the cells, and their pairs for the losses that compare two."""

    cells: Cells
    pairs: Pairs


NO_PAIRS: Final = Pairs(*(np.zeros(0, dtype=np.int64),) * 2, *(np.zeros(0),) * 2)

Loss = Callable[[np.ndarray, Targets], tuple[float, np.ndarray]]
"""Scores of the cells, (N,), and what they are held against -> the loss and its gradient, (N,)."""
LossName = Literal["softmax", "logistic", "hinge", "squared", "ranknet"]


def pairs_of(cells: Cells) -> Pairs:
    """All pairs of cells of one query of which the first was clicked.

    The weights of (i, j) and (j, i) are in the ratio of the click rates of i and j per examined showing: position bias
    is undone whatever the loss.
    """
    sizes = np.diff(np.append(cells.starts, len(cells)))
    clicked = np.flatnonzero(cells.clicks > 0)
    counts = sizes[cells.query_of[clicked]]
    chosen = np.repeat(clicked, counts)
    first = np.repeat(cells.starts[cells.query_of[clicked]], counts)
    place = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
    rejected = first + place
    chosen, rejected = chosen[chosen != rejected], rejected[chosen != rejected]
    showings = np.exp(cells.log_showings)
    shares = showings / np.add.reduceat(showings, cells.starts)[cells.query_of] if len(cells) else showings
    rates = np.log((cells.clicks + SMOOTHING) / (showings + 2 * SMOOTHING))
    return Pairs(chosen, rejected, cells.clicks[chosen] * shares[rejected], rates[chosen] - rates[rejected])


def surprise(scores: np.ndarray, cells: Cells) -> np.ndarray:
    """How unlikely each query's clicks are under the scores: -sum of c log(m e^s / sum of m e^s), in nats, (Q,)."""
    logits = scores + cells.log_showings
    return np.asarray(cells.query_clicks * _log_totals(logits, cells) - cells.sums(cells.clicks * logits))


def expected_clicks(scores: np.ndarray, cells: Cells) -> np.ndarray:
    """Each query's clicks, shared among its cells as the scores say: C m e^s / sum of m e^s, (N,)."""
    return np.asarray(softmax(scores, Targets(cells, NO_PAIRS))[1] + cells.clicks)


def softmax(scores: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """InfoNCE over what was shown: a multinomial per query.

    The showings m stand where the log Q of sampled softmax stands: a product shown twice as often has two chances.

    Source: a position-based model whose level per query is profiled out (docs/papers.md).
    """
    cells = targets.cells
    logits = scores + cells.log_showings
    clicks, totals = cells.query_clicks, _log_totals(logits, cells)
    value = float(clicks @ totals - cells.clicks @ logits)
    return value, cells.spread(clicks) * np.exp(logits - cells.spread(totals)) - cells.clicks


def _log_totals(logits: np.ndarray, cells: Cells) -> np.ndarray:
    highest = cells.highest(logits)
    return np.asarray(highest + np.log(cells.sums(np.exp(logits - cells.spread(highest)))))


def logistic(scores: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """DPO, where scores are differences from the reference: sum of w log(1 + e^-z) (Rafailov et al. 2023, eq. 7)."""
    return _of_margins(scores, targets, lambda z: (np.logaddexp(0.0, -z), -expit(-z)))


def hinge(scores: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """The triplet loss: sum of w max(0, 1 - z)."""
    return _of_margins(
        scores, targets, lambda z: (np.maximum(0.0, HINGE_MARGIN - z), -(z < HINGE_MARGIN).astype(float))
    )


def squared(scores: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """Margin-MSE: sum of w (z - t)^2 / 2, where t is the log ratio of the two click rates."""
    wanted = targets.pairs.margins
    return _of_margins(scores, targets, lambda z: ((z - wanted) ** 2 / 2, z - wanted))


def ranknet(scores: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """RankNet: sum of w log(1 + e^-z) over the pairs whose first has the higher click rate (Burges et al. 2005)."""
    right = (targets.pairs.margins > 0).astype(float)
    return _of_margins(scores, targets, lambda z: (right * np.logaddexp(0.0, -z), -right * expit(-z)))


LOSSES: Final[dict[LossName, Loss]] = {
    "softmax": softmax, "logistic": logistic, "hinge": hinge, "squared": squared, "ranknet": ranknet,
}  # fmt: skip
AGAINST_REFERENCE: Final[frozenset[LossName]] = frozenset({"logistic"})
"""Losses whose scores are what was learned alone; the others see what the text says too."""


def _of_margins(
    scores: np.ndarray, targets: Targets, terms: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[float, np.ndarray]:
    pairs = targets.pairs
    values, slopes = terms(scores[pairs.chosen] - scores[pairs.rejected])
    pull = pairs.weights * slopes
    size = len(scores)
    gradient = np.bincount(pairs.chosen, pull, size) - np.bincount(pairs.rejected, pull, size)
    return float(pairs.weights @ values), gradient

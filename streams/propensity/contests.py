"""Contests under a Gaussian prior: the most probable parameters, and how well a prior explains what was seen.

Each contest has a number of wins on either side; the upper side wins with probability 1 / (1 + exp(-d)), where d is
linear in the parameters. The problem is concave, so Newton's method finds its one solution.

Source: Bradley and Terry 1952; Laplace's approximation, MacKay 1992; docs/papers.md.
"""

import math
from collections.abc import Mapping, Sequence
from operator import mul
from typing import Final, NamedTuple

_LONGEST_STEP: Final = 2.0
_CONVERGED: Final = 1e-7
_MOST_STEPS: Final = 50

Vector = list[float]
Terms = Mapping[int, float]
"""Parameter -> its coefficient."""


class Contest(NamedTuple):
    """Wins of both sides, and how the difference of their strengths is made of the parameters."""

    difference: Terms
    upper: float
    lower: float


class Prior(NamedTuple):
    """Independent normal distributions, (P,) each."""

    means: Vector
    widths: Vector


class Solution(NamedTuple):
    """The most probable parameters, (P,), and the logarithm of how probable the prior makes what was seen."""

    at: Vector
    evidence: float


def solve(contests: Sequence[Contest], prior: Prior, *, start: Vector | None = None) -> Solution:
    """Return the most probable parameters.

    Args:
        contests: what was seen.
        prior: of the parameters.
        start: where to begin; at the prior's means if it is not said.

    >>> solve([Contest({0: 1.0}, 300, 100)], Prior([0.0], [1e6])).at[0] - math.log(3) < 1e-6
    True
    """
    at = [*(start or prior.means)]
    for _ in range(_MOST_STEPS):
        slope, bend = _derivatives(contests, prior, at)
        lower = _cholesky(bend)
        step = _substituted(lower, slope)
        longest = max(map(abs, step))
        shorten = min(1.0, _LONGEST_STEP / max(longest, _CONVERGED))
        at = [one + shorten * by for one, by in zip(at, step, strict=True)]
        if longest < _CONVERGED:
            break
    lower = _cholesky(_derivatives(contests, prior, at)[1])
    return Solution(at, _log_probability(contests, prior, at) - sum(math.log(row[i]) for i, row in enumerate(lower)))


def _derivatives(contests: Sequence[Contest], prior: Prior, at: Vector) -> tuple[Vector, list[Vector]]:
    """Return the slope, (P,), and the negative second derivatives, (P, P), of the log probability."""
    precisions = [width**-2 for width in prior.widths]
    slope = [by * (mean - one) for by, mean, one in zip(precisions, prior.means, at, strict=True)]
    bend = [[0.0] * len(at) for _ in at]
    for index, precision in enumerate(precisions):
        bend[index][index] = precision
    for difference, upper, lower in contests:
        terms = tuple(difference.items())
        share = 1 / (1 + math.exp(-sum(by * at[index] for index, by in terms)))
        pull, information = upper - (upper + lower) * share, (upper + lower) * share * (1 - share)
        for row, by in terms:
            slope[row] += pull * by
            for column, other in terms:
                bend[row][column] += information * by * other
    return slope, bend


def _log_probability(contests: Sequence[Contest], prior: Prior, at: Vector) -> float:
    total = 0.0
    for difference, upper, lower in contests:
        gap = sum(by * at[index] for index, by in difference.items())
        total -= upper * math.log1p(math.exp(-gap)) + lower * math.log1p(math.exp(gap))
    for one, mean, width in zip(at, prior.means, prior.widths, strict=True):
        total -= ((one - mean) / width) ** 2 / 2 + math.log(width)
    return total


def _cholesky(matrix: list[Vector]) -> list[Vector]:
    """Factor a symmetric, positive matrix into L L'."""
    lower = [[0.0] * len(matrix) for _ in matrix]
    for row, values in enumerate(matrix):
        for column in range(row + 1):
            left = values[column] - sum(map(mul, lower[row][:column], lower[column][:column]))
            lower[row][column] = math.sqrt(left) if row == column else left / lower[column][column]
    return lower


def _substituted(lower: list[Vector], right: Vector) -> Vector:
    """Solve L L' x = right."""
    half: Vector = []
    for row, value in enumerate(right):
        half.append((value - sum(map(mul, lower[row], half))) / lower[row][row])
    found = [0.0] * len(right)
    for row in reversed(range(len(right))):
        beyond = sum(lower[other][row] * found[other] for other in range(row + 1, len(right)))
        found[row] = (half[row] - beyond) / lower[row][row]
    return found

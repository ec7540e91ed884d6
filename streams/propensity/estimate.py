"""From sums to propensities: pairs of positions as contests, under a power law as the prior.

Of the clicks on a pair of positions that showed equal products, the upper one gets the share theta_i / (theta_i +
theta_j): the likelihood of Bradley and Terry in x = log theta. Swaps and histories are contests of one kind, so each
weighs by its information. The prior is Gaussian: log theta falls by a power of the position that is learned too, and
departs from it step by step; how far is averaged over by how well each width explains the clicks (Laplace). In a grid x
is the sum of a row's and a column's part.

Bands: each replica draws a Poisson weight for every group of (query, product), and its prior anew; drawn by hash, so
that the same sums give the same bands. Their spread is widened, for lists share products.

Source: docs/papers.md, "Propensities from interventions".
"""

import hashlib
import math
from collections.abc import Sequence
from operator import mul
from statistics import NormalDist, fmean, pstdev
from typing import Final, NamedTuple

from contracts.outcomes import Cell
from contracts.propensities import STEEPNESS, SlotPropensity, TrustFit
from streams.propensity.contests import Contest, Prior, Terms, Vector, solve
from streams.propensity.evidence import GROUPS, PLACES, UNIT, CellSums

DEPARTURE: Final = 0.25
"""Width of a departure from the power law, over each factor of e in position."""
STEP: Final = 0.1
"""Width of a departure from one row to the next: where the screen ends, looks fall at once."""
DEPARTURES: Final = (0.1, 0.4, 1.0, 2.5)
"""Factors on both widths that are averaged over: a shop's looks may fall as smoothly as the law, or by steps."""
COLUMN: Final = 0.3
"""Width of a column's part."""
ENOUGH_CLICKS: Final = 100.0
"""With fewer, a position is not tied to the first one."""
REPLICAS: Final = 48
WIDENED: Final = 1.5
LEVEL: Final = 0.95
"""Of a band before it is widened."""
TRUST_ERRORS: Final = 3.0
"""From so many standard errors on an intercept is no chance."""
TRUST_SHARE: Final = 0.1
"""A smaller share of the click-through at its position is no matter."""


class Estimate(NamedTuple):
    """What the sums of a cell say."""

    slots: tuple[SlotPropensity, ...]
    steepness: float
    trust: tuple[TrustFit, ...]
    trust_alarm: bool


class _Model(NamedTuple):
    """The parameters of a cell: a power law, its departures from row to row, and columns."""

    terms: list[Terms]
    """Of each position's log theta."""
    priors: list[Prior]
    """One for each of `DEPARTURES`."""

    def logs(self, at: Vector) -> Vector:
        """Return log theta of each position, (K,)."""
        return [sum(by * at[index] for index, by in terms.items()) for terms in self.terms]


def estimate(cell: Cell, sums: CellSums) -> Estimate:
    """Estimate a cell's propensities."""
    model = _model(cell.columns)
    solutions = [solve(_contests(model, sums, [1.0] * GROUPS), prior) for prior in model.priors]
    highest = max(one.evidence for one in solutions)
    weights = [math.exp(one.evidence - highest) for one in solutions]
    shares = [one / sum(weights) for one in weights]
    best = [_dot(shares, each) for each in zip(*(one.at for one in solutions), strict=True)]
    replicas = []
    for number in range(REPLICAS):
        chosen = _chosen(shares, _uniform(f"{cell.key} {number} prior"))
        replicas.append(model.logs(_replica(cell, sums, model, number, chosen, start=solutions[chosen].at)))
    spreads = [pstdev(logs) for logs in zip(*replicas, strict=True)]
    trust = tuple(fit for position, own in sorted(sums.trust.items()) if (fit := trust_fit(position, own)))
    return Estimate(
        _slots(model.logs(best), spreads, tied_clicks(sums)),
        best[0],
        trust,
        any(_is_affine(fit, sums.trust[fit.position]) for fit in trust),
    )


def _slots(logs: Vector, spreads: Vector, tied: dict[int, float]) -> tuple[SlotPropensity, ...]:
    reach = WIDENED * NormalDist().inv_cdf((1 + LEVEL) / 2)
    slots = []
    for position, (log_theta, spread) in enumerate(zip(logs, spreads, strict=True), start=1):
        low, theta, high = (_bounded(log_theta + by * reach * spread) for by in (-1, 0, 1))
        clicks = tied.get(position, 0.0) if position > 1 else 0.0
        few = position > 1 and clicks < ENOUGH_CLICKS
        slots.append(SlotPropensity(position=position, theta=theta, low=low, high=high, clicks=clicks, prior_only=few))
    return tuple(slots)


def tied_clicks(sums: CellSums) -> dict[int, float]:
    """Return the clicks by which each position is tied to the first: the most that every pair on some way between has.

    >>> one = [UNIT] * GROUPS
    >>> tied_clicks(CellSums(clicks={("swap", 1, 2): [*one, *one], ("swap", 2, 3): [*one, *[0] * GROUPS]}))
    {1: inf, 2: 32.0, 3: 16.0}
    """
    ways: dict[tuple[int, int], float] = {}
    for (_, upper, lower), clicks in sums.clicks.items():
        for way in ((upper, lower), (lower, upper)):
            ways[way] = ways.get(way, 0.0) + sum(clicks) / UNIT
    tied = {1: math.inf}
    while found := max(
        ((min(tied[a], width), b) for (a, b), width in ways.items() if a in tied and b not in tied), default=None
    ):
        tied[found[1]] = found[0]
    return tied


def is_tied(sums: CellSums) -> bool:
    """Whether any position is tied to the first one by enough clicks."""
    return any(clicks >= ENOUGH_CLICKS for position, clicks in tied_clicks(sums).items() if position > 1)


def trust_fit(position: int, sums: Sequence[int]) -> TrustFit | None:
    """Regress clicks at a position on the same products' click-through at the first one, whose noise is taken off.

    Under examination alone the line goes through 0. The error is a jackknife over groups. None if the products' appeal
    does not differ enough to tell.

    Args:
        position: where they were shown.
        sums: `CellSums.trust` of that position.
    """
    whole = [sum(sums[name * GROUPS : (name + 1) * GROUPS]) for name in range(5)]
    line = _line(whole)
    without = [
        _line([total - sums[name * GROUPS + group] for name, total in enumerate(whole)]) for group in range(GROUPS)
    ]
    lines = [one for one in without if one]
    if line is None or len(lines) < GROUPS:
        return None
    middle = fmean(intercept for _, intercept in lines)
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((intercept - middle) ** 2 for _, intercept in lines))
    return TrustFit(position=position, slope=line[0], intercept=line[1], error=error)


def _line(sums: Sequence[float]) -> tuple[float, float] | None:
    n, c, x, cx, xx = sums
    if n <= 0 or xx * n <= x * x:
        return None
    slope = (cx * n - c * x) / (xx * n - x * x)
    return slope, (c - slope * x) / n


def _is_affine(fit: TrustFit, sums: Sequence[int]) -> bool:
    rate = sum(sums[GROUPS : 2 * GROUPS]) / sum(sums[:GROUPS])
    return abs(fit.intercept) > max(TRUST_ERRORS * fit.error, TRUST_SHARE * rate)


def _model(columns: int) -> _Model:
    columns = min(columns, PLACES)
    rows = -(-PLACES // columns)
    terms: list[Terms] = []
    for index in range(PLACES):
        row, column = index // columns + 1, index % columns
        own = {0: -math.log(row)} | dict.fromkeys(range(1, row), 1.0)
        terms.append(own | ({rows + column - 1: 1.0} if column else {}))
    means = [STEEPNESS[0]] + [0.0] * (rows + columns - 2)
    widths = [math.hypot(DEPARTURE * math.sqrt(math.log(row / (row - 1))), STEP) for row in range(2, rows + 1)]
    priors = [
        Prior(means, [STEEPNESS[1], *(by * width for width in widths), *[COLUMN] * (columns - 1)]) for by in DEPARTURES
    ]
    return _Model(terms, priors)


def _contests(model: _Model, sums: CellSums, weights: Sequence[float]) -> list[Contest]:
    """Return the clicks on each pair of positions, the groups weighed."""
    contests = []
    for (_, upper, lower), clicks in sorted(sums.clicks.items()):
        above, below = (_dot(weights, side) / UNIT for side in (clicks[:GROUPS], clicks[GROUPS:]))
        one, other = model.terms[upper - 1], model.terms[lower - 1]
        by = {index: one.get(index, 0.0) - other.get(index, 0.0) for index in sorted({*one, *other})}
        contests.append(Contest({index: value for index, value in by.items() if value}, above, below))
    return contests


def _replica(cell: Cell, sums: CellSums, model: _Model, number: int, chosen: int, *, start: Vector) -> Vector:
    """Return what other groups and another prior of the same kinds would have said."""
    weights = [_poisson(_uniform(f"{cell.key} {number} group {group}")) for group in range(GROUPS)]
    means, widths = model.priors[chosen]
    drawn = [
        mean + width * NormalDist().inv_cdf(_uniform(f"{cell.key} {number} mean {index}"))
        for index, (mean, width) in enumerate(zip(means, widths, strict=True))
    ]
    return solve(_contests(model, sums, weights), Prior(drawn, widths), start=start).at


def _chosen(shares: Sequence[float], uniform: float) -> int:
    """Draw a number with these chances."""
    for index, share in enumerate(shares):
        uniform -= share
        if uniform < 0:
            return index
    return len(shares) - 1


def _uniform(seed: str) -> float:
    """Draw a number between 0 and 1, neither included."""
    return (int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=6).digest()) + 0.5) / 2**48


def _poisson(uniform: float) -> float:
    """Draw from the Poisson distribution of mean 1."""
    count, chance, below = 0, math.exp(-1), math.exp(-1)
    while uniform > below and count < 20:
        count += 1
        chance /= count
        below += chance
    return float(count)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(map(mul, left, right))


def _bounded(log_theta: float) -> float:
    return min(1000.0, max(1e-6, math.exp(log_theta)))

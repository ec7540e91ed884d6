"""Comparing two arms while their lists come in: valid whenever one looks, and however often.

An arm is told by sums over groups of persons, because one person's lists resemble one another: the spread between
groups says how sure a mean is, whatever they have in common. Everything here is arithmetic on such sums.

Source: Waudby-Smith et al., Time-uniform central limit theory and asymptotic confidence sequences, Annals of Statistics
2024 (theorem 2.2); Robbins, Statistical methods related to the law of the iterated logarithm, 1970; see docs/papers.md.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

GROUPS: Final = 32
"""Of persons, by hash; enough to tell a spread, few enough to be kept for every arm."""
ALPHA: Final = 0.05
"""How often a difference may be seen where there is none, however long and often one looks."""
BEST_AT: Final = 2_000.0
"""Lists of the smaller arm at which an interval is as narrow as it can be; it is hardly wider at ten times as many."""
LEAST_LISTS: Final = 300
"""Of each arm, below which a mean is not normal enough for an interval."""
LEAST_EVENTS: Final = 40
"""In each arm, what is counted at least, for the same reason."""
LEAST_SPREAD: Final = 8.0
"""Groups that each arm is spread over at least: where one person makes most lists, there is no spread to tell from."""
_CONCENTRATION: Final = 20.0
"""Of the prior of wins, Beta(20, 20): most rankings worth comparing win 42 to 58 of a hundred lists."""
_MOST_TIMES: Final = 10_000.0


class GroupSums(NamedTuple):
    """What one group of persons did in an arm: how many lists it saw, and the sum of what is measured over them."""

    lists: float
    total: float


class Mean(NamedTuple):
    """A mean per list, its variance, and the lists it is of."""

    lists: float
    value: float
    variance: float


class Difference(NamedTuple):
    """By how much one arm exceeds another, with an interval that holds at all times together.

    Args:
        value: difference of the means per list.
        low: lower end of the interval.
        high: its upper end.
        more_lists: of both arms, until a difference of this size is sure; None if it is, or if nobody can tell.
    """

    value: float
    low: float
    high: float
    more_lists: int | None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided`."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


def mean_of(groups: Sequence[GroupSums]) -> Mean:
    """Return the mean over all lists of an arm and its variance, told from the spread between its groups.

    The linearised variance of a ratio of sums over clusters, G/(G-1) sum (total_g - mean lists_g)^2 / lists^2.

    >>> mean_of([GroupSums(10, 4), GroupSums(10, 6)])
    Mean(lists=20, value=0.5, variance=0.01)
    """
    lists = sum(group.lists for group in groups)
    value = sum(group.total for group in groups) / lists
    spread = sum((group.total - value * group.lists) ** 2 for group in groups)
    return Mean(lists, value, len(groups) / (len(groups) - 1) * spread / lists**2)


def widths(lists: float) -> float:
    """Return the half-width of an asymptotic confidence sequence, in standard errors.

    sqrt(2 (t r + 1) / (t r) log(sqrt(t r + 1) / alpha)) after t lists, the normal mixture of Robbins; r is chosen for
    `BEST_AT`.

    >>> round(widths(BEST_AT), 3), round(widths(10 * BEST_AT), 3), round(widths(BEST_AT / 10), 3)
    (3.035, 3.242, 3.855)
    """
    at_best = -2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))
    information = lists * at_best / BEST_AT
    return math.sqrt(2 * (information + 1) / information * math.log(math.sqrt(information + 1) / ALPHA))


def student(normal: float, freedom: int) -> float:
    """Return the quantile of Student's t that is as improbable as one of the normal distribution.

    The spread is told by few groups itself, and a spread that was told too small would make differences of nothing.
    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5, to the second order.

    >>> round(student(1.96, 31), 2), round(student(3.0, 31), 2)
    (2.04, 3.26)
    """
    first = (normal**3 + normal) / 4
    second = (5 * normal**5 + 16 * normal**3 + 3 * normal) / 96
    return normal + first / freedom + second / freedom**2


def difference(arm: Sequence[GroupSums], control: Sequence[GroupSums], *, largest: float = 1.0) -> Difference | None:
    """Compare an arm with its control; None while there is too little of either to tell anything.

    Args:
        arm: its groups.
        control: the groups of what it is compared with.
        largest: how much one event counts at most: a few large ones are too little, too.
    """
    if not all(_is_enough(one, LEAST_EVENTS * largest) for one in (arm, control)):
        return None
    ours, theirs = mean_of(arm), mean_of(control)
    error = math.sqrt(ours.variance + theirs.variance)
    effective = ours.lists * theirs.lists / (ours.lists + theirs.lists)
    freedom = min(len(arm), len(control)) - 1
    value, half = ours.value - theirs.value, student(widths(effective), freedom) * error

    def is_sure(times: float) -> bool:
        return student(widths(times * effective), freedom) * error / math.sqrt(times) < abs(value)

    times = None if is_sure(1.0) or not is_sure(_MOST_TIMES) else _least(is_sure, 1.0, _MOST_TIMES)
    more = None if times is None else math.ceil((times - 1) * (ours.lists + theirs.lists))
    return Difference(value, value - half, value + half, more)


def _is_enough(groups: Sequence[GroupSums], least_total: float) -> bool:
    """Whether an arm has lists and events enough, and of persons enough: its effective number of groups."""
    lists = sum(group.lists for group in groups)
    if lists < LEAST_LISTS or sum(group.total for group in groups) < least_total:
        return False
    return lists**2 / sum(group.lists**2 for group in groups) >= LEAST_SPREAD


class Wins(NamedTuple):
    """What interleaved lists say: the share of decided lists that the first team won, its interval, and a p-value."""

    share: float
    low: float
    high: float
    p: float


def wins(won: int, lost: int) -> Wins | None:
    """Compare two teams by the lists that each won; ties say nothing. None before the first list is decided.

    The p-value is the inverse of how much better a Beta mixture predicts the lists than a fair coin: a sign test that
    holds whenever one looks (Robbins; Ville's inequality). The interval holds every share that the same test allows.

    >>> wins(0, 0), [round(number, 3) for number in wins(70, 30)]
    (None, [0.7, 0.53, 0.839, 0.005])
    """
    if not won + lost:
        return None
    evidence = _log_beta(won + _CONCENTRATION, lost + _CONCENTRATION) - _log_beta(_CONCENTRATION, _CONCENTRATION)
    share = won / (won + lost)

    def is_refused(chance: float) -> bool:
        return evidence - won * math.log(chance) - lost * math.log1p(-chance) >= -math.log(ALPHA)

    low = _least(lambda one: not is_refused(one), 1e-9, share) if won else 0.0
    high = _least(is_refused, share, 1 - 1e-9) if lost else 1.0
    return Wins(share, low, high, min(1.0, math.exp(-evidence - (won + lost) * math.log(2))))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where something begins to hold between two numbers, at the higher of which it does."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

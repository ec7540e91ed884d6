"""What held-out lists say of a release before shoppers see it: its clicks beside another's, on the very same lists.

The shown products of each list are put in the order of either release, and the difference in expected clicks is

    sum_i (theta_A(i) - theta_B(i)) (m_i + (c_i - theta_i m_i) / max(theta_i, clip))

with theta_i the propensity of the position where product i stood, theta_A(i) that of the position which A gives it, c_i
whether it was clicked, and m_i what a model expects of whoever looks at it. The sum over a list is the same whatever m
is if nothing is clipped; clipping keeps the weight of a click on a rarely seen position from deciding everything, and m
takes the place of what is clipped: clicks a look at products with about the same places in both orders, in the lists of
other persons.

It cannot know what was not shown, so it re-ranks what was; and it takes clicks for looks times appeal: no list is given
up early, no product is clicked because it ranks high. Where that is wrong, arms tell.

**Whose lists they are matters.** What a release chose for a list it has ranked by the same scores: among the products
that it took for the best, another order that knows as much but errs elsewhere looks better. So whoever decides weighs
lists that either release chose alike, or takes those that neither did (`fair_weights`), or lets a release prove better
on lists of its own (`own_weights`).

Source: docs/papers.md, "Releases judged by logged lists".
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal, NamedTuple

import numpy as np

from contracts.comparison import LEAST_EVENTS, LEAST_SPREAD, student
from contracts.propensities import NORMAL_95

CLIP: Final = 0.05
"""A click counts at most as much as twenty at the top. With looks that fall as 1/position that is reached at position
20; where they fall faster it lowers the variance by a fifth. Beyond, the model's errors weigh more than what is won."""
FOLDS: Final = 5
LEAST_LISTS: Final = 100
LEAST_CLICKS: Final = LEAST_EVENTS
FAIR_LISTS: Final = 200
"""Of the untrained release, and of learned ones; of fewer, a few heavy clicks decide, and err to one side."""
LEAST_PERSONS: Final = LEAST_SPREAD
"""Persons with equally many lists that would spread them as widely."""
LEAST_QUERIES: Final = LEAST_SPREAD
"""Likewise of queries; of less than these four nothing is said."""
MOST_TIMES: Final = 1_000
"""Of so many times the lists nobody need be told."""
IN_FORCE: Final = 1
"""Of the rows of propensities."""
BAND: Final = 3
"""Places that the model of clicks takes together: the first three of a release's order, the next three, and so on."""
MOST_BANDS: Final = 4
_TINY: Final = 1e-300
_ROUNDING: Final = 1e-9
"""What sums of shares may miss of a whole number."""
_SHRUNK_LOOKS: Final = 2.0
"""By how many looks with the mean rate of clicks the model holds what it says of few."""

Verdict = Literal["better", "worse", "equal", "undecided", "propensities", "too_little"]
"""`undecided`: by chance, more lists would tell. `propensities`: only their band leaves both open."""


class HeldOutLists(NamedTuple):
    """L held-out lists with N slots that count, those of a list together, from the top.

    Args:
        persons: number of the person of each list, (L,).
        queries: number of its query, (L,); all lists of one share both orders.
        list_of: of each slot, rising, (N,).
        theta: propensity of each slot's position at the low end of its band, in force, at the high end, (3, N).
        clicked: 1 of a clicked slot, else 0, or what else is counted of slots, (N,).
        slices: label of each list by the name of the slice, (L,) each.
    """

    persons: np.ndarray
    queries: np.ndarray
    list_of: np.ndarray
    theta: np.ndarray
    clicked: np.ndarray
    slices: Mapping[str, np.ndarray]


class ClickDifference(NamedTuple):
    """By how many clicks a list A exceeds B; value and ends are None if there is too little.

    Args:
        lists: that were looked at.
        persons: of whom they are.
        queries: that they answer.
        clicks: on them.
        value: expected clicks of a list in A's order less those in B's, by the propensities in force.
        low: lower end of the interval of 95 %, by whichever end of the propensities' band reaches further.
        high: its upper end.
        verdict: what that says.
        more_lists: until chance would no longer hide a difference of this size, of as many more persons and queries;
            propensities may still leave it open. None if it is told, if chance is not what stands in the way, or if it
            would take more than a thousand times as many.
    """

    lists: int
    persons: int
    queries: int
    clicks: int
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    more_lists: int | None


class Estimate(NamedTuple):
    """What held-out lists say of A beside B.

    Args:
        difference: over all lists.
        slices: slice -> label -> the same of its lists alone.
        level: what a list in the order of B is expected to have, by the propensities in force.
        moved: lists that the two releases order differently.
        effective_lists: as many lists with equal weights would be as sure.
        clipped_share: of the weight of clicks, what the clip takes away.
    """

    difference: ClickDifference
    slices: dict[str, dict[str, ClickDifference]]
    level: float
    moved: int
    effective_lists: float
    clipped_share: float


def evaluate(
    lists: HeldOutLists,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    clip: float = CLIP,
    normal: float = NORMAL_95,
    largest: float = 1.0,
) -> Estimate:
    """Estimate by how many clicks a list release A exceeds release B.

    Args:
        lists: none of which either release was learned from.
        ours: scores of the slots' products under A, (N,); of equal ones, the higher slot stays higher.
        theirs: likewise under B, (N,).
        weights: what each list counts, (L,), with any sum; all alike if None.
        clip: propensity below which the weight of a click grows no further; 0 clips nothing.
        normal: how far the interval reaches, as a quantile of the normal distribution.
        largest: what one slot counts at most; a few large ones are too little, too.
    """
    size = len(lists.persons)
    weights = np.ones(size) if weights is None else weights
    first, second = (_ranks(lists.list_of, scores) for scores in (ours, theirs))
    starts = np.searchsorted(lists.list_of, lists.list_of)
    bands = [np.minimum((ranks - starts) // BAND, MOST_BANDS - 1) for ranks in (first, second)]
    places = MOST_BANDS * bands[0] + bands[1]
    changes = [theta[first] - theta[second] for theta in lists.theta]
    appeals = [_appeal(lists, places, theta, clip) for theta in lists.theta]
    totals = np.array([
        np.bincount(lists.list_of, change * appeal, size) for change, appeal in zip(changes, appeals, strict=True)
    ])  # fmt: skip
    theta, moves = lists.theta[IN_FORCE], np.abs(changes[IN_FORCE])
    clipped, whole = moves / np.maximum(theta, clip), moves / theta
    stakes = weights * np.bincount(lists.list_of, clipped, size)
    clicks = np.bincount(lists.list_of, lists.clicked, size)
    moved = np.bincount(lists.list_of, first != second, size) > 0
    level = np.bincount(lists.list_of, theta[second] * appeals[IN_FORCE], size) @ weights
    tell = partial(_difference, lists, weights, totals, clicks, moved, normal=normal, largest=largest)
    return Estimate(
        tell(np.ones(size, dtype=bool)),
        {
            name: {str(label): tell(labels == label) for label in np.unique(labels)}
            for name, labels in lists.slices.items()
        },
        level=float(level / weights.sum()) if weights.any() else 0.0,
        moved=int(np.count_nonzero(moved)),
        effective_lists=effective(stakes),
        clipped_share=float(1 - clipped.sum() / whole.sum()) if moves.any() else 0.0,
    )


def effective(weights: np.ndarray) -> float:
    """As many of equal weight would be as sure (Kish).

    >>> effective(np.array([1.0, 1.0, 0.0])), effective(np.zeros(0))
    (2.0, 0.0)
    """
    return float(weights.sum() ** 2 / (weights @ weights)) if weights.any() else 0.0


def own_weights(ranked_by: np.ndarray) -> np.ndarray:
    """What each list counts where a learned release may prove better than the untrained one, (L,).

    Those that learned releases chose: by the choice of their products the judged one gains nothing, it may only lose.

    Args:
        ranked_by: query release that ranked each list, (L,).
    """
    return np.asarray(ranked_by > 0, dtype=float)


def fair_weights(ranked_by: np.ndarray, against: int) -> np.ndarray:
    """What each list counts if neither release is to gain or lose by what the other chose for the lists, (L,).

    Against the untrained release, its lists weigh together as much as those of learned ones; with less than
    `FAIR_LISTS` of either, nothing is fair. Between two learned releases, lists of learned ones say nothing, for they
    are of the kind of one more than of the other's: the untrained release chose for neither.

    Args:
        ranked_by: query release that ranked each list, (L,).
        against: query release that the judged one, which is learned, is compared with.
    """
    untrained = ranked_by == 0
    if against:
        return np.asarray(untrained, dtype=float)
    sides = np.count_nonzero(untrained), np.count_nonzero(~untrained)
    if min(sides) < FAIR_LISTS:
        return np.zeros(len(ranked_by))
    return np.where(untrained, 0.5 / sides[0], 0.5 / sides[1])


def _ranks(list_of: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which slot each slot's product takes if its list is ranked by scores, (N,)."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.lexsort((-scores, list_of))] = np.arange(len(scores))
    return ranks


def _appeal(lists: HeldOutLists, places: np.ndarray, theta: np.ndarray, clip: float) -> np.ndarray:
    """What each slot's product is worth to whoever looks at it, doubly robust, (N,).

    Args:
        lists: the lists.
        places: of each slot by both releases' orders together, (N,).
        theta: propensities, (N,).
        clip: as `evaluate` has it.
    """
    folds = lists.persons[lists.list_of] % FOLDS
    size = int(places.max(initial=0)) + 1
    by_fold = np.array([
        [np.bincount(places[folds == fold], one[folds == fold], size) for one in (lists.clicked, theta)]
        for fold in range(FOLDS)
    ])  # fmt: skip
    clicks, looks = (by_fold.sum(axis=0) - by_fold).transpose(1, 0, 2)
    level = clicks.sum(axis=1, keepdims=True) / np.maximum(looks.sum(axis=1, keepdims=True), _SHRUNK_LOOKS)
    model = (clicks + _SHRUNK_LOOKS * level) / (looks + _SHRUNK_LOOKS)
    expected = model[folds, places]
    return np.asarray(expected + (lists.clicked - theta * expected) / np.maximum(theta, clip))


def _difference(
    lists: HeldOutLists,
    weights: np.ndarray,
    totals: np.ndarray,
    clicks: np.ndarray,
    moved: np.ndarray,
    chosen: np.ndarray,
    *,
    normal: float,
    largest: float,
) -> ClickDifference:
    """The difference over some lists.

    Args:
        lists: all of them.
        weights: what each counts, (L,).
        totals: the difference of each list, by propensities low, in force and high, (3, L).
        clicks: on each list, (L,).
        moved: which lists the two releases order differently, (L,) of bool.
        chosen: which lists, (L,) of bool; those of weight 0 are none.
        normal: as `evaluate` has it.
        largest: likewise.
    """
    chosen = chosen & (weights > 0)
    size, clicked, shares = int(chosen.sum()), clicks[chosen], weights[chosen] / max(weights[chosen].sum(), _TINY)
    persons, queries = (np.unique(one[chosen], return_inverse=True)[1] for one in (lists.persons, lists.queries))
    by_person, by_query = np.bincount(persons, shares), np.bincount(queries, shares)
    told = (size, len(by_person), len(by_query), int(clicked.sum()))
    spreads = [effective(by_person), effective(by_query)]
    # As many clicks of lists of equal weight would be as sure; of equal weights that is their number.
    sure_clicks = (shares @ clicked) ** 2 / max((shares**2) @ clicked, _TINY)
    is_enough = effective(shares) >= LEAST_LISTS - _ROUNDING and sure_clicks >= LEAST_CLICKS * largest - _ROUNDING
    if not is_enough or spreads[0] < LEAST_PERSONS - _ROUNDING or spreads[1] < LEAST_QUERIES - _ROUNDING:
        return ClickDifference(*told, None, None, None, "too_little", None)
    means = totals[:, chosen] @ shares
    left = (totals[:, chosen] - means[:, None]) * shares
    _, both = np.unique(persons * len(by_query) + queries, return_inverse=True)
    of_person, of_query, of_both = (_variance(left, shares, one) for one in (persons, queries, both))
    variance = np.maximum(of_person + of_query - of_both, np.maximum(of_person, of_query))
    halves = student(normal, int(min(spreads) + _ROUNDING) - 1) * np.sqrt(variance)
    low, high = float((means - halves).min()), float((means + halves).max())
    value, half = float(means[IN_FORCE]), float(halves[IN_FORCE])
    more = None
    if low > 0 or high < 0:
        verdict: Verdict = "better" if low > 0 else "worse"
    elif not moved[chosen].any():
        verdict = "equal"
    elif half < abs(value):
        verdict = "propensities"
    else:
        verdict = "undecided"
        times = (half / value) ** 2 if value else math.inf
        more = math.ceil((times - 1) * size) if times < MOST_TIMES else None
    return ClickDifference(*told, value, low, high, verdict, more)


def _variance(left: np.ndarray, shares: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The variance of means over lists that depend on one another within clusters, (K,).

    The divisor makes up for what the mean takes from large clusters: it is 1 - 1/G for G equal ones, and less where a
    few have most of the lists.

    Args:
        left: what each list exceeds the mean by, times its share of the weight, (K, L).
        shares: of the weight, with a sum of 1, (L,).
        clusters: number of each list's cluster, from 0, (L,).
    """
    by_cluster = np.bincount(clusters, shares)
    sums = np.array([np.bincount(clusters, row) for row in left])
    squares = by_cluster @ by_cluster
    return np.asarray((sums**2).sum(axis=1) / (1 - 2 * (by_cluster**3).sum() / squares + squares))

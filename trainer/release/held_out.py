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

Source: docs/papers.md, "Releases judged by logged lists".
"""

import math
from collections.abc import Mapping
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
        clicked: 1 of a clicked slot, else 0, (N,).
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
        moved: lists that the two releases order differently.
        effective_lists: as many lists with equal weights would be as sure.
        clipped_share: of the weight of clicks, what the clip takes away.
    """

    difference: ClickDifference
    slices: dict[str, dict[str, ClickDifference]]
    moved: int
    effective_lists: float
    clipped_share: float


def evaluate(lists: HeldOutLists, ours: np.ndarray, theirs: np.ndarray, *, clip: float = CLIP) -> Estimate:
    """Estimate by how many clicks a list release A exceeds release B.

    Args:
        lists: none of which either release was learned from.
        ours: scores of the slots' products under A, (N,); of equal ones, the higher slot stays higher.
        theirs: likewise under B, (N,).
        clip: propensity below which the weight of a click grows no further; 0 clips nothing.
    """
    size = len(lists.persons)
    first, second = (_ranks(lists.list_of, scores) for scores in (ours, theirs))
    starts = np.searchsorted(lists.list_of, lists.list_of)
    bands = [np.minimum((ranks - starts) // BAND, MOST_BANDS - 1) for ranks in (first, second)]
    places = MOST_BANDS * bands[0] + bands[1]
    changes = [theta[first] - theta[second] for theta in lists.theta]
    totals = np.array([
        np.bincount(lists.list_of, change * _appeal(lists, places, theta, clip), size)
        for change, theta in zip(changes, lists.theta, strict=True)
    ])  # fmt: skip
    theta, moves = lists.theta[IN_FORCE], np.abs(changes[IN_FORCE])
    clipped, whole = moves / np.maximum(theta, clip), moves / theta
    weights = np.bincount(lists.list_of, clipped, size)
    clicks = np.bincount(lists.list_of, lists.clicked, size)
    moved = np.bincount(lists.list_of, first != second, size) > 0
    slices = {
        name: {
            str(label): _difference(lists, totals, clicks, moved, labels == label) for label in np.unique(labels)
        }
        for name, labels in lists.slices.items()
    }  # fmt: skip
    return Estimate(
        _difference(lists, totals, clicks, moved, np.ones(size, dtype=bool)),
        slices,
        moved=int(np.count_nonzero(moved)),
        effective_lists=float(weights.sum() ** 2 / (weights @ weights)) if weights.any() else 0.0,
        clipped_share=float(1 - clipped.sum() / whole.sum()) if moves.any() else 0.0,
    )


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
    lists: HeldOutLists, totals: np.ndarray, clicks: np.ndarray, moved: np.ndarray, chosen: np.ndarray
) -> ClickDifference:
    """The difference over some lists.

    Args:
        lists: all of them.
        totals: the difference of each list, by propensities low, in force and high, (3, L).
        clicks: on each list, (L,).
        moved: which lists the two releases order differently, (L,) of bool.
        chosen: which lists, (L,) of bool.
    """
    size, clicked = int(chosen.sum()), int(clicks[chosen].sum())
    persons, queries = (np.unique(one[chosen], return_inverse=True)[1] for one in (lists.persons, lists.queries))
    by_person, by_query = np.bincount(persons), np.bincount(queries)
    told = (size, len(by_person), len(by_query), clicked)
    spreads = [size**2 / float(counts @ counts) if size else 0.0 for counts in (by_person, by_query)]
    if size < LEAST_LISTS or clicked < LEAST_CLICKS or spreads[0] < LEAST_PERSONS or spreads[1] < LEAST_QUERIES:
        return ClickDifference(*told, None, None, None, "too_little", None)
    means = totals[:, chosen].mean(axis=1)
    left = totals[:, chosen] - means[:, None]
    _, both = np.unique(persons * len(by_query) + queries, return_inverse=True)
    of_person, of_query, of_both = (_variance(left, one) for one in (persons, queries, both))
    variance = np.maximum(of_person + of_query - of_both, np.maximum(of_person, of_query))
    halves = student(NORMAL_95, int(min(spreads)) - 1) * np.sqrt(variance)
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


def _variance(left: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The variance of means over lists that depend on one another within clusters, (K,).

    The divisor makes up for what the mean takes from large clusters: it is 1 - 1/G for G equal ones, and less where a
    few have most of the lists.

    Args:
        left: what each list exceeds the mean by, (K, L).
        clusters: number of each list's cluster, from 0, (L,).
    """
    shares = np.bincount(clusters) / len(clusters)
    sums = np.array([np.bincount(clusters, row) for row in left]) / len(clusters)
    squares = shares @ shares
    return np.asarray((sums**2).sum(axis=1) / (1 - 2 * (shares**3).sum() / squares + squares))

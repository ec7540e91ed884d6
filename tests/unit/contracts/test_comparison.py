"""Comparing arms: written-out maths, and false alarms under peeking on streams without any difference."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from contracts.comparison import ALPHA, BEST_AT, GROUPS, Difference, GroupSums, Wins, difference, mean_of, widths, wins

STREAMS = 1_000
PEEKS = 25


def groups_of(lists: np.ndarray, totals: np.ndarray) -> list[GroupSums]:
    """Return groups with these sums."""
    return [GroupSums(n, total) for n, total in zip(lists.tolist(), totals.tolist(), strict=True)]


def stream(
    seed: int, *, lists: int, rate: float, share: float = 0.1, lift: float = 0.0, spread: float = 4.0
) -> list[tuple[list[GroupSums], list[GroupSums]]]:
    """Return what both arms look like at each peek: persons with rates of their own, some of whom come very often.

    Args:
        seed: of the stream.
        lists: at its end.
        rate: mean of the persons' chances that a list is clicked.
        share: of persons in the control.
        lift: added to each chance in the arm that is compared.
        spread: of the persons' chances is small if this is large.
    """
    random = np.random.default_rng(seed)
    persons = lists // 8
    often = random.pareto(2.5, persons) + 0.2
    person = random.choice(persons, size=lists, p=often / often.sum())
    rates = random.beta(rate * spread, (1 - rate) * spread, persons)
    in_control = random.random(persons) < share
    clicked = random.random(lists) < np.clip(rates[person] + lift * ~in_control[person], 0, 1)
    groups = random.integers(GROUPS, size=persons)
    peek = np.arange(lists) * PEEKS // lists
    counted = np.zeros((2, PEEKS, 2, GROUPS))
    np.add.at(counted[0], (peek, in_control[person].astype(int), groups[person]), 1)
    np.add.at(counted[1], (peek, in_control[person].astype(int), groups[person]), clicked)
    n, totals = counted.cumsum(axis=1)
    return [tuple(groups_of(n[at, arm], totals[at, arm]) for arm in (0, 1)) for at in range(PEEKS)]  # type: ignore[misc] # two arms


def verdicts(seed: int, **fields: float) -> list[str]:
    """Return what is concluded at each peek."""
    found = [difference(arm, control) for arm, control in stream(seed, **fields)]  # type: ignore[arg-type] # as a stream takes them
    return ["too little" if one is None else one.verdict for one in found]


@pytest.mark.parametrize(("lists", "rate", "share"), [(6_000, 0.3, 0.1), (6_000, 0.3, 0.5), (24_000, 0.03, 0.1)])
def test_equal_arms_are_rarely_told_apart_however_often_one_looks(lists: int, rate: float, share: float) -> None:
    """False alarms over 1,000 streams, at 25 looks each, though a person's lists resemble one another."""
    alarms = sum(
        not {"better", "worse"}.isdisjoint(verdicts(seed, lists=lists, rate=rate, share=share))
        for seed in range(STREAMS)
    )
    assert alarms <= ALPHA * STREAMS


def test_one_person_is_no_comparison() -> None:
    """An arm most of whose lists one person made says nothing, however many they are."""
    live = [GroupSums(100.0, 31.0)] * GROUPS
    alone = [GroupSums(400.0, 60.0), *[GroupSums(0.0, 0.0)] * (GROUPS - 1)]
    robot = [GroupSums(2_010.0, 3.0), *[GroupSums(10.0, 3.0)] * (GROUPS - 1)]
    assert difference(live, alone) is None
    assert difference(live, robot) is None
    assert difference(live, live) is not None


def test_a_few_large_events_are_too_few() -> None:
    """Where one event counts ten, forty are needed all the same."""
    four = [GroupSums(100.0, 10.0 if group < 4 else 0.0) for group in range(GROUPS)]
    assert difference(four, four) is not None
    assert difference(four, four, largest=10.0) is None


def test_a_better_arm_is_told_and_never_taken_for_a_worse_one() -> None:
    """Half as many clicks again, an even split, 25 looks."""
    found = [verdicts(seed, lists=12_000, rate=0.3, share=0.5, lift=0.15) for seed in range(60)]
    assert sum("better" in one for one in found) >= 54
    assert not any("worse" in one for one in found)


def test_a_mean_is_as_unsure_as_its_groups_differ() -> None:
    """By the written-out variance of a ratio of sums; equal persons in each group would say nothing of it."""
    lists, totals = np.array([10.0, 20.0, 30.0]), np.array([4.0, 5.0, 15.0])
    mean = totals.sum() / lists.sum()
    variance = 3 / 2 * ((totals - mean * lists) ** 2).sum() / lists.sum() ** 2
    assert mean_of(groups_of(lists, totals)) == pytest.approx((60.0, mean, variance))


def test_the_variance_is_that_of_repeated_experiments() -> None:
    """Over streams whose persons have rates of their own, the told variance is on average the true one."""
    arms = [mean_of(stream(seed, lists=4_000, rate=0.3, spread=1.0)[-1][0]) for seed in range(400)]
    true = np.var([arm.value for arm in arms])
    assert np.mean([arm.variance for arm in arms]) == pytest.approx(true, rel=0.25)
    independent = np.mean([arm.value * (1 - arm.value) / arm.lists for arm in arms])
    assert true > 2 * independent


def test_the_width_is_that_of_a_mixture_of_normal_likelihoods() -> None:
    """At its edge the mixture exceeds the likelihood of no difference by 1 / alpha: integrated, not by the formula."""
    at_best = -2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))
    scale = math.sqrt(at_best / BEST_AT)
    for lists in (200.0, BEST_AT, 50_000.0):
        total = widths(lists) * math.sqrt(lists)

        def weighted(drift: float, total: float = total, lists: float = lists) -> float:
            return math.exp(drift * total - drift**2 * lists / 2) * float(stats.norm.pdf(drift, scale=scale))

        mixture, _ = integrate.quad(weighted, -8 * scale, 8 * scale, points=[0.0, total / lists], limit=400)
        assert mixture == pytest.approx(1 / ALPHA, rel=1e-4)


def test_the_number_of_lists_to_come_is_where_the_difference_is_sure() -> None:
    """With as many more lists like those so far, and not before."""
    lists, totals = np.full((2, GROUPS), 100.0), np.full((2, GROUPS), 30.0)
    totals[0, ::2] += 6
    totals[:, ::4] += 9

    def repeated(times: float) -> Difference:
        """Return the comparison after so many times as many lists, each group's deviation growing as by chance."""
        spread = totals - totals.mean(axis=1, keepdims=True)
        sums = totals.mean(axis=1, keepdims=True) * times + spread * math.sqrt(times)
        found = difference(*(groups_of(lists[arm] * times, sums[arm]) for arm in (0, 1)))
        assert found is not None
        return found

    now = repeated(1.0)
    assert (now.verdict, now.more_lists is not None) == ("undecided", True)
    times = 1 + (now.more_lists or 0) / lists.sum()
    assert repeated(times * 1.001).verdict == "better"
    assert repeated(times * 0.99).verdict == "undecided"
    assert repeated(times * 2).more_lists is None


def test_too_little_is_compared_with_nothing() -> None:
    """Neither a few lists nor a few events: their means are not normal."""
    plenty = groups_of(np.full(GROUPS, 50.0), np.full(GROUPS, 10.0))
    few = groups_of(np.full(GROUPS, 5.0), np.full(GROUPS, 4.0))
    rare = groups_of(np.full(GROUPS, 50.0), np.full(GROUPS, 1.0))
    assert difference(plenty, plenty) is not None
    for other in (few, rare):
        assert difference(plenty, other) is None
        assert difference(other, plenty) is None


def decided(won: int, lost: int) -> Wins:
    """Return what decided lists say."""
    found = wins(won, lost)
    assert found is not None
    return found


def test_a_fair_coin_is_rarely_called_unfair_however_often_one_looks() -> None:
    """The sign test of interleaved lists, at every tenth list of 1,000 streams."""
    looks = np.arange(10, 601, 10)
    least_won = [
        min((n for n in range(at // 2, at + 1) if decided(n, at - n).p <= ALPHA), default=at + 1)
        for at in looks.tolist()
    ]
    won = (np.random.default_rng(1).random((STREAMS, looks[-1])) < 0.5).cumsum(axis=1)[:, looks - 1]
    alarms = (np.maximum(won, looks - won) >= np.array(least_won)).any(axis=1)
    assert 0 < alarms.sum() <= ALPHA * STREAMS


def test_wins_are_weighed_by_a_beta_mixture() -> None:
    """The p-value is the inverse ratio of integrated likelihoods, the interval is what the test does not refuse."""
    won, lost = 70, 30
    mixture, _ = integrate.quad(
        lambda chance: stats.binom.pmf(won, won + lost, chance) * stats.beta.pdf(chance, 20, 20), 0, 1
    )
    found, mirrored = decided(won, lost), decided(lost, won)
    assert found.p == pytest.approx(stats.binom.pmf(won, won + lost, 0.5) / mixture, rel=1e-6)
    for edge in (found.low, found.high):
        assert mixture / stats.binom.pmf(won, won + lost, edge) == pytest.approx(1 / ALPHA, rel=1e-4)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-6)
    assert (decided(1, 0).p, decided(1, 0).high) == pytest.approx((1.0, 1.0))
    assert wins(0, 0) is None

"""What held-out lists say of a release: by hand, without bias, with intervals that hold, and harm is found."""

import numpy as np
import pytest

from contracts.comparison import student
from contracts.propensities import NORMAL_95
from tests.support.held_out_power import asked_by_rank, blind, logged
from trainer.release.held_out import CLIP, ClickDifference, HeldOutLists, evaluate


def test_a_list_by_hand() -> None:
    """Of lists of two, each clicked below, A exchanges the two: 1 - 1/2 of a look, times a click worth two."""
    count = 200
    theta = np.tile([1.0, 0.5], count)
    lists = HeldOutLists(
        np.arange(count),
        np.arange(count),
        np.repeat(np.arange(count), 2),
        np.array([theta] * 3),
        np.tile([0.0, 1.0], count),
        {},
    )
    found = evaluate(lists, np.tile([0.0, 1.0], count), np.tile([1.0, 0.0], count))
    assert found.difference.value == pytest.approx((1 - 0.5) * 1 / 0.5)
    assert found.difference.verdict == "better"
    assert (found.moved, round(found.effective_lists, 6), found.clipped_share) == (count, count, 0)


def test_what_is_clipped_is_taken_over_by_the_model() -> None:
    """By hand: products that everybody clicks who looks; the model says 1, and nothing is lost by any clip."""
    count = 200
    theta = np.tile([1.0, 0.5], count)
    clicked = np.array([1.0, 1.0, 1.0, 0.0] * (count // 2))
    lists = HeldOutLists(
        np.arange(count), np.arange(count), np.repeat(np.arange(count), 2), np.array([theta] * 3), clicked, {}
    )
    found = evaluate(lists, np.tile([0.0, 1.0], count), np.tile([1.0, 0.0], count), clip=1.0)
    assert found.difference.value == pytest.approx(0.0, abs=0.01)
    assert found.clipped_share == pytest.approx(1 - (0.5 + 0.5) / (0.5 + 0.5 / 0.5))


def test_equal_releases_differ_by_exactly_nothing() -> None:
    """Other scores in the same order are no difference."""
    shop = logged(np.random.default_rng(1), 300)
    found = evaluate(shop.lists, 2 * shop.ours + 1, shop.ours)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)
    assert (found.difference.verdict, found.moved, found.effective_lists) == ("equal", 0, 0.0)


def test_without_a_clip_it_is_unbiased() -> None:
    """The mean error over many shops is within three of its standard errors."""
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(200):
        shop = logged(rng, 300)
        errors.append((evaluate(shop.lists, shop.ours, shop.theirs, clip=0.0).difference.value or 0.0) - shop.truth)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(len(errors))


def test_clipped_it_errs_less_than_plain_inverse_propensities() -> None:
    """Where looks fall fast the variance is a tenth less at least, and so is the squared error, for all the bias."""
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(200):
        shop = logged(rng, 300, power=1.5)
        values = [evaluate(shop.lists, shop.ours, shop.theirs, clip=clip).difference.value for clip in (0.0, CLIP)]
        errors.append([(value or 0.0) - shop.truth for value in values])
    plain, robust = np.array(errors).T
    assert np.var(robust) < 0.9 * np.var(plain)
    assert np.mean(robust**2) < 0.9 * np.mean(plain**2)


def test_intervals_hold_the_truth_of_all_queries_at_least_as_often_as_they_say() -> None:
    """Of 95 % intervals, 92 of a hundred at least, within the error of 250 of them; the truth is that of 250 shops."""
    rng = np.random.default_rng(4)
    shops = [logged(rng, 300, queries=60) for _ in range(250)]
    truth = np.mean([shop.truth for shop in shops])
    found = [evaluate(shop.lists, shop.ours, shop.theirs).difference for shop in shops]
    told = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    assert len(told) > 200
    assert np.mean([low <= truth <= high for low, high in told]) >= 0.92


@pytest.mark.parametrize("by_rank", [False, True])
def test_orders_that_know_nothing_of_appeal_are_rarely_told_apart(by_rank: bool) -> None:
    """Ten queries alike, or fifty of which a few have most lists: their orders and appeal are drawn once for each."""
    rng, verdicts = np.random.default_rng(10), []
    for _ in range(200):
        shop = blind(rng, asked_by_rank(rng, 50, 1_000) if by_rank else rng.integers(10, size=500))
        lists = shop.lists._replace(persons=np.arange(len(shop.lists.persons)))
        verdicts.append(evaluate(lists, shop.ours, shop.theirs).difference.verdict)
    assert verdicts.count("better") + verdicts.count("worse") <= 0.08 * len(verdicts)
    assert verdicts.count("undecided") > 0.9 * len(verdicts)


def test_lists_of_one_person_depend_on_one_another() -> None:
    """By hand: the interval is as wide as if each person's ten equal lists were one, though each asks another query."""
    persons, count = 50, 500
    clicked = np.tile([0.0, 1.0], count) * np.repeat(np.arange(persons) % 2, 20)
    theta = np.array([np.tile([1.0, 0.5], count)] * 3)
    who, lists = np.repeat(np.arange(persons), 10), np.arange(count)
    exchanged = np.tile([0.0, 1.0], count), np.tile([1.0, 0.0], count)
    found = evaluate(HeldOutLists(who, lists, np.repeat(lists, 2), theta, clicked, {}), *exchanged).difference
    totals = (1 - 0.5) / 0.5 * (np.arange(persons) % 2)
    half = student(NORMAL_95, persons - 1) * np.std(totals, ddof=1) / np.sqrt(persons)
    assert found.value == pytest.approx(np.mean(totals))
    assert (found.high or 0.0) - (found.value or 0.0) == pytest.approx(half)


def test_other_orders_with_nothing_at_stake_are_not_equal() -> None:
    """Where exchanged places are looked at alike the lists are moved, and no number of lists tells of them."""
    count = 200
    theta = np.array([np.ones(2 * count)] * 3)
    clicked, lists = np.tile([0.0, 1.0], count), np.arange(count)
    logs = HeldOutLists(lists, lists, np.repeat(lists, 2), theta, clicked, {})
    found = evaluate(logs, np.tile([0.0, 1.0], count), np.tile([1.0, 0.0], count))
    assert (found.moved, found.difference.verdict, found.difference.more_lists) == (count, "undecided", None)


def test_a_harmed_release_is_found_worse_and_a_better_one_better() -> None:
    """The other way round the same holds with the other sign."""
    harmed, helped = (logged(np.random.default_rng(5), 1_000, knows=one) for one in (-1.0, 0.5))
    worse = evaluate(harmed.lists, harmed.ours, harmed.theirs).difference
    assert (worse.verdict, worse.more_lists) == ("worse", None)
    assert evaluate(harmed.lists, harmed.theirs, harmed.ours).difference.value == pytest.approx(-(worse.value or 0.0))
    assert evaluate(helped.lists, helped.ours, helped.theirs).difference.verdict == "better"


def test_an_undecided_difference_says_how_many_more_lists_it_takes() -> None:
    """With as many the interval would be about as wide as the difference is large."""
    rng = np.random.default_rng(6)
    shop = blind(rng, asked_by_rank(rng, 300, 200))
    found = evaluate(shop.lists, shop.ours, shop.theirs).difference
    assert found.verdict == "undecided"
    assert found.value is not None
    assert found.high is not None
    assert found.more_lists is not None
    narrowed = (found.high - found.value) * (found.lists / (found.lists + found.more_lists)) ** 0.5
    assert narrowed == pytest.approx(abs(found.value), rel=0.02)


def test_a_band_of_propensities_widens_the_interval() -> None:
    """The value is that of the propensities in force."""
    sure, unsure = (logged(np.random.default_rng(7), 1_000, band=band) for band in (0.0, 0.3))
    one, two = (evaluate(shop.lists, shop.ours, shop.theirs).difference for shop in (sure, unsure))
    assert one.value == two.value
    assert (two.low or 0.0) < (one.low or 0.0)
    assert (two.high or 0.0) > (one.high or 0.0)


def test_where_only_propensities_leave_both_open_no_lists_are_asked_for() -> None:
    """By hand: exchanging two slots, clicked in 40 and 26 of a hundred lists, gains with looks of 1/2, not of 0.9."""
    rng, count = np.random.default_rng(9), 5_000
    clicked = (rng.random((count, 2)) < (0.4, 0.26)).astype(float).ravel()
    theta = np.array([np.tile([1.0, below], count) for below in (0.25, 0.5, 0.9)])
    lists = HeldOutLists(np.arange(count), np.arange(count), np.repeat(np.arange(count), 2), theta, clicked, {})
    found = evaluate(lists, np.tile([0.0, 1.0], count), np.tile([1.0, 0.0], count)).difference
    assert found.value == pytest.approx(0.5 * (0.26 / 0.5 - 0.4), abs=0.02)
    assert (found.verdict, found.more_lists) == ("propensities", None)


@pytest.mark.parametrize(
    ("lists", "persons", "queries", "clicks"),
    [(99, 99, 99, 99), (200, 7, 200, 200), (200, 200, 7, 200), (200, 200, 200, 39)],
)
def test_too_little_says_nothing(lists: int, persons: int, queries: int, clicks: int) -> None:
    """Too few lists, persons, queries or clicks: there is no value, however clear it looks."""
    theta = np.array([np.tile([1.0, 0.5], lists)] * 3)
    clicked = (np.arange(2 * lists) < 2 * clicks) * np.tile([0.0, 1.0], lists)
    one = np.arange(lists)
    logs = HeldOutLists(one % persons, one % queries, np.repeat(one, 2), theta, clicked, {})
    found = evaluate(logs, np.tile([0.0, 1.0], lists), np.tile([1.0, 0.0], lists)).difference
    assert found == ClickDifference(lists, persons, queries, clicks, None, None, None, "too_little", None)


def test_slices_add_up_to_the_whole() -> None:
    """Each list belongs to one label of a slice; the value of all is the mean of theirs, by lists."""
    shop = logged(np.random.default_rng(8), 1_000)
    labels = np.where(np.arange(1_000) < 400, "desktop", "mobile")
    found = evaluate(shop.lists._replace(slices={"device": labels}), shop.ours, shop.theirs)
    parts = found.slices["device"]
    assert [parts[name].lists for name in ("desktop", "mobile")] == [400, 600]
    mean = sum(part.lists * (part.value or 0.0) for part in parts.values()) / 1_000
    assert mean == pytest.approx(found.difference.value)

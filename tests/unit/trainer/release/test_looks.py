"""Looks at held-out lists: which lists weigh what, how cautious a look is, and that all of them err as one."""

from statistics import NormalDist

import numpy as np
import pytest

from contracts.comparison import ALPHA
from contracts.decisions import Decisions, HeldOutLook
from tests.support.gate_power import T0
from tests.support.held_out_decisions import (
    JUDGED,
    PROMOTED,
    better,
    equal,
    first_move,
    harmed,
    naive_move,
    overshot,
    stream,
)
from trainer.release.held_out import fair_weights, own_weights
from trainer.release.looks import APART_MS, LOOKS, NORMAL, Question, is_noted, look_at


def test_the_parts_of_the_error_sum_to_what_arms_may_err_by() -> None:
    """Each look errs by an equal part."""
    assert 2 * LOOKS * (1 - NormalDist().cdf(NORMAL)) == pytest.approx(ALPHA)


def test_lists_of_either_side_weigh_alike() -> None:
    """With too few of one, nothing is fair; between learned releases only lists of the untrained one count."""
    ranked_by = np.array([0] * 100 + [7] * 300)
    weights = fair_weights(ranked_by, 0)
    assert weights[:100].sum() == pytest.approx(weights[100:].sum())
    assert not fair_weights(ranked_by[1:], 0).any()
    assert fair_weights(ranked_by, 3).tolist() == [1.0] * 100 + [0.0] * 300
    assert own_weights(ranked_by).tolist() == [0.0] * 100 + [1.0] * 300


def test_lists_are_read_again_when_there_may_be_an_eighth_more() -> None:
    """At the beginning not more often than every five minutes."""
    asked = Question(JUDGED, 0, began_at=1_000)
    assert [asked.rest_ms(1_000 + 8 * ms) for ms in (0, APART_MS, 3 * APART_MS)] == [APART_MS, APART_MS, 3 * APART_MS]


def test_a_look_waits_to_be_noted_while_its_comparison_goes_on() -> None:
    """A later look stands for it; one of the fortnight before does not."""
    look = HeldOutLook(query_release=JUDGED, against=0, began_at=T0 + 5, looked_at=T0 + 9, looks=2, lists=200)

    def noted(began_at: int, held_out: HeldOutLook | None) -> bool:
        return is_noted(look, Decisions(began_at=began_at, held_out=held_out))

    assert not noted(T0 + 5, None)
    assert not noted(T0 + 5, look.model_copy(update={"looks": 1}))
    assert not noted(T0, look.model_copy(update={"began_at": T0, "looks": 9}))
    assert noted(T0 + 5, look)
    assert noted(T0, look.model_copy(update={"began_at": T0 + 6, "looks": 1}))
    assert noted(T0 + 6, None)
    assert is_noted(look, None)
    arms_began_anew = Decisions(began_at=T0 + 6, held_out_began_at=T0 + 5)
    assert not is_noted(look, arms_began_anew)


def test_a_look_is_wider_than_a_single_one_and_tells_what_is_expected_of_either() -> None:
    """What the judged release is expected to have less what the other one is the difference."""
    shop = stream(np.random.default_rng(1), better, lists=1_600)
    look = look_at(Question(JUDGED, 0, T0, looks=2), shop.scored, now_ms=T0 + 5)
    assert (look.looks, look.lists, look.looked_at) == (3, 1_600, T0 + 5)
    assert [one.metric for one in look.better_by] == ["clicked", "value"]
    for one in (*look.better_by, *look.worse_by):
        assert one.live - one.anchor == pytest.approx(one.value)
        assert one.low < one.value < one.high
    assert look.better_by[1].anchor > look.better_by[0].anchor > 0.5


def test_equal_releases_are_decided_as_rarely_as_equal_arms() -> None:
    """Of 40 streams of 1,600 lists, looked at five times, at most two step back and one is promoted."""
    rng = np.random.default_rng(2)
    for against in (0, PROMOTED):
        shops = (stream(rng, equal, lists=1_600, against=against, queries=400) for _ in range(40))
        moves = [first_move(shop, against=against)[0] for shop in shops]
        assert moves.count("stepped_back") <= 2
        assert moves.count("promoted") <= 1


def test_a_better_release_is_promoted_and_a_harmed_one_undone() -> None:
    """Each time, within 3,200 held-out lists."""
    rng = np.random.default_rng(3)
    for make, verdict in ((better, "promoted"), (harmed, "stepped_back")):
        moves = [first_move(stream(rng, make, lists=3_200))[0] for _ in range(8)]
        assert moves.count(verdict) >= 6
        assert set(moves) <= {verdict, "nothing"}


def test_a_release_is_not_taken_back_for_what_it_chose_itself() -> None:
    """It is better by clicks on its own lists; within these, the order of the other release is the better one.

    By all lists alike it would be taken back.
    """
    rng = np.random.default_rng(4)
    shops = [stream(rng, overshot, lists=6_400, steepness=0.4) for _ in range(12)]
    assert np.mean([shop.truth for shop in shops]) > 0.02
    assert "stepped_back" not in [first_move(shop)[0] for shop in shops]
    assert "stepped_back" in [naive_move(shop)[0] for shop in shops]

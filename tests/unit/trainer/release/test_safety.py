"""Safety: what is let out is finite and a small step; what would be a large one is shortened."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.trainer import DIM, new_learner, records
from trainer.learner import Sample, Towers, mixed
from trainer.release.safety import SHARES, first_safe, overlap_at_top

UNTRAINED = Towers.untrained(DIM)


@pytest.fixture(scope="module")
def solved() -> tuple[Towers, Sample]:
    """Give trained towers and what they are judged on."""
    learner = new_learner()
    for record in records(0, 300):
        learner.evidence.take_list(record.content, time_ms=record.time_ms)  # type: ignore[arg-type]
    return learner.solve(UNTRAINED).towers, learner.sample()


def test_a_small_step_is_let_out_whole(solved: tuple[Towers, Sample]) -> None:
    """Its numbers say how much of the answers stayed."""
    towers, sample = solved
    verdict = first_safe(UNTRAINED, towers, sample, overlap=0.1)
    assert (verdict.towers, verdict.share) == (towers, 1.0)
    assert {check.name: check.passed for check in verdict.checks} == {"finite": True, "overlap_at_10": True}


def test_a_large_step_is_shortened_until_enough_answers_stay(solved: tuple[Towers, Sample]) -> None:
    """The largest share that keeps them is taken."""
    towers, sample = solved
    before = sample.scores(UNTRAINED)
    kept = [overlap_at_top(before, sample.scores(mixed(UNTRAINED, towers, share=share))) for share in SHARES]
    limit = (kept[0] + kept[1]) / 2
    verdict = first_safe(UNTRAINED, towers, sample, overlap=limit)
    assert kept[0] < kept[1]
    assert verdict.share == 0.5
    assert verdict.checks[-1].value == pytest.approx(kept[1])


def test_if_no_step_is_small_enough_nothing_is_let_out(solved: tuple[Towers, Sample]) -> None:
    """The check that failed is there, with its limit."""
    towers, sample = solved
    verdict = first_safe(UNTRAINED, towers, sample, overlap=1.5)
    assert verdict.towers is None
    assert (verdict.checks[-1].limit, verdict.checks[-1].passed) == (1.5, False)


def test_weights_that_are_not_finite_are_never_let_out(solved: tuple[Towers, Sample]) -> None:
    """Whatever they would answer."""
    towers, sample = solved
    broken = towers._replace(query=replace(towers.query, common=np.full(DIM, np.nan, dtype=np.float32)))
    verdict = first_safe(UNTRAINED, broken, sample, overlap=0.0)
    assert verdict.towers is None
    assert [check.name for check in verdict.checks] == ["finite"]


def test_overlap_counts_the_answers_that_stay() -> None:
    """Order within the first ten does not matter; if all are shown, nothing can leave."""
    scores = np.arange(40.0).reshape(2, 20)
    assert overlap_at_top(scores, scores + 5) == 1.0
    assert overlap_at_top(scores, -scores) == 0.0
    assert overlap_at_top(scores[:, :10], -scores[:, :10]) == 1.0
    assert overlap_at_top(np.zeros((0, 20)), np.zeros((0, 20))) == 1.0

"""What held-out lists decide beside the arms: step back, promotion, and what they are asked."""

from typing import Any, Final

import pytest

from contracts.arms import ANCHOR, LIVE
from contracts.decisions import Candidate, Comparison, Decisions, HeldOutLook
from contracts.releases import Rollback
from tests.support.gate_facts import (
    BETTER,
    EQUAL,
    IN_FORCE,
    SCARCE,
    T0,
    WORSE,
    begun,
    decided,
    facts,
    manifest,
    serving,
)
from trainer.release.gate import HOUR_MS, RENEWED_MS, Counted, owed_rollback, question_of
from trainer.release.looks import LOOKS, MOST_LISTS, Question

ALONE: Final[Counted] = {LIVE: SCARCE[LIVE], ANCHOR: []}
"""What is counted where nobody is in the anchor arm."""


def compared(metric: str, value: float, *, half: float = 0.05) -> Comparison:
    """What held-out lists say by one metric."""
    return Comparison(metric=metric, live=1 + value, anchor=1.0, value=value, low=value - half, high=value + half)


def held_out(
    better: float, worse: float | None = None, *, worth: float | None = None, looks: int = 1, **changes: Any
) -> HeldOutLook:
    """A look at held-out lists: clicks gained by those that may prove better, and by those that may prove worse."""
    gained = tuple(compared(name, one) for name, one in (("clicked", better), ("value", worth)) if one is not None)
    lost = () if worse is None else (compared("clicked", worse),)
    values: dict[str, Any] = {
        "query_release": IN_FORCE, "against": 0, "began_at": T0, "looked_at": T0, "looks": looks, "lists": 100 * looks,
        "better_by": gained, "worse_by": lost, **changes,
    }  # fmt: skip
    return HeldOutLook(**values)


def test_surely_worse_by_held_out_lists_steps_back_to_what_it_was_compared_with() -> None:
    """Of few searches, of which arms say too little; the record says by what, with the numbers."""
    found = decided(SCARCE, held_out=held_out(0.0, -0.2))
    assert found.latest is not None
    assert (found.latest.verdict, found.latest.subject, found.latest.basis) == ("stepped_back", 0, "held_out_lists")
    assert found.latest.held_out == held_out(0.0, -0.2)
    assert "100 held-out lists" in found.latest.reason
    assert "clicked 0.8000 against 1.0000 (-0.2500 to -0.1500)" in found.latest.reason
    assert (found.held_out, found.since) == (None, SCARCE), "it begins anew"
    assert owed_rollback(found, serving(), None) == Rollback(query_release=0, requested_at=T0)
    before = begun(promoted=20)
    back = decided(SCARCE, before, held_out=held_out(0.0, -0.2, against=20))
    assert back.latest is not None
    assert (back.latest.subject, back.promoted) == (20, 20)


def test_surely_better_by_held_out_lists_is_promoted_itself() -> None:
    """Not a release that served for long: the one that was judged, though a later one may be in force by now."""
    before = begun(candidates=(Candidate(searches=1, query_release=20),))
    found = decided(SCARCE, before, held_out=held_out(0.2, 0.1, worth=0.2, query_release=39))
    assert found.latest is not None
    assert (found.latest.verdict, found.latest.subject, found.promoted) == ("promoted", 39, 39)
    assert (found.latest.query_release, found.latest.basis) == (IN_FORCE, "held_out_lists")
    assert found.held_out is None


@pytest.mark.parametrize("worth", [None, -0.1])
def test_bait_is_not_promoted_by_held_out_lists(worth: float | None) -> None:
    """More clicks alone do not do: worth has to be known, and surely not much less."""
    found = decided(SCARCE, held_out=held_out(0.2, worth=worth))
    assert found.latest is not None
    assert (found.latest.verdict, found.promoted) == ("too_little", 0)


def test_arms_are_heard_first() -> None:
    """Surely better by arms is not stepped back from, surely worse is not promoted; between learned ones they are mute.

    Arms compare with the untrained release: better than that says nothing against being worse than the promoted one.
    """
    better, worse = decided(BETTER, held_out=held_out(0.0, -0.2)), decided(WORSE, held_out=held_out(0.2, worth=0.2))
    assert [one.latest and (one.latest.verdict, one.latest.basis) for one in (better, worse)] == [
        ("promoted", "arms"), ("stepped_back", "arms")
    ]  # fmt: skip
    lost = decided(BETTER, begun(promoted=20), held_out=held_out(0.0, -0.2, against=20))
    assert lost.latest is not None
    assert (lost.latest.verdict, lost.latest.subject) == ("stepped_back", 20)
    helped = decided(EQUAL, held_out=held_out(0.2, worth=0.2)).latest
    assert helped is not None
    assert (helped.verdict, helped.basis) == ("promoted", "held_out_lists")


def test_a_look_that_leaves_it_open_is_noted_once_and_says_what_it_takes() -> None:
    """Whoever takes over finds it; the same look is not taken for another one."""
    found = decided(SCARCE, held_out=held_out(0.01, worth=0.01))
    assert found.held_out == held_out(0.01, worth=0.01)
    assert found.latest is not None
    assert "asked again at 200" in found.latest.reason
    assert decided(SCARCE, found, held_out=held_out(0.01, worth=0.01)) is found
    again = decided(SCARCE, found, now_ms=T0 + 1, held_out=held_out(0.02, looks=2))
    assert again.latest is not None
    assert (again.held_out and again.held_out.looks, again.latest.decided_at) == (2, T0 + 1)


@pytest.mark.parametrize("counted", [SCARCE, EQUAL], ids=["too little", "undecided"])
def test_a_look_of_the_past_fortnight_is_told_no_more(counted: Counted) -> None:
    """Not even that it was the last: the lists of the present fortnight are asked anew."""
    spent = begun(held_out=held_out(0.01, worth=0.01, looks=LOOKS))
    before = decided(counted, spent, now_ms=T0 + RENEWED_MS - 1).latest
    assert before is not None
    assert before.held_out == spent.held_out
    assert "not asked again before the next fortnight" in before.reason
    found = decided(counted, spent, now_ms=T0 + RENEWED_MS)
    assert found.latest is not None
    assert found.latest.held_out is None
    assert "held-out" not in found.latest.reason
    look = held_out(0.01, worth=0.01, began_at=T0 + RENEWED_MS)
    again = decided(counted, found, now_ms=T0 + RENEWED_MS + 1, held_out=look).latest
    assert again is not None
    assert again.held_out == look
    assert "asked again at 200" in again.reason


@pytest.mark.parametrize(
    "changes",
    [{"looks": 2}, {"against": 20}, {"began_at": T0 - 1}, {"query_release": 38}],
    ids=["not the next look", "another rival", "of before", "retired"],
)
def test_a_look_at_something_else_decides_nothing(changes: dict[str, Any]) -> None:
    """A rollback, a promotion, or the judged release's end came between the look and the decision."""
    found = decided(SCARCE, held_out=held_out(0.0, -0.2, **changes))
    assert found.latest is not None
    assert (found.latest.verdict, found.held_out) == ("too_little", None)


def question(before: Decisions, *, now_ms: int = T0, **changes: Any) -> Question | None:
    """What held-out lists are to be asked."""
    return question_of(before, facts(EQUAL, **changes), now_ms=now_ms)


def test_what_is_in_force_is_asked_about_beside_what_a_step_back_goes_to() -> None:
    """Looks go on where they were left, also by another trainer, and at other lists when the rival is another kind."""
    assert question(begun()) == Question(IN_FORCE, 0, T0)
    assert question(begun(promoted=20, held_out=held_out(0.0, looks=3))) == Question(IN_FORCE, 20, T0, 3, 0)
    assert question(begun(held_out=held_out(0.0, looks=3))) == Question(IN_FORCE, 0, T0, 3, 300)
    later = T0 + RENEWED_MS + HOUR_MS
    assert question(begun(held_out=held_out(0.0, looks=3)), now_ms=later) == Question(IN_FORCE, 0, T0 + RENEWED_MS)


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        (begun(since=None), {}),
        (begun(), {"serving": serving(0)}),
        (begun(), {"serving": serving(withdrawn=IN_FORCE)}),
        (begun(collection="other"), {}),
        (begun(promoted=IN_FORCE), {}),
        (begun(held_out=held_out(0.0, looks=LOOKS)), {}),
        (begun(held_out=held_out(0.0, lists=MOST_LISTS // 2 + 1)), {}),
        (begun(), {"manifests": (manifest(3),)}),
    ],
    ids=["not begun", "untrained", "rolled back", "another base", "promoted itself", "asked enough", "enough lists",
         "retired"],
)  # fmt: skip
def test_nothing_is_asked_where_nothing_can_be_decided(before: Decisions, changes: dict[str, Any]) -> None:
    """No lists are read for it."""
    assert question(before, **changes) is None


def test_nobody_is_asked_before_anything_was_decided() -> None:
    """The comparison has no beginning yet."""
    assert question_of(None, facts(EQUAL), now_ms=T0) is None


def test_looks_go_on_where_nobody_is_in_the_anchor_arm() -> None:
    """The comparison of arms begins anew every hour; held-out lists of all hours of a fortnight are asked together."""
    found = begun()
    for hour in range(1, 3):
        found = decided(ALONE, found, now_ms=T0 + hour * HOUR_MS)
        assert (found.began_at, found.since) == (T0 + hour * HOUR_MS, ALONE)
        assert question(found, now_ms=T0 + hour * HOUR_MS) == Question(IN_FORCE, 0, T0)
    found = decided(ALONE, found, now_ms=T0 + 2 * HOUR_MS + 1, held_out=held_out(0.01))
    found = decided(ALONE, found, now_ms=T0 + 3 * HOUR_MS)
    assert question(found, now_ms=T0 + 3 * HOUR_MS) == Question(IN_FORCE, 0, T0, 1, 100)
    better = decided(ALONE, found, now_ms=T0 + 4 * HOUR_MS, held_out=held_out(0.2, worth=0.2, looks=2))
    assert better.latest is not None
    assert (better.latest.verdict, better.latest.basis, better.latest.began_at) == ("promoted", "held_out_lists", T0)
    assert (better.held_out, better.held_out_began_at) == (None, None), "it begins anew, and so do the looks"


def test_looks_without_an_anchor_arm_begin_anew_every_fortnight() -> None:
    """At the same turns that they would have had with one, whenever the comparison of arms began last."""
    found = begun()
    for now_ms in range(T0 + HOUR_MS, T0 + 2 * RENEWED_MS + HOUR_MS, HOUR_MS):
        found = decided(ALONE, found, now_ms=now_ms)
        began_at = T0 + RENEWED_MS * ((now_ms - T0) // RENEWED_MS)
        assert question(found, now_ms=now_ms) == Question(IN_FORCE, 0, began_at)
    now_ms = T0 + 2 * RENEWED_MS + HOUR_MS
    late = decided(ALONE, found, now_ms=now_ms, held_out=held_out(0.2, worth=0.2, began_at=T0 + RENEWED_MS))
    assert late.decided == (), "of the fortnight before"
    asked = decided(ALONE, found, now_ms=now_ms, held_out=held_out(0.2, worth=0.2, began_at=T0 + 2 * RENEWED_MS))
    assert [one.verdict for one in asked.decided] == ["promoted"]


@pytest.mark.parametrize("changes", [{"withdrawn": IN_FORCE, "withdrawn_above": 10}, {"collection": "other"}])
def test_looks_without_an_anchor_arm_end_with_the_comparison(changes: dict[str, Any]) -> None:
    """A rollback and another base model end them, as they do with one."""
    alone = decided(ALONE, now_ms=T0 + HOUR_MS)
    ended = decided(ALONE, alone, now_ms=T0 + HOUR_MS, serving=serving(**changes))
    assert (ended.since, ended.held_out_began_at) == (None, None)

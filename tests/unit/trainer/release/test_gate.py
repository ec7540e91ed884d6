"""What is done about live and anchor: promotion, step back, and what it takes until one is decided."""

from collections.abc import Sequence

import numpy as np
import pytest

from contracts.arms import ANCHOR, LIVE, PersonGroup
from contracts.comparison import GROUPS
from contracts.decisions import Candidate, Comparison, Decisions, HeldOutLook, Promotion
from contracts.releases import GoldenSet, ReleaseManifest, Rollback
from tests.support.gate_facts import (
    BAIT,
    BETTER,
    EQUAL,
    IN_FORCE,
    MANIFESTS,
    SCARCE,
    T0,
    WOBBLE,
    WORSE,
    begun,
    decided,
    facts,
    groups,
    manifest,
    serving,
)
from tests.support.gate_power import stream
from trainer.release.gate import HOUR_MS, RENEWED_MS, Counted, decide, owed_rollback


def added(*parts: Counted) -> Counted:
    """What is counted after several times, one after the other."""
    return {
        arm: [
            PersonGroup(**{name: sum(getattr(one, name) for one in same) for name in PersonGroup.model_fields})
            for same in zip(*(part[arm] for part in parts), strict=True)
        ]
        for arm in (LIVE, ANCHOR)
    }


def as_dict(counted: Counted) -> dict[str, tuple[PersonGroup, ...]]:
    """As decisions hold what was counted."""
    return {arm: tuple(one) for arm, one in counted.items()}


def test_better_than_the_anchor_is_promoted_and_the_comparison_begins_anew() -> None:
    """Equal lists from then on move nothing."""
    first = decided(BETTER)
    assert first.latest is not None
    assert (first.latest.verdict, first.latest.subject, first.promoted) == ("promoted", IN_FORCE, IN_FORCE)
    assert first.latest.comparisons[0].low > 0
    assert first.decided == (first.latest,)
    later = decided(added(BETTER, EQUAL), first, now_ms=T0 + HOUR_MS)
    assert later.latest is not None
    assert later.latest.verdict == "undecided"
    assert later.latest.live_searches == 1000 * GROUPS
    assert later.decided == first.decided


def test_what_is_promoted_served_for_most_of_the_comparison() -> None:
    """It was in force after a quarter to a half of the searches; the newest has hardly been seen."""
    found, counted = begun(), EQUAL
    for number in (10, 20, 30, 39):
        found = decided(counted, found, serving=serving(number))
        counted = added(counted, EQUAL)
    assert [one.query_release for one in found.candidates] == [20, 39]
    better = decided(added(counted, BETTER, BETTER, BETTER, BETTER), found)
    assert better.promoted == 39
    assert found.needed == {20, 39}
    kept = decided(added(counted, BETTER, BETTER), begun(candidates=found.candidates[:1], promoted=30))
    assert kept.promoted == 30, "a later one that was promoted stays"


def test_worse_than_the_anchor_steps_back_to_what_is_promoted_and_then_to_nothing() -> None:
    """The many good lists of before do not hide it. What is worse itself, later, is no place to go back to."""
    promoted = decided(BETTER, begun(candidates=(Candidate(searches=1, query_release=20),)))
    found = decided(added(BETTER, WORSE), promoted, now_ms=T0 + 3 * HOUR_MS)
    assert found.latest is not None
    assert (found.latest.verdict, found.latest.subject, found.promoted) == ("stepped_back", 20, 20)
    assert "clicked" in found.latest.reason
    assert "value" in found.latest.reason
    assert owed_rollback(found, serving(), None) == Rollback(query_release=20, requested_at=T0 + 3 * HOUR_MS)
    again = decided(added(BETTER, WORSE, WORSE), found, now_ms=T0 + 5 * HOUR_MS)
    assert again.latest is not None
    assert (again.latest.subject, again.promoted) == (0, 0)


def test_a_step_back_that_is_refused_goes_to_the_untrained_release() -> None:
    """The indexer could not verify the promoted one: what is worse is not left in force."""
    promoted = decided(BETTER, begun(candidates=(Candidate(searches=1, query_release=20),)))
    found = decided(added(BETTER, WORSE), promoted, now_ms=T0 + 3 * HOUR_MS)
    assert found.latest is not None
    answered = serving(rollback_answered=found.latest.decided_at)
    refused = decided(added(BETTER, WORSE), found, serving=answered, now_ms=T0 + 4 * HOUR_MS)
    assert refused.latest is not None
    assert (refused.latest.verdict, refused.latest.subject) == ("stepped_back", 0)
    assert "was refused" in refused.latest.reason
    assert (found.latest.basis, refused.latest.basis) == ("arms", None), "no other comparison was made"
    assert owed_rollback(refused, answered, None) == Rollback(query_release=0, requested_at=T0 + 4 * HOUR_MS)
    carried_out = serving(
        44, rollback_answered=found.latest.decided_at, withdrawn=IN_FORCE, withdrawn_above=20,
    )  # fmt: skip
    settled = decided(added(BETTER, WORSE), found, serving=carried_out, manifests=(*MANIFESTS, manifest(44)))
    assert settled.decided == found.decided


@pytest.mark.parametrize(
    ("promoted", "manifests"),
    [(0, MANIFESTS), (20, (manifest(IN_FORCE),)), (20, (manifest(20, base="other"), manifest(IN_FORCE))),
     (IN_FORCE, MANIFESTS)],
    ids=["none promoted", "retired", "of another base", "itself in force"],
)  # fmt: skip
def test_without_a_promoted_release_live_steps_back_to_the_untrained_one(
    promoted: int, manifests: Sequence[ReleaseManifest]
) -> None:
    """Nothing unproven is stepped back to."""
    found = decided(WORSE, begun(promoted=promoted), manifests=manifests)
    assert found.latest is not None
    assert (found.latest.verdict, found.latest.subject, found.promoted) == ("stepped_back", 0, 0)


def test_more_clicks_that_are_worth_less_step_back() -> None:
    """A list of bait is clicked more and bought less."""
    found = decided(BAIT)
    assert found.latest is not None
    assert found.latest.verdict == "stepped_back"
    assert "clicked" not in found.latest.reason


def test_undecided_says_how_much_more_it_takes_and_is_told_once_an_hour() -> None:
    """Nothing moves; the same value comes back until an hour has passed or the verdict changes."""
    near = {LIVE: groups(1000, 0.405, 1.0, noise=(-0.1, 0.1)), ANCHOR: groups(100, 0.4, 1.0, noise=(-0.1, 0.1))}
    first = decided(near)
    assert first.latest is not None
    assert first.latest.verdict == "undecided"
    assert "more searches would decide" in first.latest.reason
    assert (first.promoted, first.decided) == (0, ())
    assert decided(near, first, now_ms=T0 + HOUR_MS - 1) is first
    again = decided(near, first, now_ms=T0 + HOUR_MS)
    assert again.latest is not None
    assert again.latest.decided_at == T0 + HOUR_MS


def test_too_little_says_what_is_missing() -> None:
    """A small shop is told what could not be tested; an empty arm likewise."""
    found = decided(SCARCE).latest
    assert found is not None
    assert (found.verdict, found.anchor_searches) == ("too_little", 5 * GROUPS)
    assert f"{5 * GROUPS} anchor" in found.reason
    empty = decided({LIVE: [], ANCHOR: []}).latest
    assert empty is not None
    assert empty.verdict == "too_little"


def test_whatever_could_not_be_tested_is_said_with_what_it_takes() -> None:
    """Each metric of the arms, held-out lists and judged queries: as long as there are too few, and no longer."""
    found = decided(SCARCE).latest
    assert found is not None
    assert [one.split(",")[0].split(":")[0] for one in found.untested] == [
        "clicked",
        "purchased",
        "value",
        "held-out lists",
        "your own judged queries",
    ]
    assert found.untested[0] == (
        "clicked, live beside the anchor: 12,800 in 32,000 live searches and 64 in 160 anchor searches; "
        "it takes 40 in 300 searches of each arm, by 8 groups of persons"
    )
    judged = manifest(IN_FORCE).model_copy(update={"golden": GoldenSet(sha256="", queries=9, judgments=9)})
    look = HeldOutLook(
        query_release=IN_FORCE, against=0, began_at=T0, looked_at=T0, looks=1, lists=120,
        better_by=(Comparison(metric="clicked", live=1, anchor=1, value=0, low=-1, high=1),),
    )  # fmt: skip
    enough = decided(EQUAL, manifests=(*MANIFESTS[:-1], judged), held_out=look).latest
    assert enough is not None
    assert [one.split(",")[0] for one in enough.untested] == ["purchased"]
    alone = decided({LIVE: groups(1000, 0.4), ANCHOR: groups(0, 0.0)}).latest
    assert alone is not None
    assert alone.untested[0].startswith("arms: no search of the anchor arm was counted")


def test_nothing_is_compared_while_the_untrained_release_is_in_force() -> None:
    """There is nothing that could be better or worse."""
    assert decided(WORSE, serving=serving(0)).latest is None


def test_a_rollback_by_anyone_ends_the_comparison_until_its_lists_have_come_in() -> None:
    """Lists of what was taken back are no evidence about what is in force, and what was taken back is not promoted."""
    before = begun(promoted=30)
    back = serving(10, withdrawn=IN_FORCE, withdrawn_above=10)
    changed = decided(WORSE, before, serving=back, settle_ms=700)
    assert (changed.since, changed.began_at, changed.promoted, changed.latest) == (None, T0 + 700, 10, None)
    assert decided(WORSE, changed, serving=back, settle_ms=700, now_ms=T0 + 699) is changed
    behind = decided(WORSE, changed, serving=back, settle_ms=700, now_ms=T0 + 700, counted_to_ms=T0 + 699)
    assert behind is changed, "lists of before are still being counted"
    settled = decided(WORSE, changed, serving=back, now_ms=T0 + 700)
    assert settled.since == WORSE
    assert settled.latest is not None
    assert settled.latest.verdict == "too_little"


def test_what_was_taken_back_is_never_promoted() -> None:
    """Its record may stand on the topic for a while, with a number between those that may serve."""
    after = serving(60, withdrawn=IN_FORCE, withdrawn_above=10)
    before = begun(withdrawn=IN_FORCE, candidates=(Candidate(searches=1, query_release=20),))
    found = decided(BETTER, before, serving=after, manifests=(*MANIFESTS, manifest(60)))
    assert found.latest is not None
    assert (found.latest.verdict, found.promoted) == ("promoted", 60)


def test_a_count_that_begins_anew_begins_the_comparison_anew() -> None:
    """The topic was made anew: what had been counted is no part of what is counted now."""
    found = decided(
        EQUAL,
        begun(since=as_dict(added(BETTER, BETTER))),
        now_ms=T0 + 5,
    )
    assert (found.since, found.began_at) == (EQUAL, T0 + 5)
    assert found.latest is not None
    assert found.latest.verdict == "too_little"


@pytest.mark.parametrize(("number", "promoted"), [(30, 30), (0, 0), (31, 20), (41, 20)])
def test_a_person_may_vouch_for_a_release_that_is_there(number: int, promoted: int) -> None:
    """It is answered once; one that is not there, or newer than what is in force, changes nothing."""
    before = begun(promoted=20)
    asked = Promotion(query_release=number, requested_at=T0 + 9)
    found = decided(EQUAL, before, promotion=asked)
    assert (found.promoted, found.promotion_answered) == (promoted, T0 + 9)
    assert found.since == (EQUAL if number == promoted else {})
    if number == promoted:
        assert found.latest is not None
        assert (found.latest.by, found.latest.verdict, found.latest.subject) == ("person", "promoted", number)
        assert found.latest.basis is None, "no comparison decided"
    again = decided(EQUAL, found, promotion=asked)
    assert again.latest is not None
    assert (again.promoted, again.latest.by) == (promoted, "comparison")


def test_a_step_back_is_owed_until_it_was_asked_for() -> None:
    """Whoever takes over after a crash finds it owed; asked for or carried out, it is not asked for again."""
    asked = Rollback(query_release=3, requested_at=T0 + 50)
    found = decided(WORSE, rollback=asked)
    wanted = owed_rollback(found, serving(), asked)
    assert wanted == Rollback(query_release=0, requested_at=T0 + 51)
    assert owed_rollback(found, serving(), wanted) is None
    assert owed_rollback(found, serving(rollback_answered=T0 + 51), asked) is None
    assert owed_rollback(decided(BETTER), serving(), None) is None


def verdicts(counted: Sequence[Counted]) -> list[str]:
    """What is decided over a stream, as far as it moves something."""
    found: Decisions | None = None
    for hour, one in enumerate(counted):
        found = decide(found or begun(), facts(one), now_ms=T0 + hour * HOUR_MS)
    assert found is not None
    return [decision.verdict for decision in found.decided]


def test_equal_arms_are_hardly_ever_decided() -> None:
    """Of 40 pairs of equal arms of 50,000 lists, looked at 100 times, at most two end in anything."""
    rng = np.random.default_rng(11)
    moved = [verdicts(stream(rng, live=0.4, anchor=0.4, looks=100, lists=500)) for _ in range(40)]
    assert sum(map(bool, moved)) <= 2


@pytest.mark.parametrize("before", [0.4, 0.5], ids=["from the start", "after one that was promoted"])
def test_a_release_that_is_clearly_worse_is_undone_and_never_promoted(before: float) -> None:
    """A sixth fewer clicks are undone each time, within 30,000 lists."""
    rng = np.random.default_rng(12)
    for _ in range(10):
        good = stream(rng, live=before, anchor=0.4, looks=20 if before > 0.4 else 1, lists=1000)
        harmed = stream(rng, live=0.33, anchor=0.4, looks=30, lists=1000)
        moved = verdicts([*good, *(added(good[-1], one) for one in harmed)])
        assert moved[-1] == "stepped_back"
        assert ("promoted" in moved) == (before > 0.4)


def test_an_undecided_comparison_begins_anew_after_a_fortnight_if_there_is_plenty() -> None:
    """So many lists of before would hide that a release of now is worse; where little comes in, all is needed."""
    plenty = {LIVE: EQUAL[LIVE], ANCHOR: groups(1000, 0.4, 1.0, noise=WOBBLE)}
    assert decided(plenty, now_ms=T0 + RENEWED_MS - 1).began_at == T0
    renewed = decided(plenty, now_ms=T0 + RENEWED_MS)
    assert (renewed.began_at, renewed.since, renewed.decided) == (T0 + RENEWED_MS, plenty, ())
    assert decided(EQUAL, now_ms=T0 + RENEWED_MS).began_at == T0


def test_a_comparison_begins_once_lists_of_before_were_counted() -> None:
    """What was counted before anybody decided says nothing: releases of then may be gone."""
    first = decide(None, facts(WORSE, settle_ms=700), now_ms=T0)
    assert (first.since, first.began_at, first.latest) == (None, T0 + 700, None)
    assert decided(WORSE, first, now_ms=T0 + 700).since == WORSE
    assert decided(WORSE, first, now_ms=T0 - 10**9).since == WORSE, "a clock that was far ahead does not stop it"


def test_another_base_ends_the_comparison_and_its_releases_are_none_to_go_back_to() -> None:
    """Its collection is another one."""
    other = decided(WORSE, begun(collection="products-r0", promoted=20), settle_ms=700)
    assert (other.since, other.collection, other.promoted) == (None, "c", 20)
    asked = Promotion(query_release=20, requested_at=T0 + 9)
    of_before = (manifest(20, base="other"), manifest(IN_FORCE))
    assert decided(EQUAL, promotion=asked, manifests=of_before).promoted == 0


def test_lists_of_a_time_without_an_anchor_are_left_out() -> None:
    """Live alone goes with the season; what is compared is of one time."""
    alone = {LIVE: EQUAL[LIVE], ANCHOR: []}
    assert decided(alone, now_ms=T0 + HOUR_MS - 1).since == {}
    assert decided(alone, now_ms=T0 + HOUR_MS).since == alone


def test_what_descends_from_a_withdrawn_release_is_none_to_go_back_to() -> None:
    """A trainer may have made one more before it noticed."""
    after = serving(60, withdrawn=IN_FORCE, withdrawn_above=10)
    child = manifest(41).model_copy(update={"parent": IN_FORCE})
    before = begun(withdrawn=IN_FORCE, candidates=(Candidate(searches=1, query_release=41),))
    assert decided(BETTER, before, serving=after, manifests=(*MANIFESTS, child, manifest(60))).promoted == 60


def test_bait_is_not_promoted_before_its_worth_is_known() -> None:
    """Clicks are sure long before worth is: of streams with more clicks that are worth less none is promoted."""
    rng = np.random.default_rng(13)
    for _ in range(10):
        assert "promoted" not in verdicts(stream(rng, live=0.3, anchor=0.25, carts=0.0, looks=40, lists=2500))

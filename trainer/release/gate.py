"""What is done about live and anchor: a pure function of what was counted, what is in force and what was decided.

Better: a release is promoted, so that a step back goes to it. Worse: live steps back, to what is promoted, else to the
untrained release. Undecided: nothing moves, and it is told how much more it takes. After each of the first two the
comparison begins anew, so that lists of long ago, good or bad, say nothing about the present releases.

Where lists are held out, they have a say beside the arms (`trainer.release.looks`): a release that they say is surely
better than what live would step back to is promoted, one that is surely worse than that steps back. Arms need no model
of clicks, so they are heard first, and nothing is taken back for being worse than the untrained release while they say
that it is surely better. Held-out lists err, all looks of a fortnight together, as often as the arms.

Promoted is what is clicked more and is surely not worth much less; a step back follows where either is worse. An
interval holds at all times together (`contracts.comparison`): of forty comparisons of equal arms at most two end in a
step back, and one in a promotion, however often one looks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from contracts.arms import ANCHOR, COMPARED, LIVE, PersonGroup, compared
from contracts.comparison import BEST_AT, LEAST_EVENTS, LEAST_LISTS, mean_of
from contracts.decisions import (
    KEPT_DECISIONS,
    Candidate,
    Comparison,
    Decision,
    Decisions,
    HeldOutLook,
    Promotion,
    Verdict,
)
from contracts.releases import ReleaseManifest, Rollback, Serving, withdrawn
from trainer.release.looks import LOOKS, MOST_LISTS, Question
from trainer.release.untested import untested

CLICKS: Final = "clicked"
WORTH: Final = "value"
WORTH_MARGIN: Final = 0.05
"""Share of the anchor's worth per search that what is promoted may lose at most, by the interval: bait loses more."""
HOUR_MS: Final = 3_600_000
"""How often a verdict that moves nothing is told again."""
RENEWED_MS: Final = 14 * 24 * HOUR_MS
"""After which an undecided comparison begins anew: lists of before would hide that a release of now is worse."""
RENEWED_LISTS: Final = round(10 * BEST_AT)
"""Of the smaller arm, without which it does not: where little comes in, everything is needed."""
ANEW: Final[Mapping[str, Any]] = {"candidates": (), "held_out": None, "held_out_began_at": None}
"""What is forgotten where a comparison ends."""

Counted = Mapping[str, Sequence[PersonGroup]]
"""Arm -> what its groups of persons did."""
Basis = Literal["arms", "held_out_lists"]


class Facts(NamedTuple):
    """What a decision is made on.

    Args:
        counted: of the arms, since their counting began.
        serving: the releases in force.
        manifests: of the releases on `models`.
        counted_to_ms: up to when lists are counted, by the deadline of the newest.
        promotion: the last that a person asked for.
        rollback: likewise.
        settle_ms: how long lists of what is taken back go on coming in.
        held_out: what held-out lists said last, if they were asked.
    """

    counted: Counted
    serving: Serving
    manifests: Sequence[ReleaseManifest]
    counted_to_ms: int = -1
    promotion: Promotion | None = None
    rollback: Rollback | None = None
    settle_ms: int = 0
    held_out: HeldOutLook | None = None

    def moment(self, now_ms: int) -> int:
        """The time, or just after the last rollback: a step back must be later than what was asked for before."""
        asked = 0 if self.rollback is None else self.rollback.requested_at
        return max(now_ms, self.serving.rollback_answered + 1, asked + 1)

    def query_releases(self) -> dict[int, ReleaseManifest]:
        """The query releases that may serve: there, not taken back, over the base in force."""
        gone = withdrawn(self.serving, self.manifests)
        found = {one.release: one for one in self.manifests if one.kind == "query" and one.release not in gone}
        in_force = found.get(self.serving.query_release)
        return {number: one for number, one in found.items() if in_force and one.base_version == in_force.base_version}


def decide(before: Decisions | None, facts: Facts, *, now_ms: int) -> Decisions:
    """Decide on the release in force; the same value comes back where there is nothing new to tell.

    A step back is carried out by whoever finds that it is owed (`owed_rollback`).
    """
    serving, promotion = facts.serving, facts.promotion
    before = _begun(before, facts, now_ms)
    if promotion is not None and promotion.requested_at > before.promotion_answered:
        return _answered(before, promotion, facts, now_ms)
    if before.since is None or not serving.query_release:
        return before
    if (refused := _refused(before, serving)) is not None:
        reason = f"going back to query release {refused.subject} was refused"
        return _moved(before, _decision("stepped_back", 0, reason, before, facts, now_ms), facts, now_ms)
    return _compared(before, before.since, facts, now_ms)


def owed_rollback(decisions: Decisions, serving: Serving, asked: Rollback | None) -> Rollback | None:
    """Return the rollback that the last decision wants and nobody has asked for, or carried out, since."""
    last = decisions.decided[-1] if decisions.decided else None
    if last is None or last.verdict != "stepped_back" or not serving.query_release:
        return None
    known = max(serving.rollback_answered, 0 if asked is None else asked.requested_at)
    return Rollback(query_release=last.subject, requested_at=last.decided_at) if known < last.decided_at else None


def step_back_to(before: Decisions, facts: Facts) -> int:
    """Return the release that live steps back to: the promoted one if it is there and older than what is in force.

    Else 0, also if live stepped back to it before and is worse again: then it is not what it was promoted for.
    """
    last = before.decided[-1] if before.decided else None
    if last is not None and (last.verdict, last.subject) == ("stepped_back", before.promoted):
        return 0
    is_there = before.promoted in facts.query_releases() and before.promoted < facts.serving.query_release
    return before.promoted if is_there else 0


def question_of(before: Decisions | None, facts: Facts, *, now_ms: int) -> Question | None:
    """Return what held-out lists are to be asked now; None if there is nothing to compare, or they were asked enough.

    The release in force is judged itself, beside the one that a step back would go to. Lists count of the present
    comparison, and of one that lasts longer only those of its present fortnight: then all looks begin anew, too. They
    go on where only the arms' comparison begins anew, for want of an anchor.
    """
    number = facts.serving.query_release
    is_compared = before is not None and before.since is not None and before.collection == facts.serving.collection
    if before is None or not is_compared or not number or before.withdrawn != facts.serving.withdrawn:
        return None
    against = step_back_to(before, facts)
    if number not in facts.query_releases() or (not against and before.promoted == number):
        return None
    last = _last_look(before, now_ms)
    asked = Question(number, against, _fortnight_began_at(before, now_ms))
    if last is not None:
        # Lists that say something of another two releases are others: counted anew, while the looks go on.
        same_lists = bool(last.against) == bool(against)
        asked = asked._replace(looks=last.looks, looked_lists=last.lists if same_lists else 0)
    return asked if asked.looks < LOOKS and 2 * asked.looked_lists <= MOST_LISTS else None


def _begun(before: Decisions | None, facts: Facts, now_ms: int) -> Decisions:
    """See to the beginning of the comparison: what ends one, and what begins one."""
    serving = facts.serving
    settled_ms = now_ms + facts.settle_ms
    again = {**ANEW, "since": dict(facts.counted), "began_at": now_ms}
    if before is None:
        return Decisions(began_at=settled_ms, withdrawn=serving.withdrawn, collection=serving.collection)
    if (before.withdrawn, before.collection) != (serving.withdrawn, serving.collection):
        # Once the lists of what was in force have come in; of what was taken back nothing is promoted any more.
        is_rollback = before.withdrawn != serving.withdrawn
        promoted = min(before.promoted, serving.withdrawn_above) if is_rollback else before.promoted
        changed = {**ANEW, "since": None, "began_at": settled_ms, "promoted": promoted}
        now = {"withdrawn": serving.withdrawn, "collection": serving.collection}
        return before.model_copy(update={**changed, **now})
    if before.since is None:
        is_time = min(now_ms, facts.counted_to_ms) >= before.began_at or before.began_at > settled_ms
        return before.model_copy(update=again) if is_time else before
    sides = _sides(facts.counted, before.since)
    if sides is None:
        return before.model_copy(update=again)
    fewest = min(_searches(side) for side in sides.values())
    is_old = now_ms - before.began_at >= RENEWED_MS and fewest >= RENEWED_LISTS
    # The lists of a time in which nobody was in one of the arms have nothing to be compared with; held-out ones have.
    is_alone = not fewest and now_ms - before.began_at >= HOUR_MS
    looks = {"held_out": before.held_out, "held_out_began_at": before.looks_began_at} if is_alone else {}
    return before.model_copy(update={**again, **looks}) if is_old or is_alone else before


def _fortnight_began_at(before: Decisions, now_ms: int) -> int:
    """When the present fortnight of the looks at held-out lists began."""
    first = before.looks_began_at
    return first + RENEWED_MS * max(0, (now_ms - first) // RENEWED_MS)


def _last_look(before: Decisions, now_ms: int) -> HeldOutLook | None:
    """The last look of the present fortnight."""
    look = before.held_out
    return look if look is not None and look.began_at == _fortnight_began_at(before, now_ms) else None


def _compared(before: Decisions, since: Counted, facts: Facts, now_ms: int) -> Decisions:
    sides = _sides(facts.counted, since) or {}
    found = {metric: one for metric in COMPARED if (one := _comparison(metric, sides[LIVE], sides[ANCHOR])) is not None}
    before = _with_candidate(before, sum(map(_searches, sides.values())), facts.serving.query_release)
    look = _new_look(before, facts, now_ms)
    before = before if look is None else before.model_copy(update={"held_out": look})
    last = _last_look(before, now_ms)
    clicks, worth = found.get(CLICKS), found.get(WORTH)
    worse = [one for one in (clicks, worth) if one is not None and one.high < 0]
    number = facts.serving.query_release
    basis: Basis = "arms"
    if worse:
        subject, reason = step_back_to(before, facts), f"live is worse than the anchor: {_told(*worse)}"
        decision = _decision("stepped_back", subject, reason, before, facts, now_ms)
    elif look is not None and (lost := _lost(look, clicks)):
        reason = f"{_held_out(look)} say that it is worse: {_told(*lost)}"
        decision, basis = _decision("stepped_back", look.against, reason, before, facts, now_ms), "held_out_lists"
    elif clicks is not None and _is_better(clicks, worth):
        subject = _proven(before, facts)
        reason = f"live is better than the anchor: {_told(*(one for one in (clicks, worth) if one))}"
        decision = _decision("promoted", subject, reason, before, facts, now_ms)
    elif look is not None and (won := _won(look)):
        reason = f"{_held_out(look)} say that it is better: {_told(*won)}"
        decision = _decision("promoted", look.query_release, reason, before, facts, now_ms)
        basis = "held_out_lists"
    elif clicks is None:
        few = f"{_searches(sides[LIVE]):,} live and {_searches(sides[ANCHOR]):,} anchor searches"
        needed = f"each arm needs {LEAST_LISTS} searches, {LEAST_EVENTS} of them with a click, of several persons"
        reason = f"{few} say too little: {needed}{_open(last)}"
        decision = _decision("too_little", number, reason, before, facts, now_ms)
    else:
        reason = _undecided(clicks, worth) + _open(last)
        decision = _decision("undecided", number, reason, before, facts, now_ms)
    counted = {"live_searches": _searches(sides[LIVE]), "anchor_searches": _searches(sides[ANCHOR])}
    missed = untested(sides, found, held_out=last, in_force=facts.query_releases().get(number))
    told = {"comparisons": tuple(found.values()), "held_out": last, "basis": basis, "untested": tuple(missed)}
    rests_on = {"began_at": look.began_at} if look is not None and basis == "held_out_lists" else {}
    decision = decision.model_copy(update={**counted, **told, **rests_on})
    if decision.verdict in {"promoted", "stepped_back"}:
        return _moved(before, decision, facts, now_ms)
    latest = before.latest
    is_known = latest is not None and (latest.verdict, latest.began_at) == (decision.verdict, before.began_at)
    if latest is not None and is_known and look is None and 0 <= now_ms - latest.decided_at < HOUR_MS:
        return before
    return before.model_copy(update={"latest": decision})


def _new_look(before: Decisions, facts: Facts, now_ms: int) -> HeldOutLook | None:
    """The look that was made since the last decision, if what it is of can still be decided on."""
    look = facts.held_out
    asked = None if look is None else question_of(before, facts, now_ms=now_ms)
    if look is None or asked is None or look.looks != asked.looks + 1:
        return None
    is_same = (look.against, look.began_at) == (asked.against, asked.began_at)
    return look if is_same and look.query_release in facts.query_releases() else None


def _lost(look: HeldOutLook, clicks: Comparison | None) -> list[Comparison]:
    """By what held-out lists say that a release is surely worse, unless the arms surely say better of the same two."""
    if not look.against and clicks is not None and clicks.low > 0:
        return []
    return [one for one in look.worse_by if one.metric in {CLICKS, WORTH} and one.high < 0]


def _won(look: HeldOutLook) -> list[Comparison]:
    """By what held-out lists say that a release is surely better, and surely not worth much less."""
    found = {one.metric: one for one in look.better_by}
    clicks, worth = found.get(CLICKS), found.get(WORTH)
    return [clicks, worth] if clicks and worth and _is_better(clicks, worth) else []


def _is_better(clicks: Comparison, worth: Comparison | None) -> bool:
    return clicks.low > 0 and worth is not None and worth.low > -WORTH_MARGIN * worth.anchor


def _held_out(look: HeldOutLook) -> str:
    other = f"query release {look.against}" if look.against else "the untrained one"
    return f"{look.lists:,} held-out lists, with query release {look.query_release} beside {other},"


def _open(look: HeldOutLook | None) -> str:
    """What held-out lists said last, and when they are asked again; nothing if they were not this fortnight."""
    if look is None:
        return ""
    is_last = look.looks == LOOKS or 2 * look.lists > MOST_LISTS
    again = "not asked again before the next fortnight" if is_last else f"asked again at {2 * look.lists:,}"
    said = f"say {_told(*look.better_by)}" if look.better_by else "say too little"
    return f"; {_held_out(look)} {said}, {again}"


def _undecided(clicks: Comparison, worth: Comparison | None) -> str:
    """Why nothing moves, and what would decide it."""
    if clicks.low > 0:
        told = "nothing is known of worth yet" if worth is None else _told(worth)
        return f"live is clicked more ({_told(clicks)}), and may be worth less: {told}"
    needed = "" if clicks.more_lists is None else f"; about {clicks.more_lists:,} more searches would decide"
    return f"live and anchor are not told apart: {_told(clicks)}{needed}"


def _with_candidate(before: Decisions, searches: int, query_release: int) -> Decisions:
    """Note the release in force whenever the searches that were compared have doubled."""
    known = before.candidates
    if not searches or (known and searches < 2 * known[-1].searches):
        return before
    newest = Candidate(searches=searches, query_release=query_release)
    return before.model_copy(update={"candidates": (*known[-1:], newest)})


def _proven(before: Decisions, facts: Facts) -> int:
    """The release that is promoted: in force after a quarter to a half of the searches that were compared.

    The comparison is about all releases of its time, the last of which few shoppers have seen.
    """
    known = facts.query_releases()
    there = [one.query_release for one in before.candidates if one.query_release in known]
    return max(there[0] if there else facts.serving.query_release, before.promoted if before.promoted in known else 0)


def _answered(before: Decisions, promotion: Promotion, facts: Facts, now_ms: int) -> Decisions:
    """Take up what a person vouches for, if it may serve."""
    number = promotion.query_release
    asked = before.model_copy(update={"promotion_answered": promotion.requested_at})
    if number > facts.serving.query_release or (number and number not in facts.query_releases()):
        return asked
    decision = _decision("promoted", number, f"a person vouches for query release {number}", before, facts, now_ms)
    decision = decision.model_copy(update={"by": "person"})
    settles = before.since is None
    return _noted(asked, decision) if settles else _moved(asked, decision, facts, now_ms)


def _refused(before: Decisions, serving: Serving) -> Decision | None:
    """Return the step back that the indexer answered and did not carry out, None if there is none."""
    last = before.decided[-1] if before.decided else None
    if last is None or last.verdict != "stepped_back" or not last.subject:
        return None
    is_answered = serving.rollback_answered >= last.decided_at
    return last if is_answered and serving.withdrawn < last.query_release else None


def _decision(verdict: Verdict, subject: int, reason: str, before: Decisions, facts: Facts, now_ms: int) -> Decision:
    return Decision(
        verdict=verdict,
        decided_at=facts.moment(now_ms),
        query_release=facts.serving.query_release,
        subject=subject,
        reason=reason,
        began_at=before.began_at,
    )


def _moved(before: Decisions, decision: Decision, facts: Facts, now_ms: int) -> Decisions:
    """Note a decision, after which the comparison begins anew."""
    begun = before.model_copy(update={**ANEW, "since": dict(facts.counted), "began_at": now_ms})
    return _noted(begun, decision)


def _noted(before: Decisions, decision: Decision) -> Decisions:
    decided = (*before.decided, decision)[-KEPT_DECISIONS:]
    return before.model_copy(update={"latest": decision, "decided": decided, "promoted": decision.subject})


def _comparison(metric: str, live: Sequence[PersonGroup], anchor: Sequence[PersonGroup]) -> Comparison | None:
    found = compared(metric, live, anchor)
    if found is None:
        return None
    ours, theirs = (mean_of([group.sums(metric) for group in side]).value for side in (live, anchor))
    return Comparison(metric=metric, live=ours, anchor=theirs, **found._asdict())


def _told(*comparisons: Comparison) -> str:
    return " and ".join(
        f"{one.metric} {one.live:.4f} against {one.anchor:.4f} ({one.low:+.4f} to {one.high:+.4f})"
        for one in comparisons
    )


def _searches(groups: Sequence[PersonGroup]) -> int:
    return sum(group.searches for group in groups)


def _sides(counted: Counted, since: Counted) -> dict[str, list[PersonGroup]] | None:
    """What was counted since, by arm; None if the counting began anew, so that what it was says nothing any more."""
    sides = {}
    for arm in (LIVE, ANCHOR):
        now = counted.get(arm, ())
        then = since.get(arm) or (PersonGroup(),) * len(now)
        if len(now) != len(then):
            return None
        more = [
            {name: getattr(one, name) - getattr(was, name) for name in PersonGroup.model_fields}
            for one, was in zip(now, then, strict=True)
        ]
        if any(value < 0 for group in more for value in group.values()):
            return None
        sides[arm] = [PersonGroup(**group) for group in more]
    return sides

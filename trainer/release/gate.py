"""What is done about live and anchor: a pure function of what was counted, what is in force and what was decided.

Better: the release is promoted, so that a step back goes to it. Worse: live steps back, to what is promoted, else to
the untrained release. Undecided: nothing moves, and it is told how much more it takes. After each of the first two the
comparison begins anew, so that lists of long ago, good or bad, say nothing about the present releases.

Promoted is what is clicked more and is not worth less; a step back follows where either is worse. An interval holds at
all times together (`contracts.comparison`): of forty comparisons of equal arms at most two end in a step back, and one
in a promotion, however often one looks. One that is undecided for a fortnight begins anew.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from contracts.arms import ANCHOR, COMPARED, LIVE, PersonGroup, compared
from contracts.comparison import LEAST_EVENTS, LEAST_LISTS, mean_of
from contracts.decisions import KEPT_DECISIONS, Comparison, Decision, Decisions, Promotion, Verdict
from contracts.releases import ReleaseManifest, Rollback, Serving

CLICKS: Final = "clicked"
WORTH: Final = "value"
HOUR_MS: Final = 3_600_000
"""How often a verdict that moves nothing is told again."""
RENEWED_MS: Final = 14 * 24 * HOUR_MS
"""After which an undecided comparison begins anew: lists of before would hide that a release of now is worse."""

Counted = Mapping[str, Sequence[PersonGroup]]
"""Arm -> what its groups of persons did."""


class Facts(NamedTuple):
    """What a decision is made on.

    Args:
        counted: of the arms, since their counting began.
        serving: the releases in force.
        manifests: of the releases on `models`.
        promotion: the last that a person asked for.
        rollback: likewise.
        settle_ms: how long lists of what is taken back go on coming in.
    """

    counted: Counted
    serving: Serving
    manifests: Sequence[ReleaseManifest]
    promotion: Promotion | None = None
    rollback: Rollback | None = None
    settle_ms: int = 0

    def moment(self, now_ms: int) -> int:
        """The time, or just after the last rollback: a step back must be later than what was asked for before."""
        asked = 0 if self.rollback is None else self.rollback.requested_at
        return max(now_ms, self.serving.rollback_answered + 1, asked + 1)

    def query_releases(self) -> dict[int, ReleaseManifest]:
        """The query releases that are there and were not taken back."""
        gone = range(self.serving.withdrawn_above + 1, self.serving.withdrawn + 1)
        return {one.release: one for one in self.manifests if one.kind == "query" and one.release not in gone}


def decide(before: Decisions | None, facts: Facts, *, now_ms: int) -> Decisions:
    """Decide on the release in force; the same value comes back where there is nothing new to tell.

    A step back is carried out by whoever finds that it is owed (`owed_rollback`).
    """
    serving = facts.serving
    if before is None:
        before = Decisions(began_at=now_ms, since={}, withdrawn=serving.withdrawn)
    elif before.withdrawn != serving.withdrawn:
        before = _after_rollback(before, facts, now_ms)
    elif before.since is None and now_ms >= before.began_at:
        before = before.model_copy(update={"since": dict(facts.counted)})
    elif before.since is not None and _began_anew(facts.counted, before.since):
        before = before.model_copy(update={"since": {}, "began_at": now_ms})
    elif now_ms - before.began_at >= RENEWED_MS:
        before = before.model_copy(update={"since": dict(facts.counted), "began_at": now_ms})
    promotion = facts.promotion
    if promotion is not None and promotion.requested_at > before.promotion_answered:
        return _answered(before, promotion, facts, now_ms)
    if before.since is None or not serving.query_release:
        return before
    return _compared(before, before.since, facts, now_ms)


def owed_rollback(decisions: Decisions, serving: Serving, asked: Rollback | None) -> Rollback | None:
    """Return the rollback that the last decision wants and nobody has asked for, or carried out, since."""
    last = decisions.decided[-1] if decisions.decided else None
    if last is None or last.verdict != "stepped_back" or not serving.query_release:
        return None
    known = max(serving.rollback_answered, 0 if asked is None else asked.requested_at)
    return Rollback(query_release=last.subject, requested_at=last.decided_at) if known < last.decided_at else None


def _compared(before: Decisions, since: Counted, facts: Facts, now_ms: int) -> Decisions:
    sides = {arm: _less(facts.counted.get(arm, ()), since.get(arm, ())) for arm in (LIVE, ANCHOR)}
    found = {metric: one for metric in COMPARED if (one := _comparison(metric, sides[LIVE], sides[ANCHOR])) is not None}
    worse = [one for name in (CLICKS, WORTH) if (one := found.get(name)) is not None and one.high < 0]
    better = CLICKS in found and found[CLICKS].low > 0
    searches = {arm: sum(group.searches for group in groups) for arm, groups in sides.items()}
    verdict, reason, subject = _verdict(before, found, worse=worse, better=better, searches=searches, facts=facts)
    latest = before.latest
    moves = verdict in {"promoted", "stepped_back"}
    if (
        not moves
        and latest is not None
        and (latest.verdict, latest.began_at) == (verdict, before.began_at)
        and now_ms - latest.decided_at < HOUR_MS
    ):
        return before
    decision = Decision(
        verdict=verdict,
        decided_at=facts.moment(now_ms),
        query_release=facts.serving.query_release,
        subject=subject,
        reason=reason,
        began_at=before.began_at,
        live_searches=searches[LIVE],
        anchor_searches=searches[ANCHOR],
        comparisons=tuple(found.values()),
    )
    if not moves:
        return before.model_copy(update={"latest": decision})
    promoted = subject if verdict == "promoted" else min(before.promoted, subject)
    return _moved(before, decision, promoted=promoted, since=dict(facts.counted), began_at=now_ms)


def _verdict(
    before: Decisions,
    found: Mapping[str, Comparison],
    *,
    worse: Sequence[Comparison],
    better: bool,
    searches: Mapping[str, int],
    facts: Facts,
) -> tuple[Verdict, str, int]:
    """The verdict, its reason, and the release that it is about."""
    number = facts.serving.query_release
    if worse:
        back_to = step_back_to(before.promoted, facts)
        told = " and ".join(map(_told, worse))
        return "stepped_back", f"live is worse than the anchor: {told}", back_to
    if better:
        subject = _proven(before, facts)
        return "promoted", f"live is better than the anchor: {_told(found[CLICKS])}", subject
    if CLICKS not in found:
        counted = f"{searches[LIVE]:,} live and {searches[ANCHOR]:,} anchor searches"
        needed = f"each arm needs {LEAST_LISTS} searches, {LEAST_EVENTS} of them with a click, of several persons"
        return "too_little", f"{counted} say too little: {needed}", number
    more = found[CLICKS].more_lists
    needed = "" if more is None else f"; about {more:,} more searches would decide"
    return "undecided", f"live and anchor are not told apart: {_told(found[CLICKS])}{needed}", number


def step_back_to(promoted: int, facts: Facts) -> int:
    """Return the release that live steps back to: the promoted one if it is older than the one in force, else 0.

    It must still be there, over the base in force.
    """
    known, number = facts.query_releases(), facts.serving.query_release
    if number not in known or promoted not in known or not promoted < number:
        return 0
    return promoted if known[promoted].base_version == known[number].base_version else 0


def _proven(before: Decisions, facts: Facts) -> int:
    """The release that is promoted: the newest of the first half of what was compared, else the one in force.

    The comparison is about all releases of its time, the last of which few shoppers have seen.
    """
    in_force = facts.serving.query_release
    made = {number: one.created_at for number, one in facts.query_releases().items() if number <= in_force}
    middle = (before.began_at + max(made.values(), default=before.began_at)) // 2
    first_half = [number for number, created_at in made.items() if created_at <= middle]
    return max((*first_half, before.promoted)) if first_half else in_force


def _after_rollback(before: Decisions, facts: Facts, now_ms: int) -> Decisions:
    """Begin anew once the lists of what was taken back have come in; nothing of that is promoted any more."""
    serving = facts.serving
    promoted = min(before.promoted, serving.withdrawn_above)
    began_at = now_ms + facts.settle_ms
    changed = {"withdrawn": serving.withdrawn, "since": None, "began_at": began_at, "promoted": promoted}
    return before.model_copy(update=changed)


def _answered(before: Decisions, promotion: Promotion, facts: Facts, now_ms: int) -> Decisions:
    """Take up what a person vouches for, if it is there."""
    number = promotion.query_release
    asked = before.model_copy(update={"promotion_answered": promotion.requested_at})
    if number > facts.serving.query_release or (number and number not in facts.query_releases()):
        return asked
    decision = Decision(
        verdict="promoted",
        decided_at=now_ms,
        query_release=facts.serving.query_release,
        subject=number,
        by="person",
        reason=f"a person vouches for query release {number}",
        began_at=before.began_at,
    )
    return _moved(asked, decision, promoted=number, since=before.since, began_at=before.began_at)


def _moved(before: Decisions, decision: Decision, *, promoted: int, since: Counted | None, began_at: int) -> Decisions:
    decided = (*before.decided, decision)[-KEPT_DECISIONS:]
    changed = {"latest": decision, "decided": decided, "promoted": promoted, "since": since, "began_at": began_at}
    return before.model_copy(update=changed)


def _comparison(metric: str, live: Sequence[PersonGroup], anchor: Sequence[PersonGroup]) -> Comparison | None:
    found = compared(metric, live, anchor)
    if found is None:
        return None
    ours, theirs = (mean_of([group.sums(metric) for group in side]).value for side in (live, anchor))
    return Comparison(metric=metric, live=ours, anchor=theirs, **found._asdict())


def _told(one: Comparison) -> str:
    return f"{one.metric} {one.live:.4f} against {one.anchor:.4f} ({one.low:+.4f} to {one.high:+.4f})"


def _less(counted: Sequence[PersonGroup], since: Sequence[PersonGroup]) -> list[PersonGroup]:
    """What was counted since."""
    if not since:
        return [*counted]
    return [
        PersonGroup(**{name: max(0, getattr(now, name) - getattr(then, name)) for name in PersonGroup.model_fields})
        for now, then in zip(counted, since, strict=True)
    ]


def _began_anew(counted: Counted, since: Counted) -> bool:
    """Whether fewer lists are counted than before: the counting began anew, and what it was says nothing any more."""
    return any(
        sum(one.searches for one in counted.get(arm, ())) < sum(one.searches for one in groups)
        for arm, groups in since.items()
    )

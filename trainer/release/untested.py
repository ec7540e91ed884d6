"""What could not be tested when it was decided, and what each test takes: a small shop has to know what it goes by.

As long as nothing could be compared and nothing was promoted by comparison, a deployment is bootstrapping: releases
serve because they are safe, not because they proved better.
"""

from collections.abc import Iterator, Mapping, Sequence

from contracts.arms import ANCHOR, COMPARED, LIVE, PersonGroup, largest_of
from contracts.comparison import LEAST_EVENTS, LEAST_LISTS, LEAST_SPREAD
from contracts.decisions import Comparison, HeldOutLook
from contracts.releases import ReleaseManifest


def untested(
    sides: Mapping[str, Sequence[PersonGroup]],
    found: Mapping[str, Comparison],
    *,
    held_out: HeldOutLook | None,
    in_force: ReleaseManifest | None,
) -> Iterator[str]:
    """Yield each test that could not be made, in a sentence.

    Args:
        sides: arm -> what its persons did since the comparison began.
        found: metric -> the comparison of the arms, of those that there is enough of.
        held_out: the last look at held-out lists, if there was one.
        in_force: manifest of the query release in force.
    """
    anchored = sum(group.searches for group in sides[ANCHOR])
    if not anchored:
        yield "arms: no search of the anchor arm was counted; MILLRACE_ANCHOR_SHARE gives it a share"
    else:
        yield from (_too_few(metric, sides) for metric in COMPARED if metric not in found)
    if held_out is None:
        yield "held-out lists: none were asked this fortnight; it takes 100 of them, and MILLRACE_HOLDOUT_SHARE above 0"
    elif not held_out.better_by:
        yield f"held-out lists: {held_out.lists:,} say too little; they are asked again whenever they have doubled"
    if in_force is None or in_force.golden is None:
        yield "your own judged queries: this release was measured by none; `millrace golden import` takes them"


def _too_few(metric: str, sides: Mapping[str, Sequence[PersonGroup]]) -> str:
    told = []
    for arm in (LIVE, ANCHOR):
        sums = [group.sums(metric) for group in sides[arm]]
        told.append(f"{sum(one.total for one in sums):,.0f} in {sum(one.lists for one in sums):,} {arm} searches")
    least = LEAST_EVENTS * largest_of(metric)
    takes = f"{least:g} in {LEAST_LISTS} searches of each arm, by {LEAST_SPREAD:g} groups of persons"
    return f"{metric}, live beside the anchor: {' and '.join(told)}; it takes {takes}"

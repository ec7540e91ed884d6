"""What a release must prove before it is let out: that it is finite, and a small step from what shoppers are served.

If the shop judged queries itself, it must not rank them worse, either. Whether it is better is the prior's gate to say,
by left-out queries. A release that is merely no better does no harm for fifteen seconds; one that runs away does.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from contracts.releases import OVERLAP, GoldenSet, SafetyCheck
from trainer.learner import Sample, Towers, mixed
from trainer.release.golden import GoldenBar, GoldenSample

SHARES: Final = (1.0, 0.5, 0.25, 0.125)
"""Shares of the way from the release in force to the new weights that are tried, largest first."""
TOP: Final = 10
LEAST_OVERLAP: Final = 0.5
"""Share of the first ten answers that has to stay, on average over recent queries."""


class Verdict(NamedTuple):
    """What the checks said of a release."""

    towers: Towers | None
    """What may be released; None if not even the smallest step passed."""
    share: float
    """Which share of the way to the new weights it went."""
    checks: tuple[SafetyCheck, ...]
    golden: GoldenSet | None = None
    """The judged queries that it was measured by."""


def first_safe(
    in_force: Towers,
    wanted: Towers,
    sample: Sample,
    *,
    golden: GoldenSample | None = None,
    overlap: float = LEAST_OVERLAP,
    shares: Sequence[float] = SHARES,
) -> Verdict:
    """Find the largest step toward the wanted towers that passes every check; weights are linear, so a share is safe.

    Args:
        in_force: what shoppers are served.
        wanted: what was learned; its product tower is the one in force if only queries get a release.
        sample: recent queries and the products that they showed.
        golden: the shop's own judged queries, if there are any.
        overlap: least share of the first ten answers that stays.
        shares: shares of the way, largest first.
    """
    before = sample.scores(in_force)
    bar = None if golden is None else GoldenBar.of(golden, in_force)
    verdict = Verdict(None, 0.0, ())
    for share in shares:
        towers = mixed(in_force, wanted, share=share)
        if not _finite(towers):
            return Verdict(None, share, (SafetyCheck(name="finite", value=0.0, limit=1.0, passed=False),))
        kept = overlap_at_top(before, sample.scores(towers))
        checks = (
            SafetyCheck(name="finite", value=1.0, limit=1.0, passed=True),
            SafetyCheck(name=OVERLAP, value=kept, limit=overlap, passed=kept >= overlap),
            *(() if bar is None else (bar.check(towers),)),
        )
        is_safe = all(check.passed for check in checks)
        verdict = Verdict(towers if is_safe else None, share, checks, golden and golden.golden)
        if verdict.towers is not None:
            break
    return verdict


def overlap_at_top(before: np.ndarray, after: np.ndarray, *, top: int = TOP) -> float:
    """Mean share of each row's `top` highest scores that stay; 1 if no choice is to be made.

    >>> overlap_at_top(np.array([[3.0, 2.0, 1.0]]), np.array([[3.0, 1.0, 2.0]]), top=2)
    0.5
    """
    if before.size == 0 or before.shape[1] <= top:
        return 1.0
    first = np.argpartition(-before, top - 1, axis=1)[:, :top]
    second = np.argpartition(-after, top - 1, axis=1)[:, :top]
    return float(np.mean([len(np.intersect1d(a, b)) / top for a, b in zip(first, second, strict=True)]))


def _finite(towers: Towers) -> bool:
    return all(np.isfinite(tensor).all() for tower in towers for tensor in tower.tensors().values())

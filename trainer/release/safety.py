"""What a release must prove before it is let out: that it is a small, finite step from what shoppers are served now.

Whether it is better is not asked here: a release that is merely no better does no harm for fifteen seconds, one that
runs away does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from contracts.releases import SafetyCheck
from towers.heads import Towers, apply_head, head_tensors, mixed
from trainer.learner import Sample

SHARES: Final = (1.0, 0.5, 0.25, 0.125)
"""Shares of the way from the release in force to the new weights that are tried, largest first."""

TOP: Final = 10


@dataclass(frozen=True, slots=True)
class SafetyCaps:
    """How far one release may go. Cosines say how far vectors moved, overlap says whether answers changed.

    In simulated shops a normal query release moves the 95th percentile of query vectors by .01-.06 and keeps .79-.91
    of the first ten answers; a normal product release moves products by .2-.3, most of it a shift that all share
    (overlap .82-.87). The caps are about twice that: they stop a runaway, not learning.

    Args:
        query_drift_p95: largest 95th percentile of 1 - cosine between a query's old and new vector.
        product_drift_p95: the same of products.
        overlap: least mean share of the first ten answers that stay.
    """

    query_drift_p95: float = 0.15
    product_drift_p95: float = 0.5
    overlap: float = 0.5


class Verdict(NamedTuple):
    """What the checks said of a release."""

    towers: Towers | None
    """What may be released; None if not even the smallest step passed."""
    share: float
    """Which share of the way to the new weights it went."""
    query_drift_mean: float
    product_drift_mean: float
    checks: tuple[SafetyCheck, ...]


def first_safe(
    in_force: Towers, wanted: Towers, sample: Sample, *, caps: SafetyCaps, shares: Sequence[float] = SHARES
) -> Verdict:
    """Find the largest step toward the wanted towers that passes every check.

    Args:
        in_force: what shoppers are served.
        wanted: what training arrived at; its product head is the one in force for a query release.
        sample: recent queries and products of the catalogue.
        caps: how far one release may go.
        shares: shares of the way, largest first.
    """
    verdict = Verdict(None, 0.0, 0.0, 0.0, ())
    for share in shares:
        towers = Towers(
            mixed(in_force.query, wanted.query, share=share), mixed(in_force.product, wanted.product, share=share)
        )
        verdict = judge(in_force, towers, sample, caps=caps)._replace(share=share)
        if verdict.towers is not None:
            return verdict
    return verdict


def judge(before: Towers, after: Towers, sample: Sample, *, caps: SafetyCaps) -> Verdict:
    """Run the checks on one step."""
    if not _finite(after):
        return Verdict(None, 1.0, 0.0, 0.0, (SafetyCheck(name="finite", value=0.0, limit=1.0, passed=False),))
    queries = apply_head(before.query, sample.queries), apply_head(after.query, sample.queries)
    products = apply_head(before.product, sample.products), apply_head(after.product, sample.products)
    query_drift, product_drift = drift(*queries), drift(*products)
    overlap = overlap_at_top(queries[0] @ products[0].T, queries[1] @ products[1].T)
    checks = (
        SafetyCheck(name="finite", value=1.0, limit=1.0, passed=True),
        _at_most("query_drift_p95", _p95(query_drift), caps.query_drift_p95),
        _at_most("product_drift_p95", _p95(product_drift), caps.product_drift_p95),
        SafetyCheck(name="overlap_at_10", value=overlap, limit=caps.overlap, passed=overlap >= caps.overlap),
    )
    safe = all(check.passed for check in checks)
    return Verdict(after if safe else None, 1.0, _mean(query_drift), _mean(product_drift), checks)


def drift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """1 - cosine between unit rows, within [0, 1], (n,).

    >>> drift(np.eye(2, dtype=np.float32), np.array([[1, 0], [0.8, 0.6]], dtype=np.float32)).round(3).tolist()
    [0.0, 0.4000000059604645]
    """
    cosines: np.ndarray = (before * after).sum(axis=1)
    moved: np.ndarray = np.clip(1 - cosines, 0.0, 1.0)
    return moved


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
    return all(np.isfinite(weights).all() for head in towers for weights in head_tensors(head).values())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _p95(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.95)) if len(values) else 0.0


def _at_most(name: str, value: float, limit: float) -> SafetyCheck:
    return SafetyCheck(name=name, value=value, limit=limit, passed=value <= limit)

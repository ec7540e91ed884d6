"""The newer-only rule: which of two writes of one product wins, defined once.

The shop's `version` decides first. Of one version, a deletion wins over the product. Then the product release decides:
a refresh of the same product version by a newer model must be accepted. So any order of arrival ends alike.
"""

from typing import Any, NamedTuple

MAX_VERSION = 2**53 - 1
"""Largest product version: Qdrant compares numbers as float64, above this it cannot tell neighbours apart."""


class PointVersion(NamedTuple):
    """What orders the writes of one product; `is_newer` compares."""

    version: int
    product_release: int
    deleted: bool = False


def is_newer(candidate: PointVersion, stored: PointVersion | None) -> bool:
    """Tell whether a write may replace what is stored.

    >>> is_newer(PointVersion(5, 2), PointVersion(5, 1)), is_newer(PointVersion(4, 9), PointVersion(5, 1))
    (True, False)
    >>> is_newer(PointVersion(5, 1), PointVersion(5, 1)), is_newer(PointVersion(1, 0), None)
    (False, True)
    >>> gone = PointVersion(5, 1, deleted=True)
    >>> is_newer(gone, PointVersion(5, 2)), is_newer(PointVersion(5, 2), gone), is_newer(PointVersion(6, 1), gone)
    (True, False, True)
    """
    return stored is None or _order(candidate) > _order(stored)


def _order(point: PointVersion) -> tuple[int, bool, int]:
    return point.version, point.deleted, point.product_release


def newer_only_filter(candidate: PointVersion) -> dict[str, Any]:
    """Return the same rule as a Qdrant filter (REST JSON) over the stored point's payload.

    Written as `must_not` so that a stored point without these fields is replaced, not kept for ever.
    """
    same_version = {"key": "version", "match": {"value": candidate.version}}
    same_release = {"key": "product_release", "range": {"gte": candidate.product_release}}
    is_deleted = {"key": "deleted", "match": {"value": 1}}
    not_newer: dict[str, Any] = (
        {"must": [same_version, is_deleted, same_release]}
        if candidate.deleted
        else {"must": [same_version], "should": [same_release, is_deleted]}
    )
    return {"must_not": [{"key": "version", "range": {"gt": candidate.version}}, not_newer]}

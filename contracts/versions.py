"""The newer-only rule: which of two writes of one product wins, defined once.

The shop's `version` decides first, then the product release: a refresh of the same product version by a newer
model must be accepted, an older product version never, whatever the order of arrival.
"""

from typing import Any, NamedTuple

MAX_VERSION = 2**53 - 1
"""Largest product version: Qdrant compares numbers as float64, above this it cannot tell neighbours apart."""


class PointVersion(NamedTuple):
    """What orders the writes of one product; compares field by field, in this order."""

    version: int
    product_release: int


def is_newer(candidate: PointVersion, stored: PointVersion | None) -> bool:
    """Tell whether a write may replace what is stored.

    >>> is_newer(PointVersion(5, 2), PointVersion(5, 1)), is_newer(PointVersion(4, 9), PointVersion(5, 1))
    (True, False)
    >>> is_newer(PointVersion(5, 1), PointVersion(5, 1)), is_newer(PointVersion(1, 0), None)
    (False, True)
    """
    return stored is None or candidate > stored


def newer_only_filter(candidate: PointVersion) -> dict[str, Any]:
    """Return the same rule as a Qdrant filter (REST JSON) over the stored point's payload.

    Written as `must_not` so that a stored point without these fields is replaced, not kept for ever.
    """
    same_version: dict[str, Any] = {
        "must": [
            {"key": "version", "match": {"value": candidate.version}},
            {"key": "product_release", "range": {"gte": candidate.product_release}},
        ]
    }
    return {"must_not": [{"key": "version", "range": {"gt": candidate.version}}, same_version]}

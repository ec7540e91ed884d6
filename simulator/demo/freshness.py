"""Freshness measured from outside, as a shopper would notice it.

Click to search: from a click to the first answer that came from a release trained on that click. A release is trained
on a click when the click's pair lies below the release's offset in its partition of `preference-pairs`. Product to
search: from sending a product to the first answer that lists it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from contracts.releases import ReleaseManifest


@dataclass(frozen=True, slots=True)
class PairPlace:
    """Where the pair of one click stands in `preference-pairs`, and when the click happened (epoch ms)."""

    partition: int
    offset: int
    click_time: int


@dataclass(slots=True)
class FirstAnswers:
    """The moment (epoch ms) at which each query release was first seen to answer."""

    seen: dict[int, int] = field(default_factory=dict)

    def note(self, query_release: int, at_ms: int) -> None:
        """Take one answer; only the first of a release counts."""
        if query_release not in self.seen or at_ms < self.seen[query_release]:
            self.seen[query_release] = at_ms


def click_to_search_s(
    pairs: Iterable[PairPlace], answers: Mapping[int, int], manifests: Mapping[int, ReleaseManifest]
) -> list[float]:
    """Return seconds from each click to the first answer of a release trained on it.

    Args:
        pairs: one place per click.
        answers: query release -> first answer, epoch ms.
        manifests: query release -> its manifest.

    Clicks that no answering release has covered yet are left out; compare the length with the number of pairs.
    """
    seen = sorted((at_ms, release) for release, at_ms in answers.items() if release in manifests)
    timeline = [(at_ms, manifests[release].offsets) for at_ms, release in seen]
    return [waited for pair in pairs if (waited := _waited_s(pair, timeline)) is not None]


def _waited_s(pair: PairPlace, timeline: list[tuple[int, dict[str, int]]]) -> float | None:
    for at_ms, offsets in timeline:
        if offsets.get(str(pair.partition), 0) > pair.offset:
            return max(0.0, (at_ms - pair.click_time) / 1000)
    return None


def quantiles(values: Iterable[float]) -> dict[str, float | None]:
    """Return p50 and p99 (nearest rank), None without values.

    >>> quantiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p99': 3.0}
    """
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p99": None}
    return {name: ordered[math.ceil(q * len(ordered)) - 1] for name, q in (("p50", 0.5), ("p99", 0.99))}


def measured(values: Sequence[float], *, of: int) -> dict[str, float | int | None]:
    """Return p50 and p99 with how many were measured, and how many were given up: these would have been the slowest.

    >>> measured([3.0, 1.0], of=3)
    {'p50': 1.0, 'p99': 3.0, 'measured': 2, 'missing': 1}
    """
    return {**quantiles(values), "measured": len(values), "missing": max(0, of - len(values))}

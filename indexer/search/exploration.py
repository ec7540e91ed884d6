"""Exploration: a list is perturbed on purpose, so that something is learned that its own ranking would hide.

Products are seen of which little is known, and clicks tell what a position is worth. Whoever knows policy and seed,
both logged in the impression, can compute each perturbation again: it depends on nothing else but the list itself.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist, median
from typing import Final, NamedTuple, Self, TypeVar

from contracts.outcomes import first_swapped
from indexer.search.retrieval import Hit
from towers.features import key_of
from towers.model import NATS_PER_COSINE

MOST_EXPLORED: Final = 100
"""How many of the nearest are ranked anew; what comes after them is rarely shown by either policy."""
MOST_JITTERED: Final = 20
"""Positions further down are seen too rarely for anything to be measured there."""
_KEYS: Final = 2**64

T = TypeVar("T")


class Policy(NamedTuple):
    """How lists are perturbed.

    `noise` and `jitter` perturb every score alike; `draws` takes each quality from its posterior, so that sure ones
    hardly move; `swap` exchanges neighbours and looks at no score.

    Args:
        name: as it is logged.
        noise_nats: standard deviation of what is added to each score.
        widths: the same, in widths of the product's quality.
        gaps: the same, in gaps between neighbouring scores, of which the median counts.
        swaps: whether neighbours are exchanged.
    """

    name: str = "none"
    noise_nats: float = 0.0
    widths: float = 0.0
    gaps: float = 0.0
    swaps: bool = False

    @classmethod
    def named(cls, name: str) -> Self:
        """The policy of a name.

        >>> Policy.named("noise:0.3").noise_nats, Policy.named("draws").widths, Policy.named("none").most_moved
        (0.3, 1.0, 0)
        """
        kind, _, nats = name.partition(":")
        return cls(name, float(nats or 0.0), float(kind == "draws"), float(kind == "jitter"), kind == "swap")

    @property
    def explores(self) -> bool:
        """Whether lists are perturbed at all."""
        return self.swaps or self.most_moved > 0

    @property
    def most_moved(self) -> int:
        """How many of the best candidates are ranked anew; none if scores are left alone."""
        if self.gaps:
            return MOST_JITTERED
        return MOST_EXPLORED if self.noise_nats or self.widths else 0

    def ranked(self, candidates: Sequence[Hit], *, seed: int) -> list[Hit]:
        """Rank candidates anew; scores stay what they are, and what the query names stays first."""
        moved, rest = candidates[: self.most_moved], candidates[self.most_moved :]
        alike = self.noise_nats + self.gaps * median_gap(moved)

        def perturbed(hit: Hit) -> tuple[float, float]:
            spread = alike + self.widths * float(hit.payload.get("quality_width", 0.0))
            return hit.pin, NATS_PER_COSINE * hit.score + spread * deviate(seed, hit.payload["product_id"])

        return [*sorted(moved, key=perturbed, reverse=True), *rest]


NO_EXPLORATION: Final = Policy()
SWAP: Final = Policy.named("swap")
JITTER: Final = Policy.named("jitter")
TEAM_DRAFT: Final = Policy.named("team-draft")
"""Moves nothing by itself: two lists are interleaved."""


def deviate(seed: int, product_id: str) -> float:
    """Draw from the standard normal distribution what a seed gives a product.

    >>> round(deviate(7, "P-1"), 6), deviate(7, "P-1") == deviate(8, "P-1")
    (0.477487, False)
    """
    return NormalDist().inv_cdf((key_of(f"{seed} {product_id}") + 0.5) / _KEYS)


def median_gap(hits: Sequence[Hit]) -> float:
    """The median difference of neighbouring scores, in nats; what the query names is left out. 0 for less than two.

    >>> round(median_gap([Hit(score, {}) for score in (0.9, 0.5, 0.47, 0.46)]), 6)
    0.3
    """
    scores = sorted(hit.score for hit in hits if not hit.pin)
    gaps = [NATS_PER_COSINE * (higher - lower) for lower, higher in pairwise(scores)]
    return median(gaps) if gaps else 0.0


def swapped(pages: Sequence[Sequence[T]], seed: int) -> list[list[T]]:
    """Exchange each pair of neighbours from `first_swapped` on with chance 1/2; no page gains or loses anything.

    >>> swapped(["abcd", "efg"], 8), swapped(["abcd", "efg"], 3)
    ([['b', 'a', 'd', 'c'], ['e', 'f', 'g']], [['a', 'b', 'c', 'd'], ['e', 'g', 'f']])
    """
    exchanged, position = [], 1
    for page in pages:
        shown = [*page]
        for place in range((first_swapped(seed) - position) % 2, len(shown) - 1, 2):
            if key_of(f"swap {seed} {position + place}") % 2:
                shown[place : place + 2] = shown[place + 1], shown[place]
        exchanged.append(shown)
        position += len(shown)
    return exchanged

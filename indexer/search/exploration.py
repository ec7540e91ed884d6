"""Exploration: a list is perturbed on purpose, so that products are seen of which little is known.

A little of it is worth more than better learning from what the ranking itself has shown. `noise` perturbs every score
alike; `draws` takes each quality from its posterior, so that sure ones hardly move. Whoever knows policy and seed, both
logged in the impression, can compute each perturbation again, for it depends on nothing but the seed and the product.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple, Self

from indexer.search.retrieval import Hit
from towers.features import key_of
from towers.model import NATS_PER_COSINE

MOST_EXPLORED: Final = 100
"""How many of the nearest are ranked anew; what comes after them is rarely shown by either policy."""
_KEYS: Final = 2**64


class Policy(NamedTuple):
    """How lists are perturbed: by `noise_nats` on every score, by as many `widths` of a product's quality, or not."""

    name: str = "none"
    noise_nats: float = 0.0
    widths: float = 0.0

    @classmethod
    def named(cls, name: str) -> Self:
        """The policy that a setting names.

        >>> Policy.named("noise:0.3"), Policy.named("draws"), Policy.named("none").explores
        (Policy(name='noise:0.3', noise_nats=0.3, widths=0.0), Policy(name='draws', noise_nats=0.0, widths=1.0), False)
        """
        kind, _, nats = name.partition(":")
        return cls(name, float(nats or 0.0), float(kind == "draws"))

    @property
    def explores(self) -> bool:
        """Whether lists are perturbed at all."""
        return self.name != "none"

    def ranked(self, candidates: Sequence[Hit], *, seed: int, k: int) -> list[Hit]:
        """Rank candidates anew; scores stay what they are, and what the query names stays first."""

        def perturbed(hit: Hit) -> tuple[float, float]:
            spread = self.noise_nats + self.widths * float(hit.payload.get("quality_width", 0.0))
            return hit.pin, NATS_PER_COSINE * hit.score + spread * deviate(seed, hit.payload["product_id"])

        return sorted(candidates, key=perturbed, reverse=True)[:k]


def deviate(seed: int, product_id: str) -> float:
    """Draw from the standard normal distribution what a seed gives a product.

    >>> round(deviate(7, "P-1"), 6), deviate(7, "P-1") == deviate(8, "P-1")
    (0.477487, False)
    """
    return NormalDist().inv_cdf((key_of(f"{seed} {product_id}") + 0.5) / _KEYS)

"""What a world is: products, queries, and how well each product answers each query.

A world is facts only. The shoppers click by its judgments and the evaluation scores by them; no service may read
them. Queries of the split `train` are typed by shoppers, those of `test` never.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

Split = Literal["train", "test"]
MAX_GRADE: Final = 4
WORLD_EPOCH_MS: Final = 1_795_132_800_000
"""The built-in world's present: 20 November 2026, 00:00 UTC. Launch dates and versions count from here."""

ProductMessage = Mapping[str, Any]
"""A product message (docs/events.md), as parsed JSON."""


@dataclass(frozen=True, slots=True)
class Query:
    """One way to ask the shop for something."""

    query_id: str
    query: str
    query_class: str
    split: Split
    locale: str = "en-IN"
    popularity: float = 1.0


@dataclass(frozen=True, slots=True)
class Judgment:
    """How well one product answers one query: what a careful buyer says, and how often a glance becomes a click."""

    grade: int
    """0 (useless) to 4 (exactly right)."""
    attraction: float | None = None
    """P(click | the shopper looked at it), in [0, 1]; None if the world's author gave only a grade."""

    def click_probability(self) -> float:
        """The attraction that was given, or else the one that the grade implies.

        >>> Judgment(grade=4, attraction=0.5).click_probability()
        0.5
        >>> Judgment(grade=2).click_probability()
        0.14
        """
        return attraction_of(float(self.grade)) if self.attraction is None else self.attraction


NOTHING: Final = Judgment(grade=0, attraction=0.0)


def attraction_of(grade: float) -> float:
    """P(click | looked at) for a grade, which need not be whole: proportional to the grade's gain.

    >>> attraction_of(0.0), attraction_of(4.0)
    (0.0, 0.7)
    """
    gain = max(0.0, math.pow(2.0, grade) - 1) / (2**MAX_GRADE - 1)
    return round(min(0.9, 0.7 * gain), 4)


@dataclass(frozen=True)
class World:
    """A shop with its catalogue, the queries people type there and the judgments that decide their clicks."""

    products: tuple[ProductMessage, ...]
    queries: tuple[Query, ...]
    judgments: Mapping[str, Mapping[str, Judgment]]
    """By query_id, then product_id; what is absent has grade 0."""
    name: str = field(default="built-in", compare=False)

    def of_split(self, split: Split) -> tuple[Query, ...]:
        """The queries of one split, in the world's order."""
        return tuple(query for query in self.queries if query.split == split)

    def judgment(self, query_id: str, product_id: str) -> Judgment:
        """What is known of one product for one query; grade 0 if nothing is."""
        return self.judgments.get(query_id, {}).get(product_id, NOTHING)

    def grades(self, query_id: str) -> dict[str, int]:
        """The grades of all products judged for a query."""
        return {product_id: judged.grade for product_id, judged in self.judgments.get(query_id, {}).items()}

    @cached_property
    def by_product_id(self) -> dict[str, ProductMessage]:
        """The products by their id."""
        return {str(product["product_id"]): product for product in self.products}

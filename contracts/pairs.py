"""Preference pairs: for this query, shoppers preferred one product to another, and how much that weighs."""

import hashlib
from typing import Annotated, Final, Literal, Self

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from contracts.base import (
    Count,
    Finite,
    Id,
    Label,
    Message,
    Part,
    Position,
    ProductId,
    Query,
    Ratio,
    Release,
    Text,
    Time,
    VisibleText,
    gives_text,
)
from contracts.joined import MAX_ORIGINS, Origin

RULE_VERSION: Final = 1
"""Version of the pairing rules; part of every pair id, so that changed rules make new pairs."""

PairSource = Literal["click", "rule", "curated", "value"]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
CuratedText = Annotated[VisibleText, Field(max_length=4000)]


def pair_id(
    search_id: str,
    chosen: str,
    rejected: str,
    *,
    source: str,
    rule_version: int = RULE_VERSION,
    grade: int | None = None,
) -> str:
    """Return the id of a preference pair: sha256 of the JSON array of what makes it unique, as hex.

    A pair of source `value` has the grade that was reached as one more element: a cart and a purchase after it are two.

    >>> pair_id("s1", "P-4", "P-1", source="click")[:16]
    '159d57d9e42c164c'
    """
    unique = [search_id, chosen, rejected, source, rule_version, *([] if grade is None else [grade])]
    return hashlib.sha256(orjson.dumps(unique)).hexdigest()


class PairSide(Part):
    """One product of a pair."""

    product_id: ProductId
    position: Position | None = None
    grade: Annotated[int, Field(ge=0, le=4)]
    """0 skipped, 1 click, 2 long click, 3 cart, 4 purchase."""


class Factors(Part):
    """Everything a weight is the product of."""

    value: Weight
    """Worth of the chosen grade."""
    ratio: Ratio
    """min(1, theta_rejected / theta_chosen)."""
    similarity: Ratio = 1.0
    sampling: Weight = 1.0
    """Inverse of the chance that this pair was kept."""
    cap: Ratio = 1.0

    def weight(self) -> float:
        """Return the product of all factors.

        >>> Factors(value=2.0, ratio=0.5).weight()
        1.0
        """
        return self.value * self.ratio * self.similarity * self.sampling * self.cap


class PreferencePair(Message):
    """A weighted preference, ready to train on."""

    pair_id: Id
    search_id: Id
    query: Query
    source: PairSource
    chosen: PairSide
    rejected: PairSide
    weight: Weight
    factors: Factors
    confidence: Ratio = 1.0
    """For people and filters; not a factor of the weight."""
    propensity_version: Count = 0
    filters: Annotated[tuple[Label, ...], Field(strict=False, max_length=32)] = ()
    query_release: Release | None = None
    product_release: Release | None = None
    arm: Label = "live"
    event_time: Time
    """When the chosen product was clicked; of source `value`, when it was put into the cart or bought."""
    closed_at: Time
    origins: Annotated[tuple[Origin, ...], Field(strict=False, max_length=MAX_ORIGINS)] = ()
    rule_version: Count = RULE_VERSION
    inferred: bool | None = None
    """Of source `value`: the event named no search that gave a pair, and is taken to follow a click of its session."""


class CuratedPair(Message):
    """A preference that a person wrote, or a rule of the shop; either product may be given as text instead of an id."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [{"oneOf": [gives_text(side), gives_text(f"{side}_text")]} for side in ("chosen", "rejected")]
        }
    )

    pair_id: Id | None = None
    query: Annotated[VisibleText, Field(max_length=1000)]
    chosen: ProductId | None = None
    rejected: ProductId | None = None
    chosen_text: CuratedText | None = None
    rejected_text: CuratedText | None = None
    weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    margin: Finite | None = None
    source: Literal["curated", "rule"] = "curated"
    """`rule`: of a launch or a priority, say. Such pairs weigh a twentieth of the clicks at most, all together."""
    expires_at: Time | None = None
    """Of a rule: from when it no longer counts."""
    author: Label | None = None
    """Who wrote it."""
    note: Annotated[Text, Field(max_length=1000)] | None = None
    """Why, for people."""

    @model_validator(mode="after")
    def _two_products(self) -> Self:
        if (self.chosen is None) == (self.chosen_text is None):
            raise ValueError("give chosen or chosen_text, not both")
        if (self.rejected is None) == (self.rejected_text is None):
            raise ValueError("give rejected or rejected_text, not both")
        if (self.chosen, self.chosen_text) == (self.rejected, self.rejected_text):
            raise ValueError("chosen and rejected are the same")
        if self.expires_at is not None and self.source != "rule":
            raise ValueError("expires_at is of pairs of source rule: what a person wrote fades as clicks do")
        return self


CURATED_PAIR: Final[TypeAdapter[CuratedPair]] = TypeAdapter(CuratedPair)
"""What may stand on `curated-pairs`."""

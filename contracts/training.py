"""A training search: what one list says to the learner, judged by the pairs stage, and what was left out of it and why.

It names no shopper: who asked and who clicked stays on `joined-searches`.
"""

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import Count, Id, Label, Message, Part, Position, ProductId, Query, Ratio, Time
from contracts.events import Ranking
from contracts.joined import MAX_LIST_SLOTS
from contracts.pairs import RULE_VERSION, Weight


class TrainingSlot(Part):
    """One product that counts: how likely it was looked at, and what the shopper's choice of it is worth."""

    product_id: ProductId
    position: Position
    """The highest of its positions."""
    showing: Ratio
    """Chance that the shopper examined it, relative to the top position, by the propensity in force."""
    value: Weight = 0.0
    """Worth of its grade; 0 if it was passed over."""
    click_time: Time | None = None
    """Of its first click."""


class LeftOutSlot(Part):
    """A slot that does not count, neither for its product nor against it."""

    product_id: ProductId
    position: Position
    reason: Label


class TrainingSearch(Message):
    """One list that may be learned from, with or without a click. The same events give the same bytes."""

    type: Literal["training_search"] = "training_search"
    search_id: Id
    search_time: Time
    closed_at: Time
    query: Query
    locale: Label | None = None
    ranking: Ranking = Ranking()
    slots: Annotated[tuple[TrainingSlot, ...], Field(strict=False, max_length=MAX_LIST_SLOTS)]
    """By position, each product once."""
    left_out: Annotated[tuple[LeftOutSlot, ...], Field(strict=False, max_length=MAX_LIST_SLOTS)] = ()
    cap: Ratio = 1.0
    """Weight of the whole list: less than 1 of a shopper who has shown very many."""
    exchanged: Annotated[tuple[Position, ...], Field(strict=False, max_length=MAX_LIST_SLOTS)] | None = None
    """Positions that were exchanged with the next one with chance 1/2, whatever stood there, rising; None if the list's
    policy was not `swap`. Of two such products that both count, clicks tell which one is preferred."""
    propensity_version: Count = 0
    rule_version: Count = RULE_VERSION

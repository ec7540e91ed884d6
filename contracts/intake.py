"""The collector's answers, and the reasons it adds to those of `wire`."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel

Status = Literal["accepted", "duplicate", "rejected"]


class IntakeReason(StrEnum):
    """Why an item that reads well is still refused at intake."""

    BOT = "bot"
    """The sender's user agent is on the bot list."""
    TOO_FAR_AHEAD = "too_far_ahead"
    """A time lies more than five minutes after the collector's clock."""
    TOO_DEEP = "too_deep"
    """Objects and lists are nested deeper than any of our messages."""
    TOO_LARGE = "too_large"
    """The record would be larger than its topic allows."""


class ItemResult(BaseModel):
    """What became of one item of a request, in the order of the request."""

    event_id: str | None
    """`event_id` of an event, `product_id` of a product, `pair_id` of a curated pair; None where it had none."""
    status: Status
    reason: str | None = None
    field: str | None = None
    message: str | None = None


class IntakeAnswer(BaseModel):
    """A collector's answer: `accepted` counts what Kafka acknowledged."""

    accepted: int
    rejected: int
    duplicate: int = 0
    results: list[ItemResult]

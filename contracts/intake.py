"""The collector's requests' outer form and its answers."""

from typing import Literal

from pydantic import BaseModel

Status = Literal["accepted", "duplicate", "rejected"]


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

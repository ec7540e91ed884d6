"""The collector's requests and answers, and the reasons it adds to those of `wire`.

A batch is the form of a request for the documentation: the collector decides about each item by itself.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.catalog import CatalogChange
from contracts.events import ShopEvent
from contracts.pairs import CuratedPair

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


def _with_example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class EventBatch(BaseModel):
    """Shop events."""

    model_config = _with_example(
        events=[
            {
                "type": "click",
                "event_id": "e-1",
                "event_time": 1795196006756,
                "session_id": "k3",
                "search_id": "s-1",
                "search_time": 1795196001200,
                "product_id": "P-1",
                "position": 1,
            }
        ]
    )

    events: list[Annotated[ShopEvent, Field(discriminator="type")]]


class ProductBatch(BaseModel):
    """Catalogue changes."""

    model_config = _with_example(
        products=[{"type": "product", "product_id": "P-1", "version": 1, "title": "Quiet fridge", "price": 499.0}]
    )

    products: list[Annotated[CatalogChange, Field(discriminator="type")]]


class PairBatch(BaseModel):
    """Curated pairs."""

    model_config = _with_example(pairs=[{"query": "fridge", "chosen": "P-1", "rejected": "P-2"}])

    pairs: list[CuratedPair]


class ItemResult(BaseModel):
    """What became of one item of a request, in the order of the request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

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

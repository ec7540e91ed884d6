"""Golden queries: what people of a shop judged themselves, and every release is measured by before it is let out."""

from typing import Annotated, Final, Self

from pydantic import Field, TypeAdapter, model_validator

from contracts.base import Label, Message, Part, ProductId, Text, VisibleText

MAX_GOLDEN_QUERIES: Final = 2000
"""Of a shop; the trainer takes no more."""
MAX_JUDGMENTS: Final = 200
"""Of one query."""


class Judgment(Part):
    """How well one product answers a query, by a person's word."""

    product_id: ProductId
    grade: Annotated[int, Field(ge=0, le=4)]
    """0 wrong, 1 poor, 2 fair, 3 good, 4 perfect; each is worth 2^grade - 1."""
    author: Label | None = None
    """Who judged."""
    note: Annotated[Text, Field(max_length=1000)] | None = None
    """Why, for people."""


class GoldenQuery(Message):
    """A query with all judgments of it; its key is the normalised query, and a null value removes it."""

    query: Annotated[VisibleText, Field(max_length=1000)]
    """As a shopper would type it."""
    judgments: Annotated[tuple[Judgment, ...], Field(strict=False, min_length=1, max_length=MAX_JUDGMENTS)]

    @model_validator(mode="after")
    def _judged_once(self) -> Self:
        if len({one.product_id for one in self.judgments}) < len(self.judgments):
            raise ValueError("a product is judged twice")
        return self


GOLDEN_QUERY: Final[TypeAdapter[GoldenQuery]] = TypeAdapter(GoldenQuery)
"""What may stand on `golden-queries`."""

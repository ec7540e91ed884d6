"""Base vectors of products, encoded once, and everything a point in the index needs besides the model."""

import base64
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.base import Count, Finite, Label, Message, Money, Part, ProductId, Time
from contracts.catalog import Version


class PointPayload(Part):
    """What a point says of its product, apart from versions."""

    title: str = ""
    category: Annotated[tuple[Label, ...], Field(strict=False, max_length=16)] = ()
    brand: Label | None = None
    price: Money | None = None
    in_stock: Annotated[int, Field(ge=0, le=1)] = 1
    launched_at: Time | None = None
    priority: Finite = 0.0
    parent_id: ProductId | None = None
    seller_id: ProductId | None = None
    locale: Label | None = None


class ProductVector(Message):
    """One product's base vector. A deletion has neither vector nor payload."""

    type: Literal["product_vector"] = "product_vector"
    product_id: ProductId
    version: Version
    deleted: bool = False
    base_version: str
    """Which base encoder and text template made the vector."""
    text_hash: str = ""
    vector: str | None = None
    """Base64 of little-endian float32, unit length."""
    payload: PointPayload | None = None
    catalog_offset: Count | None = None
    """Offset of the `catalog` record that it comes from; a null value deletes what came before it, and nothing else."""
    catalog_time: int | None = None
    """Timestamp of that record, as Kafka has it; epoch ms."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.deleted != (self.vector is None) or self.deleted != (self.payload is None):
            raise ValueError("a product has a vector and a payload, a deletion neither")
        return self

    def vector_bytes(self) -> bytes:
        """Return the raw little-endian float32 bytes; empty for a deletion."""
        return base64.b64decode(self.vector) if self.vector else b""

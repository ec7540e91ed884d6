"""Products: what the shop says of them, their base vectors, and which of two writes to the index wins.

Whatever the order of arrival, the newest of a product wins; `is_newer` says which that is.
"""

import base64
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from uuid import NAMESPACE_OID, uuid5

from pydantic import Field, TypeAdapter, model_validator

from contracts.base import Count, Finite, Label, Message, Money, Part, ProductId, Text, Time, VisibleText, Whole

MAX_VERSION: Final = 2**53 - 1
"""Largest product version: Qdrant compares numbers as float64, above this it cannot tell neighbours apart."""

FLOAT32_BYTES: Final = 4

Version = Annotated[int, Field(ge=0, le=MAX_VERSION, description="The shop's own; only grows.")]
Url = Annotated[Text, Field(max_length=4_000)]
Rating = Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False)]
CategoryPath = Annotated[tuple[Label, ...], Field(strict=False, max_length=32)]
"""From the widest to the narrowest."""
AttributeName = Annotated[Text, Field(max_length=256)]
AttributeValue = bool | Whole | Finite | Annotated[Text, Field(max_length=4_000)] | None


class Product(Message):
    """A product as the shop describes it; a newer `version` replaces it whole."""

    type: Literal["product"]
    product_id: ProductId
    version: Version
    title: Annotated[VisibleText, Field(max_length=1_000)]
    description: Annotated[Text, Field(max_length=100_000)] = ""
    category: CategoryPath = ()
    """Path from the widest to the narrowest."""
    brand: Label | None = None
    attributes: Annotated[dict[AttributeName, AttributeValue], Field(max_length=1_000)] = Field(default_factory=dict)
    price: Money | None = None
    currency: Label | None = None
    in_stock: bool = True
    launched_at: Time | None = None
    priority: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """How much the shop wants it shown, 0 (not at all) to 1."""
    parent_id: ProductId | None = None
    """The variant group."""
    seller_id: ProductId | None = None
    locale: Label | None = None
    url: Url | None = None
    image_url: Url | None = None
    rating: Rating | None = None
    """Of the shop's customers, on the shop's scale; more is better."""


class ProductDeleted(Message):
    """The product is gone; older versions must not come back."""

    type: Literal["product_deleted"]
    product_id: ProductId
    version: Version


CatalogChange = Product | ProductDeleted
CATALOG_CHANGE: Final[TypeAdapter[CatalogChange]] = TypeAdapter(Annotated[CatalogChange, Field(discriminator="type")])
"""What may stand on `catalog`."""


class PointPayload(Part):
    """What a point says of its product, apart from versions."""

    title: str = ""
    category: CategoryPath = ()
    brand: Label | None = None
    price: Money | None = None
    in_stock: Annotated[int, Field(ge=0, le=1)] = 1
    launched_at: Time | None = None
    priority: Finite = 0.0
    parent_id: ProductId | None = None
    seller_id: ProductId | None = None
    locale: Label | None = None
    currency: Label | None = None
    url: Url | None = None
    image_url: Url | None = None
    rating: Rating | None = None
    attributes: Annotated[dict[AttributeName, AttributeValue], Field(max_length=1_000)] = Field(default_factory=dict)


class ProductVector(Message):
    """One product's base vector. A deletion has neither vector nor payload."""

    type: Literal["product_vector"] = "product_vector"
    product_id: ProductId
    version: Version
    deleted: bool = False
    base_version: str
    """Which base encoder and text template made the vector."""
    text_hash: str = ""
    content_hash: str = ""
    """Of the whole product as it came, so that other content under the same version is noticed; empty of a deletion."""
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
        if len(self.vector_bytes()) % FLOAT32_BYTES:
            raise ValueError("the vector ends within a number")
        return self

    def vector_bytes(self) -> bytes:
        """Return the raw little-endian float32 bytes; empty for a deletion."""
        return base64.b64decode(self.vector) if self.vector else b""


def point_id(product_id: str) -> str:
    """Give the Qdrant point id of a product: Qdrant takes only unsigned integers and UUIDs, so the shop's id is hashed.

    >>> point_id("P-1")
    '529a5352-385c-5db4-9dd0-0c347ac4b3bb'
    """
    return str(uuid5(NAMESPACE_OID, product_id))


class PointVersion(NamedTuple):
    """What orders the writes of one product; `is_newer` compares."""

    version: int
    product_release: int
    deleted: bool = False


def is_newer(candidate: PointVersion, stored: PointVersion | None) -> bool:
    """Tell whether a write may replace what is stored; the newer-only rule, defined here once.

    The shop's `version` decides first. Of one version, a deletion wins over the product. Then the product release
    decides: a refresh of the same version by a newer model must be accepted. So any order of arrival ends alike.

    >>> is_newer(PointVersion(5, 2), PointVersion(5, 1)), is_newer(PointVersion(4, 9), PointVersion(5, 1))
    (True, False)
    >>> is_newer(PointVersion(5, 1), PointVersion(5, 1)), is_newer(PointVersion(1, 0), None)
    (False, True)
    >>> gone = PointVersion(5, 1, deleted=True)
    >>> is_newer(gone, PointVersion(5, 2)), is_newer(PointVersion(5, 2), gone), is_newer(PointVersion(6, 1), gone)
    (True, False, True)
    """
    return stored is None or _order(candidate) > _order(stored)


def _order(point: PointVersion) -> tuple[int, bool, int]:
    return point.version, point.deleted, point.product_release


def newer_only_filter(candidate: PointVersion, *, again: bool = False) -> dict[str, Any]:
    """Say the same rule as a Qdrant filter (REST JSON) over the stored point's payload.

    Written as `must_not` so that a stored point without these fields is replaced, not kept for ever. What is written
    `again` replaces its equal too, for what is stored of that version may be damaged.
    """
    same_version = {"key": "version", "match": {"value": candidate.version}}
    same_release = {"key": "product_release", "range": {"gt" if again else "gte": candidate.product_release}}
    is_deleted = {"key": "deleted", "match": {"value": 1}}
    not_newer: dict[str, Any] = (
        {"must": [same_version, is_deleted, same_release]}
        if candidate.deleted
        else {"must": [same_version], "should": [same_release, is_deleted]}
    )
    return {"must_not": [{"key": "version", "range": {"gt": candidate.version}}, not_newer]}

"""Catalogue messages: the shop's products and their deletions."""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from contracts.base import Finite, Label, Message, Money, ProductId, Time
from contracts.versions import MAX_VERSION

Version = Annotated[int, Field(ge=0, le=MAX_VERSION, description="The shop's own; only grows.")]
AttributeValue = bool | int | Finite | Annotated[str, Field(max_length=1000)] | None


class Product(Message):
    """A product as the shop describes it; a newer `version` replaces it whole."""

    type: Literal["product"]
    product_id: ProductId
    version: Version
    title: Annotated[str, Field(min_length=1, max_length=1000)]
    description: Annotated[str, Field(max_length=20_000)] = ""
    category: Annotated[tuple[Label, ...], Field(strict=False, max_length=16)] = ()
    """Path from the widest to the narrowest."""
    brand: Label | None = None
    attributes: Annotated[dict[str, AttributeValue], Field(max_length=200)] = Field(default_factory=dict)
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
    url: Annotated[str, Field(max_length=2000)] | None = None
    image_url: Annotated[str, Field(max_length=2000)] | None = None


class ProductDeleted(Message):
    """The product is gone; older versions must not come back."""

    type: Literal["product_deleted"]
    product_id: ProductId
    version: Version


CatalogChange = Product | ProductDeleted
CATALOG_CHANGE: Final[TypeAdapter[CatalogChange]] = TypeAdapter(Annotated[CatalogChange, Field(discriminator="type")])
"""What may stand on `catalog`."""

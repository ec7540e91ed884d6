"""A product as a point of a collection, whose the collections are, and where every write goes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

import numpy as np

from contracts.catalog import PointVersion, is_newer
from contracts.releases import ALIAS, Serving, collection_name
from indexer.catalog.base_vectors import BaseProduct
from indexer.catalog.product_file import State
from indexer.filters import KEYS, stored_keys
from towers.lexical import ProductWords, product_words
from towers.model import ProductTower, product_vectors

OF_THE_VECTOR: Final = ("base_version", "quality", "quality_width")
"""What a payload says of its vector, not of its product."""


@dataclass(frozen=True, slots=True)
class ProductPoint:
    """What the index holds, or is to hold, of one product.

    Args:
        product_id: the shop's own id.
        version: the shop's version of the product.
        product_release: whose quality the vector carries.
        vector: base vector and quality, shape (D + 1,); None for a tombstone, which keeps older writes out.
        payload: the other fields that the README names: title, category, brand, price and so on.
        words: its sparse vectors; they follow from the payload.
    """

    product_id: str
    version: int
    product_release: int
    vector: Sequence[float] | None
    payload: Mapping[str, Any] = field(default_factory=dict)
    words: ProductWords | None = field(default=None, compare=False)

    @property
    def point_version(self) -> PointVersion:
        """What orders the writes of this product."""
        return PointVersion(self.version, self.product_release, self.is_tombstone)

    @property
    def is_tombstone(self) -> bool:
        """Whether the product is gone."""
        return self.vector is None

    def carried_to(self, stored: "ProductPoint | None") -> "ProductPoint | None":
        """Return this as a point of another base's collection, with the vector that is there; None if that is missing.

        A deletion needs none. A vector is that of the text if it was made of the same one.
        """
        if self.is_tombstone:
            return replace(self, product_release=stored.product_release if stored else 0)
        if stored is None or stored.vector is None or stored.payload.get("text_hash") != self.payload["text_hash"]:
            return None
        theirs = {name: stored.payload[name] for name in OF_THE_VECTOR if name in stored.payload}
        release, vector, payload = stored.product_release, stored.vector, {**self.payload, **theirs}
        return replace(self, product_release=release, vector=vector, payload=payload)

    def stored_payload(self) -> dict[str, Any]:
        """Return the payload as it is stored; a tombstone keeps nothing but what orders it.

        >>> ProductPoint("P-1", 7, 2, None, {"title": "Kettle"}).stored_payload()
        {'product_id': 'P-1', 'version': 7, 'product_release': 2, 'deleted': 1}
        >>> ProductPoint("P-1", 7, 2, [0.6, 0.8], {"title": "Kettle"}).stored_payload()["deleted"]
        0
        """
        ordering = {"product_id": self.product_id, "version": self.version, "product_release": self.product_release}
        if self.is_tombstone:
            return {**ordering, "deleted": 1}
        return {**self.payload, **ordering, "deleted": 0}


def newest_per_id(points: Iterable[ProductPoint]) -> list[ProductPoint]:
    """Return one point per product, the newest; of equals the first, as the store would keep it.

    A vector store judges its condition against the state before the request, so that of two points of one product in
    one request the later one would win, however old.

    >>> old, new = ProductPoint("P-1", 4, 9, [1.0]), ProductPoint("P-1", 5, 1, [2.0])
    >>> newest_per_id([new, old]) == newest_per_id([old, new]) == [new]
    True
    """
    newest: dict[str, ProductPoint] = {}
    for point in points:
        known = newest.get(point.product_id)
        if is_newer(point.point_version, known.point_version if known else None):
            newest[point.product_id] = point
    return list(newest.values())


class Owner(NamedTuple):
    """The deployment that a collection belongs to, and how it names its collections."""

    kafka_cluster: str
    topic_prefix: str

    @property
    def name(self) -> str:
        """The owner as it is written into metadata."""
        return f"{self.kafka_cluster}/{self.topic_prefix}"

    @property
    def alias(self) -> str:
        """The alias under which the collection in force is found."""
        return f"{self.topic_prefix}{ALIAS}"

    def collection(self, number: int) -> str:
        """Return the collection of a number: the product release that makes it, or the next if that name is taken."""
        return f"{self.topic_prefix}{collection_name(number)}"

    def number_of(self, collection: str | None) -> int | None:
        """Return the number of a collection, None if its name is not one of ours.

        >>> Owner("k", "shop-").number_of("shop-products-r12"), Owner("k", "shop-").number_of("products-r1")
        (12, None)
        """
        found = re.fullmatch(re.escape(f"{self.topic_prefix}{ALIAS}-r") + r"(\d+)", collection or "")
        return int(found[1]) if found else None


class InForce(NamedTuple):
    """What every write must agree with: the collection in force, and the product release whose quality it carries."""

    collection: str
    product_release: int

    @classmethod
    def of(cls, serving: Serving) -> Self:
        """Read it off the record on `models`."""
        return cls(serving.collection, serving.product_release)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where writes go: a collection, and the tower of a product release that tells the quality of a product.

    Beside it a collection of another base may be kept to go back to: what needs none of its vectors goes there too.
    """

    collection: str
    product_release: int
    tower: ProductTower
    kept: str | None = None

    @property
    def in_force(self) -> InForce:
        """What is in force when this is."""
        return InForce(self.collection, self.product_release)

    def quality(self, products: Sequence[BaseProduct | State]) -> np.ndarray:
        """The quality of products in nats, (N,)."""
        return self.tower.quality([one.product_id for one in products], [one.features for one in products])

    def points(self, products: Sequence[BaseProduct]) -> list[ProductPoint]:
        """Return the points of products; the tower is applied to all of them at once."""
        live = [product for product in products if product.vector is not None]
        vectors = [product.vector for product in live if product.vector is not None]
        quality, width = self.quality(live), self.tower.width([product.product_id for product in live])
        rows = product_vectors(np.stack(vectors), quality) if vectors else ()
        made = iter(zip(rows, quality.tolist(), width.tolist(), strict=True))
        return [self._tombstone(one) if one.is_deleted else self._point(one, *next(made)) for one in products]

    def version_of(self, product: BaseProduct | State) -> PointVersion:
        """Return what orders a product's point here."""
        return PointVersion(product.version, self.product_release, product.is_deleted)

    def _tombstone(self, product: BaseProduct) -> ProductPoint:
        return ProductPoint(product.product_id, product.version, self.product_release, None)

    def _point(self, product: BaseProduct, vector: np.ndarray, quality: float, width: float) -> ProductPoint:
        payload: dict[str, Any] = {}
        words = None  # made for each write: kept, they would take as much memory as the vector
        if product.payload is not None:
            payload = product.payload.model_dump(mode="json", exclude_none=True) | {KEYS: stored_keys(product.payload)}
            words = product_words(product.product_id, product.payload)
        payload |= {"base_version": product.base_version, "text_hash": product.text_hash}
        payload |= {"quality": quality, "quality_width": width}
        release, row = self.product_release, vector.tolist()
        return ProductPoint(product.product_id, product.version, release, row, payload, words)

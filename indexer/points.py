"""A product as a point of a collection, whose the collections are, and which of them every write goes to."""

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from contracts.catalog import PointVersion, is_newer
from contracts.releases import ALIAS, collection_name
from indexer.catalog.base_vectors import BaseProduct
from towers.heads import ProductHead, apply_head


@dataclass(frozen=True, slots=True)
class ProductPoint:
    """What the index holds, or is to hold, of one product.

    Args:
        product_id: the shop's own id.
        version: the shop's version of the product.
        product_release: release of the product tower that made the vector.
        vector: in the space of that release, shape (dim,); None for a tombstone, which keeps older writes out.
        payload: the other fields that the README names: title, category, brand, price and so on.
    """

    product_id: str
    version: int
    product_release: int
    vector: Sequence[float] | None
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def point_version(self) -> PointVersion:
        """What orders the writes of this product."""
        return PointVersion(self.version, self.product_release, self.is_tombstone)

    @property
    def is_tombstone(self) -> bool:
        """Whether the product is gone."""
        return self.vector is None

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

    def collection(self, product_release: int) -> str:
        """Return the collection that a product release makes."""
        return f"{self.topic_prefix}{collection_name(product_release)}"

    def release_of(self, collection: str | None) -> int | None:
        """Return the product release that made a collection, None if its name is not one of ours.

        >>> Owner("k", "shop-").release_of("shop-products-r12"), Owner("k", "shop-").release_of("products-r1")
        (12, None)
        """
        found = re.fullmatch(re.escape(f"{self.topic_prefix}{ALIAS}-r") + r"(\d+)", collection or "")
        return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A collection and the product head whose vectors it holds."""

    collection: str
    product_release: int
    head: ProductHead

    def points(self, products: Sequence[BaseProduct]) -> list[ProductPoint]:
        """Return the points of products in this collection; the head is applied to all of them at once."""
        live = [product.vector for product in products if product.vector is not None]
        vectors = iter(apply_head(self.head, np.stack(live)) if live else ())
        return [self._point(product, None if product.is_deleted else next(vectors)) for product in products]

    def version_of(self, product: BaseProduct) -> PointVersion:
        """Return what orders a product's point here."""
        return PointVersion(product.version, self.product_release, product.is_deleted)

    def _point(self, product: BaseProduct, vector: np.ndarray | None) -> ProductPoint:
        if vector is None or product.payload is None:
            return ProductPoint(product.product_id, product.version, self.product_release, None)
        payload = product.payload.model_dump(mode="json", exclude_none=True)
        payload |= {"base_version": product.base_version, "text_hash": product.text_hash}
        return ProductPoint(product.product_id, product.version, self.product_release, vector.tolist(), payload)


class Targets:
    """The targets of every write; whoever takes them once per batch writes to a set that belongs together.

    The order that makes the dual writes of one indexer complete: a writer keeps a product in the base vectors first and
    takes the targets then; a roll-out adds its target first and takes the base vectors then. So whatever one has
    missed, the other has. What the others of the group write is the matter of `rollout/decisions.py`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_force: Target | None = None
        self._construction: Target | None = None

    def current(self) -> tuple[Target, ...]:
        """Return the targets, the one in force first."""
        with self._lock:
            return tuple(target for target in (self._in_force, self._construction) if target is not None)

    @property
    def in_force(self) -> Target | None:
        """The collection that search reads."""
        return self._in_force

    @property
    def construction(self) -> Target | None:
        """The collection under construction."""
        return self._construction

    def put_in_force(self, target: Target) -> None:
        """Let a target be the one in force; if it was under construction, it is not any more."""
        with self._lock:
            self._in_force = target
            if self._construction is not None and self._construction.collection == target.collection:
                self._construction = None

    def build(self, target: Target | None) -> None:
        """Let every write go to this collection too; None ends it."""
        with self._lock:
            self._construction = target

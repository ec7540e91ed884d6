"""What is known of every product: its base vector and payload, newest wins. The source of every point in the index."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.catalog import PointPayload, PointVersion, ProductVector
from indexer.core.points import ProductPoint


@dataclass(frozen=True, slots=True, eq=False)
class BaseProduct:
    """One product as `product-vectors` holds it.

    Args:
        product_id: the shop's own id.
        version: the shop's version.
        base_version: which encoder and template made the vector.
        text_hash: of the text that was encoded.
        vector: (dim,) float32 of unit length; None once the product is deleted.
        payload: what its point says; None once the product is deleted.
    """

    product_id: str
    version: int
    base_version: str
    text_hash: str = ""
    vector: np.ndarray | None = None
    payload: PointPayload | None = None

    @classmethod
    def from_message(cls, message: ProductVector) -> "BaseProduct":
        """Return a product from its record on `product-vectors`."""
        vector = None if message.deleted else np.frombuffer(message.vector_bytes(), dtype="<f4")
        return cls(
            message.product_id, message.version, message.base_version, message.text_hash, vector, message.payload
        )

    @property
    def is_deleted(self) -> bool:
        """Whether the product is gone."""
        return self.vector is None

    def point_version(self, product_release: int) -> PointVersion:
        """Return what orders its point in a collection of a product release."""
        return PointVersion(self.version, product_release)

    def point(self, product_release: int, vector: np.ndarray | None) -> ProductPoint:
        """Return its point.

        Args:
            product_release: whose head made the vector.
            vector: (dim,) in the space of that release; None for a deletion.
        """
        if vector is None or self.payload is None:
            return ProductPoint(self.product_id, self.version, product_release, None)
        payload: dict[str, Any] = self.payload.model_dump(mode="json", exclude_none=True)
        payload |= {"base_version": self.base_version, "text_hash": self.text_hash}
        return ProductPoint(self.product_id, self.version, product_release, vector.tolist(), payload)


class BaseVectors:
    """Every product's newest base vector, in memory; safe to use from several threads."""

    def __init__(self) -> None:
        self._products: dict[str, BaseProduct] = {}
        self._lock = threading.Lock()

    def apply(self, product: BaseProduct) -> bool:
        """Keep a product if it is newer than what is known of it; return whether it was."""
        with self._lock:
            known = self._products.get(product.product_id)
            if known is not None and known.version >= product.version:
                return False
            self._products[product.product_id] = product
            return True

    def get(self, product_id: str) -> BaseProduct | None:
        """Return what is known of a product."""
        return self._products.get(product_id)

    def snapshot(self) -> list[BaseProduct]:
        """Return every product as it is now, deletions included."""
        with self._lock:
            return list(self._products.values())

    def foreign_base_version(self, base_version: str) -> str | None:
        """Return a base version other than this one among the live products, None where there is none."""
        others = (
            product.base_version
            for product in self.snapshot()
            if not product.is_deleted and product.base_version != base_version
        )
        return next(others, None)

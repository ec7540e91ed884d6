"""What is known of every product: its base vector and payload, newest wins. The source of every point in the index."""

import base64
import sys
import threading
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from contracts.catalog import PointPayload, ProductVector
from towers.features import keys_of, product_features

NO_FEATURES: Final = keys_of(())
SHORTEST_KEPT_MS: Final = 3_600_000
"""A null on `product-vectors` forgets a deletion that is older; anything else it has overtaken, to be written again."""


class CatalogPlace(NamedTuple):
    """Where a record of `catalog` is: its offset, and its timestamp in epoch ms."""

    offset: int
    timestamp_ms: int

    def is_after(self, other: "CatalogPlace") -> bool:
        """Tell whether this record came later in its partition.

        Offsets alone do not tell: they begin again in a topic that was made anew, and then its clock has gone on.
        """
        return self.offset > other.offset and self.timestamp_ms >= other.timestamp_ms


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
        place: of the catalogue record that it comes from; None if an older version of Millrace wrote it.
        content_hash: of the whole message; empty of a deletion, and if an older version of Millrace wrote it.
    """

    product_id: str
    version: int
    base_version: str
    text_hash: str = ""
    vector: np.ndarray | None = None
    payload: PointPayload | None = None
    place: CatalogPlace | None = None
    content_hash: str = ""
    features: np.ndarray = field(init=False, repr=False)
    """Keys of what its quality is learned of: made once, for every product release asks for them all."""

    def __post_init__(self) -> None:
        """Make the features."""
        keys = NO_FEATURES if self.payload is None else keys_of(product_features(self.payload))
        object.__setattr__(self, "features", keys)

    @classmethod
    def from_message(cls, message: ProductVector) -> "BaseProduct":
        """Make a product from its record on `product-vectors`."""
        vector = None if message.deleted else np.frombuffer(message.vector_bytes(), dtype="<f4")
        offset, time = message.catalog_offset, message.catalog_time
        return cls(
            message.product_id,
            message.version,
            sys.intern(message.base_version),
            message.text_hash,
            vector,
            message.payload,
            None if offset is None or time is None else CatalogPlace(offset, time),
            message.content_hash,
        )

    def to_message(self) -> ProductVector:
        """Make its record on `product-vectors`."""
        vector = None if self.vector is None else base64.b64encode(self.vector.astype("<f4").tobytes()).decode()
        return ProductVector(
            product_id=self.product_id,
            version=self.version,
            deleted=self.is_deleted,
            base_version=self.base_version,
            text_hash=self.text_hash,
            content_hash=self.content_hash,
            vector=vector,
            payload=self.payload,
            catalog_offset=None if self.place is None else self.place.offset,
            catalog_time=None if self.place is None else self.place.timestamp_ms,
        )

    @property
    def is_deleted(self) -> bool:
        """Whether the product is gone."""
        return self.vector is None

    @property
    def order(self) -> tuple[int, bool]:
        """What decides between two states of a product: the version, and of one version the deletion."""
        return self.version, self.is_deleted


class BaseVectors:
    """Every product's newest base vector, in memory; safe to use from several threads.

    It also knows of which products the newest record on `product-vectors` is older than what is known: a writer that
    stalled has written last. Compaction would keep that record alone, so somebody has to write the newest state again.

    Args:
        base_version: vectors of another encoder or template are set aside as foreign; None takes any.
    """

    def __init__(self, base_version: str | None = None) -> None:
        self._base_version = base_version
        self._foreign: dict[str, BaseProduct] = {}
        self._products: dict[str, BaseProduct] = {}
        self._outdated: dict[str, None] = {}
        self._deleted_at: dict[str, int] = {}
        self._lock = threading.Lock()

    def apply(self, product: BaseProduct) -> None:
        """Keep a product unless something newer is known of it; of equals the last one stays, as in compaction."""
        with self._lock:
            self._keep(product)

    def read(self, product: BaseProduct, written_at_ms: int = 0) -> None:
        """Take the next record of `product-vectors`."""
        with self._lock:
            self._deleted_at.pop(product.product_id, None)
            if product.is_deleted:
                self._deleted_at[product.product_id] = written_at_ms
            known = self._products.get(product.product_id)
            if product.is_deleted or self._base_version in {None, product.base_version}:
                self._keep(product)
            elif known is None or product.order > known.order:
                foreign = self._foreign.get(product.product_id)
                if foreign is None or product.order >= foreign.order:
                    self._foreign[product.product_id] = product
                return
            if product.order < self._products[product.product_id].order:
                self._outdated[product.product_id] = None
            else:
                self._outdated.pop(product.product_id, None)

    def read_null(self, product_id: str, written_at_ms: int) -> None:
        """Take the next record of `product-vectors` if that is a null: it forgets an old deletion, and nothing else."""
        with self._lock:
            known = self._products.get(product_id)
            if known is None:
                return
            if known.is_deleted and written_at_ms - self._deleted_at.get(product_id, written_at_ms) >= SHORTEST_KEPT_MS:
                for kept in (self._products, self._deleted_at, self._outdated):
                    kept.pop(product_id, None)
            else:
                self._outdated[product_id] = None

    def deleted_before(self, time_ms: int) -> list[BaseProduct]:
        """Return the products that are deleted for so long."""
        with self._lock:
            old = [product_id for product_id, at_ms in self._deleted_at.items() if at_ms < time_ms]
            found = [self._products.get(product_id) for product_id in old]
        return [product for product in found if product is not None and product.is_deleted]

    def _keep(self, product: BaseProduct) -> None:
        known = self._products.get(product.product_id)
        if known is None or product.order >= known.order:
            self._products[product.product_id] = product
            foreign = self._foreign.get(product.product_id)
            if foreign is not None and product.order >= foreign.order:
                del self._foreign[product.product_id]

    def get(self, product_id: str) -> BaseProduct | None:
        """Return what is known of a product."""
        return self._products.get(product_id)

    def snapshot(self) -> list[BaseProduct]:
        """Return every product as it is now, deletions included."""
        with self._lock:
            return list(self._products.values())

    def outdated(self) -> list[BaseProduct]:
        """Return the products whose newest record on the topic is older than this."""
        with self._lock:
            return [self._products[product_id] for product_id in self._outdated]

    def topic_is_new(self) -> None:
        """Note that `product-vectors` was made anew: nothing that is known is there until it was read again."""
        with self._lock:
            self._outdated = dict.fromkeys(self._products)

    def foreign(self) -> list[BaseProduct]:
        """Return the products whose newest state was encoded by another base."""
        with self._lock:
            return list(self._foreign.values())

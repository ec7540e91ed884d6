"""What is known of every product: its base vector and payload, newest wins. The source of every point in the index."""

import base64
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np

from contracts.catalog import PointPayload, ProductVector
from indexer.catalog.product_file import ProductFile, Row, State
from towers.features import keys_of, product_features

NO_FEATURES: Final = keys_of(())
SHORTEST_KEPT_MS: Final = 3_600_000
"""A null on `product-vectors` forgets a deletion that is older; anything else it has overtaken, to be written again."""
MOST_AT_ONCE: Final = 512
"""Products that are written again, or whose deletions are forgotten, at once: no reader waits for more."""


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
    _features: np.ndarray | None = field(init=False, repr=False, default=None)

    @classmethod
    def from_message(cls, message: ProductVector) -> Self:
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

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Make a product from its row in the file."""
        state = row.state
        made = cls(
            state.product_id,
            state.version,
            state.base_version,
            state.text_hash,
            None if row.vector is None else np.frombuffer(row.vector, dtype="<f4"),
            None if row.payload is None else PointPayload.model_validate_json(row.payload),
            None if row.place is None else CatalogPlace(*row.place),
            state.content_hash,
        )
        object.__setattr__(made, "_features", state.features)
        return made

    def to_row(self) -> Row:
        """Make its row in the file."""
        return Row(
            State(
                self.product_id,
                self.version,
                self.is_deleted,
                self.base_version,
                self.text_hash,
                self.content_hash,
                self.features,
            ),
            self.place,
            None if self.payload is None else self.payload.model_dump_json(exclude_defaults=True).encode(),
            None if self.vector is None else self.vector.astype("<f4").tobytes(),
        )

    @property
    def features(self) -> np.ndarray:
        """Keys of what its quality is learned of, uint64; made when they are first asked for."""
        if self._features is None:
            keys = NO_FEATURES if self.payload is None else keys_of(product_features(self.payload))
            object.__setattr__(self, "_features", keys)
            return keys
        return self._features

    @property
    def is_deleted(self) -> bool:
        """Whether the product is gone."""
        return self.vector is None

    def fits(self, dim: int) -> bool:
        """Whether it has no vector, or one of this width that the index takes."""
        return self.vector is None or (len(self.vector) == dim and bool(np.isfinite(self.vector).all()))

    @property
    def order(self) -> tuple[int, bool]:
        """What decides between two states of a product: the version, and of one version the deletion."""
        return self.version, self.is_deleted


class BaseVectors:
    """Every product's newest base vector, in a file; safe to use from several threads.

    It also knows of which products the newest record on `product-vectors` is older than what is known: a writer that
    stalled has written last. Compaction would keep that record alone, so somebody has to write the newest state again.

    Args:
        base_version: vectors of another encoder or template are set aside as foreign; None takes any.
        folder: of the file; None keeps everything in memory.

    Raises:
        InvariantError: the file cannot be made, written or read.
    """

    def __init__(self, base_version: str | None = None, folder: Path | None = None) -> None:
        self._base_version = base_version
        self._foreign = ProductFile(folder)
        self._products = ProductFile(folder)
        self._outdated: dict[str, None] = {}
        self._deleted_at: dict[str, int] = {}
        self._lock = threading.Lock()

    def apply(self, product: BaseProduct) -> None:
        """Keep a product unless something newer is known of it; of equals the last one stays, as in compaction."""
        with self._lock:
            self._keep(product)

    def read(self, product: BaseProduct, written_at_ms: int = 0) -> None:
        """Take the next record of `product-vectors`."""
        product_id = product.product_id
        with self._lock:
            self._deleted_at.pop(product_id, None)
            if product.is_deleted:
                self._deleted_at[product_id] = written_at_ms
            if product.is_deleted or self._base_version in {None, product.base_version}:
                is_newest = self._keep(product)
            else:
                known = self._products.order(product_id)
                is_newest = known is not None and product.order == known
                if known is None or product.order > known:
                    foreign = self._foreign.order(product_id)
                    if foreign is None or product.order >= foreign:
                        self._foreign.put(product.to_row())
                    return
            if is_newest:
                self._outdated.pop(product_id, None)
            else:
                self._outdated[product_id] = None

    def read_null(self, product_id: str, written_at_ms: int) -> None:
        """Take the next record of `product-vectors` if that is a null: it forgets an old deletion, and nothing else."""
        with self._lock:
            known = self._products.order(product_id)
            if known is None:
                return
            _, is_deleted = known
            if is_deleted and written_at_ms - self._deleted_at.get(product_id, written_at_ms) >= SHORTEST_KEPT_MS:
                self._products.remove(product_id)
                for kept in (self._deleted_at, self._outdated):
                    kept.pop(product_id, None)
            else:
                self._outdated[product_id] = None

    def _keep(self, product: BaseProduct) -> bool:
        """Keep a product, unless something newer is known; return whether it was kept."""
        known = self._products.order(product.product_id)
        if known is not None and product.order < known:
            return False
        self._products.put(product.to_row())
        foreign = self._foreign.order(product.product_id)
        if foreign is not None and product.order >= foreign:
            self._foreign.remove(product.product_id)
        return True

    def __contains__(self, product_id: str) -> bool:
        """Whether a product is known, deleted or not."""
        with self._lock:
            return self._products.order(product_id) is not None

    def get(self, product_id: str) -> BaseProduct | None:
        """Return what is known of a product."""
        with self._lock:
            return _read(self._products, product_id)

    def foreign(self, product_id: str) -> BaseProduct | None:
        """Return the newest state of a product if another base encoded it."""
        with self._lock:
            return _read(self._foreign, product_id)

    def states(self) -> Iterator[State]:
        """Give the state of every product, deletions included: what is there at the start, or what it became."""
        return self._states(self._products)

    def foreign_states(self) -> Iterator[State]:
        """Give the state of every product whose newest one was encoded by another base."""
        return self._states(self._foreign)

    def _states(self, file: ProductFile) -> Iterator[State]:
        number = 0
        while True:
            with self._lock:
                states, number = file.states(number)
            if not states:
                return
            yield from states

    def deleted_before(self, time_ms: int, most: int = MOST_AT_ONCE) -> list[BaseProduct]:
        """Return the first products that are deleted for so long."""
        with self._lock:
            old = (product_id for product_id, at_ms in self._deleted_at.items() if at_ms < time_ms)
            found = [_read(self._products, product_id) for product_id in islice(old, most)]
        return [product for product in found if product is not None and product.is_deleted]

    def outdated(self, most: int = MOST_AT_ONCE) -> list[BaseProduct]:
        """Return the first products whose newest record on the topic is older than this."""
        with self._lock:
            found = [_read(self._products, product_id) for product_id in islice(self._outdated, most)]
        return [product for product in found if product is not None]

    def topic_is_new(self) -> None:
        """Note that `product-vectors` was made anew: nothing that is known is there until it was read again."""
        with self._lock:
            self._outdated = dict.fromkeys(self._products.product_ids())


def _read(file: ProductFile, product_id: str) -> BaseProduct | None:
    row = file.get(product_id)
    return None if row is None else BaseProduct.from_row(row)

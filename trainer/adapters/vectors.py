"""Base vectors: those of products as `product-vectors` has them, those of queries encoded when first seen."""

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
from cachetools import LRUCache
from pydantic import TypeAdapter

from contracts import wire
from contracts.catalog import ProductVector
from contracts.errors import ContractError
from service.logging import get_logger
from towers.release_files import Encoder

FIRST_ROWS: Final = 1024
KEPT_QUERIES: Final = 20_000
"""30 MB at 384 dimensions; a shop's head and torso queries."""
VECTOR: Final[TypeAdapter[ProductVector]] = TypeAdapter(ProductVector)


class VectorTable:
    """The base vector of every product, the newest version each, as one matrix; rows of deleted ones are used again.

    Fed by a follower's thread and read by the loop's, one lock between them.

    Args:
        dim: width of a vector.
        base_version: vectors of another encoder or template are left out: they mean something else.
    """

    def __init__(self, dim: int, *, base_version: str) -> None:
        self._dim = dim
        self._base_version = base_version
        self._lock = threading.Lock()
        self._matrix = np.zeros((FIRST_ROWS, dim), dtype=np.float32)
        self._rows: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._free: list[int] = []
        self._sorted: list[str] | None = None
        self.foreign_records = 0
        """Vectors of another base version that were left out."""
        self._foreign_base = ""
        self.forget()

    def forget(self) -> None:
        """Forget everything: the topic was deleted and made anew, and its versions may begin anew, too."""
        with self._lock:
            self._rows.clear()
            self._versions.clear()
            self._free = list(range(len(self._matrix) - 1, -1, -1))
            self._sorted = None
            self.foreign_records = 0

    def on_record(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of the topic; one that breaks its contract is named in the log and changes nothing."""
        try:
            product_id = key.decode()
            vector = None if value is None else wire.decode(value, VECTOR)
        except (ContractError, UnicodeDecodeError) as error:
            get_logger().warning("product_vector_unreadable", key=repr(key), error=str(error))
            return
        if vector is None:
            self._remove(product_id, version=None)
        elif vector.deleted:
            self._remove(product_id, version=vector.version)
        else:
            self._put(vector)

    def not_usable(self) -> str | None:
        """Give the reason why no pair can be trained, as a readiness check; an empty catalogue is no reason."""
        if self._rows or not self.foreign_records:
            return None
        return f"no vector is of base model {self._base_version}; the newest is of {self._foreign_base}"

    def ids(self) -> Sequence[str]:
        """Give every product, sorted: the order in which they arrived must not decide what is drawn."""
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self._rows)
            return self._sorted

    def __contains__(self, product_id: object) -> bool:
        return product_id in self._rows

    def vectors(self, product_ids: Sequence[str]) -> np.ndarray:
        """Give base vectors (n, D) of products; one that was deleted a moment ago has the zero vector."""
        with self._lock:
            rows = [self._rows.get(product_id, -1) for product_id in product_ids]
            found: np.ndarray = self._matrix[rows]
        found[np.array(rows, dtype=np.int64) < 0] = 0.0
        return found

    def _put(self, vector: ProductVector) -> None:
        """Keep a vector unless a newer version is known."""
        content = np.frombuffer(vector.vector_bytes(), dtype="<f4")
        if vector.base_version != self._base_version or content.shape != (self._dim,):
            self._count_foreign(vector)
            return
        with self._lock:
            if vector.version < self._versions.get(vector.product_id, 0):
                return
            self._versions[vector.product_id] = vector.version
            if vector.product_id not in self._rows:
                self._rows[vector.product_id] = self._free_row()
                self._sorted = None
            self._matrix[self._rows[vector.product_id]] = content

    def _remove(self, product_id: str, *, version: int | None) -> None:
        """Forget a product, unless a newer version of it is known."""
        with self._lock:
            if version is not None and version < self._versions.get(product_id, 0):
                return
            if version is not None:
                self._versions[product_id] = version
            row = self._rows.pop(product_id, None)
            if row is not None:
                self._free.append(row)
                self._sorted = None

    def _free_row(self) -> int:
        """Find an unused row; the matrix doubles when none is left."""
        if not self._free:
            size = len(self._matrix)
            self._matrix = np.concatenate([self._matrix, np.zeros_like(self._matrix)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        return self._free.pop()

    def _count_foreign(self, vector: ProductVector) -> None:
        self.foreign_records += 1
        self._foreign_base = vector.base_version
        if self.foreign_records == 1:
            get_logger().warning("foreign_vectors_left_out", found=vector.base_version, wanted=self._base_version)


class QueryVectors:
    """Encodes each text on its own, so that its vector does not depend on which texts were encoded with it.

    That costs a few milliseconds for a text that was never seen, and buys that a trainer which was interrupted
    computes the same bits as one that was not.

    Args:
        encoder: the base encoder.
        capacity: texts that are kept.
    """

    def __init__(self, encoder: Encoder, *, capacity: int = KEPT_QUERIES) -> None:
        self._encoder = encoder
        self._vectors: LRUCache[str, np.ndarray] = LRUCache(capacity)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Give base vectors (n, D) of texts."""
        rows = [self._vector(text) for text in texts]
        return np.stack(rows) if rows else np.empty((0, self._encoder.dim), dtype=np.float32)

    def _vector(self, text: str) -> np.ndarray:
        vector: np.ndarray | None = self._vectors.get(text)
        if vector is None:
            vector = self._vectors[text] = self._encoder.encode([text])[0]
        return vector

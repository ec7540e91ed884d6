"""`product-vectors` as one matrix: the base vector of every product of the catalogue, the newest version each.

Fed by a follower's thread and read by the loop's, one lock between them. Rows of deleted products are used again.
"""

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from contracts import wire
from contracts.catalog import ProductVector
from contracts.errors import ContractError
from service.logging import get_logger

FIRST_ROWS: Final = 1024
VECTOR: Final[TypeAdapter[ProductVector]] = TypeAdapter(ProductVector)


class VectorTable:
    """Base vectors by product.

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
        self._free: list[int] = list(range(FIRST_ROWS - 1, -1, -1))
        self._sorted: list[str] | None = []
        self.foreign_records = 0
        """Vectors of another base version that were left out."""

    def on_record(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of the topic; one that breaks its contract is named in the log and changes nothing."""
        try:
            product_id = key.decode()
            vector = None if value is None else wire.decode(value, VECTOR)
        except (ContractError, UnicodeDecodeError) as error:
            get_logger().warning("record on product-vectors refused", key=repr(key), error=str(error))
            return
        if vector is None:
            self._remove(product_id, version=None)
        elif vector.deleted:
            self._remove(product_id, version=vector.version)
        else:
            self._put(vector)

    def ids(self) -> Sequence[str]:
        """Return every product, sorted: the order in which they arrived must not decide what is drawn."""
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self._rows)
            return self._sorted

    def __contains__(self, product_id: object) -> bool:
        return product_id in self._rows

    def vectors(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return base vectors (n, D) of products; one that was deleted a moment ago has the zero vector."""
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
        """Return an unused row; the matrix doubles when none is left."""
        if not self._free:
            size = len(self._matrix)
            self._matrix = np.concatenate([self._matrix, np.zeros_like(self._matrix)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        return self._free.pop()

    def _count_foreign(self, vector: ProductVector) -> None:
        """Count a vector that is not of this base, and say so once."""
        self.foreign_records += 1
        if self.foreign_records == 1:
            get_logger().warning(
                "vectors of another base model left out", found=vector.base_version, wanted=self._base_version
            )

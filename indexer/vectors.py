"""Base vectors of all products in memory, newest version each: what a new product release is computed from."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from contracts import wire
from contracts.errors import UsageError
from contracts.vectors import ProductVector
from indexer.core.points import ProductPoint
from towers.heads import ProductHead, apply_head

_VECTOR = TypeAdapter(ProductVector)


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """One product: its version, and unless it is deleted its base vector (dim,) and payload."""

    product_id: str
    version: int
    text_hash: str
    row: np.ndarray | None
    payload: dict[str, object]


class BaseVectors:
    """The newest base vector of every product. Safe for several threads.

    Args:
        base_version: of this process's encoder; vectors of another are refused.
    """

    def __init__(self, base_version: str) -> None:
        self._base_version = base_version
        self._lock = threading.Lock()
        self._newest: dict[str, Base] = {}

    def take(self, _key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of `product-vectors`.

        Raises:
            UsageError: the vectors on the topic were made by another base encoder.
        """
        if value is not None:
            self.apply([wire.decode(value, _VECTOR)])

    def apply(self, vectors: Iterable[ProductVector]) -> None:
        """Keep vectors that are not older than what is here."""
        made = [self._base(vector) for vector in vectors]
        with self._lock:
            for base in made:
                known = self._newest.get(base.product_id)
                if known is None or base.version >= known.version:
                    self._newest[base.product_id] = base

    def _base(self, vector: ProductVector) -> Base:
        if not vector.deleted and vector.base_version != self._base_version:
            raise UsageError(
                f"the vectors on this cluster were made by {vector.base_version}, this process has {self._base_version}",
                fix="set the MILLRACE_BASE_MODEL that made them, or choose another MILLRACE_TOPIC_PREFIX and load anew",
            )
        return base_of(vector)

    def known_row(self, product_id: str, text_hash: str) -> np.ndarray | None:
        """Return a product's base vector where its text has not changed."""
        base = self._newest.get(product_id)
        return base.row if base is not None and base.text_hash == text_hash else None

    def version_of(self, product_id: str) -> int | None:
        """Return the newest version seen of a product, deletions included."""
        base = self._newest.get(product_id)
        return None if base is None else base.version

    def snapshot(self) -> list[Base]:
        """Return every product as it is now, deletions included."""
        with self._lock:
            return list(self._newest.values())

    def live(self) -> int:
        """Return how many products are not deleted."""
        with self._lock:
            return sum(base.row is not None for base in self._newest.values())


def base_of(vector: ProductVector) -> Base:
    """Return a message of `product-vectors` as it is kept in memory."""
    row = np.frombuffer(vector.vector_bytes(), dtype="<f4") if vector.vector else None
    payload = vector.payload.model_dump(mode="json", exclude_none=True) if vector.payload else {}
    return Base(vector.product_id, vector.version, vector.text_hash, row, payload)


def points_of(bases: Sequence[Base], head: ProductHead | None, *, product_release: int) -> list[ProductPoint]:
    """Return products as points of a release; a head of None is release 0, the identity."""
    live = [base.row for base in bases if base.row is not None]
    rows = np.stack(live) if live else np.empty((0, 0), dtype=np.float32)
    moved = iter((rows if head is None or not live else apply_head(head, rows)).tolist())
    return [
        ProductPoint(
            base.product_id, base.version, product_release, None if base.row is None else next(moved), base.payload
        )
        for base in bases
    ]

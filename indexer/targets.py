"""Where every write of a product goes: the collection in force and, during a roll-out, the one under construction."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexer.core.base_vectors import BaseProduct
from indexer.core.points import ProductPoint
from towers.heads import ProductHead, apply_head


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
        return [
            product.point(self.product_release, None if product.is_deleted else next(vectors)) for product in products
        ]


class Targets:
    """The targets in force; whoever takes them once per batch writes to a set that belongs together.

    The order that makes the dual writes of one indexer complete: a writer keeps a product in the base vectors first and
    takes the targets then; a roll-out adds its target first and takes the base vectors then. So whatever one has
    missed, the other has. What the others of the group write is the matter of `core/rollover.py`.
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

"""A product as one point of the index, and which of several points of one product is written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.catalog import PointVersion, is_newer


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
        return PointVersion(self.version, self.product_release)

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
        held = newest.get(point.product_id)
        if is_newer(point.point_version, held.point_version if held else None):
            newest[point.product_id] = point
    return list(newest.values())

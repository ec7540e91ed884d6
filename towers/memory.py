"""What shoppers of a repeated query chose: for some products, by how much more or less than the rest of the model says.

It names single products, so that it can tell one of two that look alike from the other. It rides in no vector: search
looks its products up beside those that both arms find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self
from uuid import UUID

import numpy as np

from contracts.catalog import point_id
from towers.features import key_of
from towers.text import normalised

MOST_PRODUCTS: Final = 16
"""Of one query."""
MOST_NATS: Final = 10.0
"""By which one product is moved."""
LEAST_NATS: Final = 0.01
"""What moves a product less has been forgotten on the way to another release."""
_WORD: Final = 2**64


@dataclass(frozen=True, slots=True, eq=False)
class QueryMemory:
    """M queries and E products of theirs.

    Args:
        queries: keys of the normalised queries, rising, (M,) uint64.
        counts: products of each, (M,) uint64.
        points: ids of their points in the vector store, upper and lower half, query by query, (E, 2) uint64.
        nats: what each adds to its product's score, (E,) float16.
    """

    queries: np.ndarray
    counts: np.ndarray
    points: np.ndarray
    nats: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    @classmethod
    def nothing(cls) -> Self:
        """No query is remembered."""
        return cls.of([])

    @classmethod
    def of(cls, remembered: Sequence[tuple[int, Mapping[str, float]]]) -> Self:
        """Make it of queries' keys, and of the nats of each one's products by id."""
        ordered = sorted(remembered)
        queries, counts = np.array([(key, len(nats)) for key, nats in ordered], np.uint64).reshape(-1, 2).T
        numbers = [divmod(UUID(_point_id(name)).int, _WORD) for _, nats in ordered for name in nats]
        points = np.array(numbers, dtype=np.uint64).reshape(-1, 2)
        added = np.array([value for _, nats in ordered for value in nats.values()], dtype=np.float16)
        return cls(queries.copy(), counts.copy(), points, added)

    def nats_of(self, query: str) -> dict[str, float]:
        """What is added for a query, as it was typed: nats by point id.

        >>> QueryMemory.of([(key_of("red shoe"), {"P-1": 1.5})]).nats_of("Red  SHOE")
        {'529a5352-385c-5db4-9dd0-0c347ac4b3bb': 1.5}
        """
        key = np.uint64(key_of(normalised(query)))
        place = int(np.searchsorted(self.queries, key))
        if place == len(self.queries) or self.queries[place] != key:
            return {}
        first = int(self.counts[:place].sum())
        part = slice(first, first + int(self.counts[place]))
        points = (UUID(int=upper * _WORD + lower) for upper, lower in self.points[part].tolist())
        return dict(zip(map(str, points), self.nats[part].tolist(), strict=True))

    def nats_of_products(self, query: str, product_ids: Sequence[str]) -> np.ndarray:
        """What is added for a query, as it was typed, to each of some products, in nats, (N,)."""
        remembered = self.nats_of(query)
        if not remembered:
            return np.zeros(len(product_ids))
        return np.array([remembered.get(_point_id(one), 0.0) for one in product_ids])

    def towards(self, other: Self, *, share: float) -> "QueryMemory":
        """What lies on the way to another one: a share of that one, the rest of this one."""
        keys = np.concatenate([np.repeat(one.queries, one.counts.astype(np.int64)) for one in (self, other)])
        points = np.concatenate([self.points, other.points])
        nats = np.concatenate([(1 - share) * self.nats.astype(float), share * other.nats.astype(float)])
        order = np.lexsort((points[:, 1], points[:, 0], keys))
        keys, points, nats = keys[order], points[order], nats[order]
        is_new = np.ones(len(keys), dtype=bool)
        is_new[1:] = (keys[1:] != keys[:-1]) | (points[1:] != points[:-1]).any(axis=1)
        starts = np.flatnonzero(is_new)
        keys, points, nats = keys[starts], points[starts], np.add.reduceat(nats, starts) if len(starts) else nats
        order = np.lexsort((points[:, 1], points[:, 0], -np.abs(nats), keys))
        first_of = np.searchsorted(keys, keys)  # where each one's query begins: in either order at the same place
        kept = np.sort(order[(np.arange(len(keys)) - first_of < MOST_PRODUCTS) & (np.abs(nats[order]) >= LEAST_NATS)])
        queries, counts = np.unique(keys[kept], return_counts=True)
        return QueryMemory(queries, counts.astype(np.uint64), points[kept], nats[kept].astype(np.float16))

    def tensors(self) -> dict[str, np.ndarray]:
        """What a release carries of it."""
        return {
            "memory_queries": self.queries, "memory_counts": self.counts,
            "memory_points": self.points, "memory_nats": self.nats,
        }  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Self:
        """The memory that a release carries; that of former releases was a vector of each query, and is not read."""
        if "memory_points" not in tensors:
            return cls.nothing()
        return cls(*(tensors[f"memory_{name}"] for name in ("queries", "counts", "points", "nats")))


@lru_cache(maxsize=200_000)
def _point_id(product_id: str) -> str:
    """The id of a product's point: release after release the same products are remembered and looked up."""
    return point_id(product_id)

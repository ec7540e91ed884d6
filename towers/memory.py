"""What shoppers of a repeated query chose: for some products, by how much more or less than the rest of the model says.

It names single products, so that it can tell one of two that look alike from the other. It rides in no vector: search
looks its products up beside those that both arms find.
"""

from collections.abc import Iterable, Mapping, Sequence
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
        keys = np.array([key for key, nats in remembered for _ in nats], dtype=np.uint64)
        added = np.array([value for _, nats in remembered for value in nats.values()], dtype=float)
        return cls.of_entries(keys, points_of(name for _, nats in remembered for name in nats), added)

    @classmethod
    def of_entries(cls, keys: np.ndarray, points: np.ndarray, nats: np.ndarray) -> Self:
        """Make it of entries in any order.

        Args:
            keys: of their queries, (E,) uint64.
            points: of their products, (E, 2) uint64, as `points_of` gives them.
            nats: what each adds, (E,).
        """
        order = np.lexsort((points[:, 1], points[:, 0], keys))
        queries, counts = np.unique(keys, return_counts=True)
        return cls(queries, counts.astype(np.uint64), points[order], nats[order].astype(np.float16))

    def nats_of(self, query: str) -> dict[str, float]:
        """What is added for a query, as it was typed: nats by point id.

        >>> QueryMemory.of([(key_of("red shoe"), {"P-1": 1.5})]).nats_of("Red  SHOE")
        {'529a5352-385c-5db4-9dd0-0c347ac4b3bb': 1.5}
        """
        return {str(UUID(int=upper * _WORD + lower)): nats for (upper, lower), nats in self._entries(query)}

    def nats_of_products(self, queries: Sequence[str], product_ids: Sequence[str]) -> np.ndarray:
        """What is added for queries, as they were typed, to each of some products, in nats, (Q, P)."""
        column_of = {_point(product_id): column for column, product_id in enumerate(product_ids)}
        found = np.zeros((len(queries), len(product_ids)))
        for row, query in enumerate(queries):
            for point, nats in self._entries(query):
                if point in column_of:
                    found[row, column_of[point]] = nats
        return found

    def _entries(self, query: str) -> Iterable[tuple[tuple[int, int], float]]:
        key = np.uint64(key_of(normalised(query)))
        place = int(np.searchsorted(self.queries, key))
        if place == len(self.queries) or self.queries[place] != key:
            return ()
        first = int(self.counts[:place].sum())
        part = slice(first, first + int(self.counts[place]))
        return zip(map(tuple, self.points[part].tolist()), self.nats[part].tolist(), strict=True)

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
        return QueryMemory.of_entries(keys[kept], points[kept], nats[kept])

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


def points_of(product_ids: Iterable[str]) -> np.ndarray:
    """Ids of products' points, upper and lower half, (N, 2) uint64."""
    return np.array([_point(product_id) for product_id in product_ids], dtype=np.uint64).reshape(-1, 2)


@lru_cache(maxsize=200_000)
def _point(product_id: str) -> tuple[int, int]:
    """The id of a product's point: release after release the same products are remembered and looked up."""
    return divmod(UUID(point_id(product_id)).int, _WORD)

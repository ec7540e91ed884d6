"""What the trainer remembers between steps, each bounded and part of the checkpoint."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

DIGEST_BYTES: Final = 16
PAIR_IDS: Final = 100_000
"""More than an hour's pairs of a busy shop; a repeat from upstream follows within its hold, minutes at most."""
QUERIES: Final = 512
LIKED_QUERIES: Final = 4096
LIKED_PRODUCTS: Final = 16


class RecentIds:
    """Remembers the newest ids by digest, so that a pair which is delivered twice is trained once.

    Args:
        digests: as `to_array` gave them, (n, DIGEST_BYTES) uint8.
        capacity: how many are remembered.
    """

    def __init__(self, digests: np.ndarray | None = None, *, capacity: int = PAIR_IDS) -> None:
        rows: Iterable[np.ndarray] = () if digests is None else digests
        self._digests = dict.fromkeys(row.tobytes() for row in rows)
        self._capacity = capacity

    def add(self, identity: str) -> bool:
        """Remember an id; return False where it was known.

        >>> ids = RecentIds(capacity=2)
        >>> ids.add("a"), ids.add("a"), ids.add("b"), ids.add("c"), ids.add("a")
        (True, False, True, True, True)
        """
        digest = hashlib.blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()
        if digest in self._digests:
            return False
        self._digests[digest] = None
        if len(self._digests) > self._capacity:
            del self._digests[next(iter(self._digests))]
        return True

    def to_array(self) -> np.ndarray:
        """Return the digests, oldest first, (n, DIGEST_BYTES) uint8."""
        return np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


class RecentQueries:
    """The newest distinct queries: what the anchor holds in place and releases are judged on.

    Args:
        queries: oldest first.
        capacity: how many are remembered.
    """

    def __init__(self, queries: Iterable[str] = (), *, capacity: int = QUERIES) -> None:
        self._queries = dict.fromkeys(queries)
        self._capacity = capacity

    def add(self, queries: Iterable[str]) -> None:
        """Remember queries as the newest."""
        for query in queries:
            self._queries.pop(query, None)
            self._queries[query] = None
        while len(self._queries) > self._capacity:
            del self._queries[next(iter(self._queries))]

    def __len__(self) -> int:
        return len(self._queries)

    def newest(self, count: int) -> list[str]:
        """Return up to `count` of them, oldest first.

        >>> recent = RecentQueries(["a", "b"], capacity=2)
        >>> recent.add(["a", "c"])
        >>> recent.newest(5)
        ['a', 'c']
        """
        return list(self._queries)[-count:] if count else []


class LikedProducts:
    """Which products pleased a query before: such a product must not count as its negative.

    Args:
        products: query -> products, both oldest first.
    """

    def __init__(self, products: Mapping[str, Sequence[str]] | None = None) -> None:
        self.by_query: dict[str, list[str]] = {query: list(ids) for query, ids in (products or {}).items()}

    def add(self, query: str, product_id: str) -> None:
        """Remember that a product pleased a query.

        >>> liked = LikedProducts()
        >>> liked.add("fridge", "P-1"); liked.add("fridge", "P-2"); liked.add("fridge", "P-1")
        >>> liked.by_query
        {'fridge': ['P-2', 'P-1']}
        """
        products = self.by_query.pop(query, [])
        kept = [known for known in products if known != product_id]
        self.by_query[query] = [*kept, product_id][-LIKED_PRODUCTS:]
        if len(self.by_query) > LIKED_QUERIES:
            del self.by_query[next(iter(self.by_query))]


def even_sample(times: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the values, evenly spread over their sorted order.

    >>> even_sample([5, 1, 4, 2, 3], 3)
    [1, 3, 5]
    >>> even_sample([2, 1], 3)
    [1, 2]
    """
    ordered = sorted(times)
    if len(ordered) <= count:
        return ordered
    places = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    return [ordered[place] for place in places]

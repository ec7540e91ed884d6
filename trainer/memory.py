"""What the trainer knows besides weights: how far it has come, and what it remembers from step to step.

All of it is bounded and goes into the checkpoint.
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from cachetools import FIFOCache
from pydantic import BaseModel

DIGEST_BYTES: Final = 16
PAIR_IDS: Final = 100_000
"""More than an hour's pairs of a busy shop; a repeat from upstream follows within its hold, minutes at most."""
QUERIES: Final = 512
LIKED_QUERIES: Final = 4096
LIKED_PRODUCTS: Final = 16
BUCKETS: Final = 1 << 16
"""At 100,000 products three in four share a bucket with a rarely clicked one; the fixed size fits in a checkpoint."""
SMOOTHING: Final = 0.1
FIRST_GAP: Final = 100
"""Steps, at most, before a first sighting: a launch would else count as nearly impossible for long, and a contrastive
term corrected for that would push it away from every other query."""


class PendingRelease(BaseModel):
    """A product release that the index is being moved to."""

    product_release: int
    query_release: int
    """Its first query release."""
    step: int
    """The step that both were made at."""


class TrainingProgress(BaseModel):
    """How far the trainer has come: positions, counts, releases."""

    step: int = 0
    pairs_trained: int = 0
    lists_trained: int = 0
    offsets: dict[int, int] = {}
    """Partition -> offset of the next record to learn from."""
    newest_list: dict[int, str] = {}
    """Partition -> search_id of its last pair; the pairs of a list follow one another."""
    last_query_release: int = 0
    """Highest number given out; numbers only grow."""
    last_product_release: int = 0
    query_release: int = 0
    """In force, as `serving` says."""
    product_release: int = 0
    pending: PendingRelease | None = None
    query_parent: int = 0
    """Last query release for the product release in force; the next one goes on from it."""
    click_times: list[int] = []
    query_decided_step: int = 0
    """The step at which a query release was last decided on, whether it was made or refused."""
    query_decided_ms: int = 0
    product_decided_step: int = 0
    product_decided_ms: int = 0


class RecentIds:
    """Remembers the newest ids by digest, so that a pair which is delivered twice is trained once.

    Args:
        digests: as `to_array` gave them, (n, DIGEST_BYTES) uint8.
        capacity: how many are remembered.
    """

    def __init__(self, digests: np.ndarray | None = None, *, capacity: int = PAIR_IDS) -> None:
        self._digests: FIFOCache[bytes, None] = FIFOCache(capacity)
        for row in () if digests is None else digests:
            self._digests[row.tobytes()] = None

    def add(self, identity: str) -> bool:
        """Remember an id; return False if it was known.

        >>> ids = RecentIds(capacity=2)
        >>> ids.add("a"), ids.add("a"), ids.add("b"), ids.add("c"), ids.add("a")
        (True, False, True, True, True)
        """
        digest = hashlib.blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()
        if digest in self._digests:
            return False
        self._digests[digest] = None
        return True

    def to_array(self) -> np.ndarray:
        """Give the digests, oldest first, (n, DIGEST_BYTES) uint8."""
        return np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


class RecentQueries:
    """The newest distinct queries: what the anchor holds in place and releases are judged on.

    Args:
        queries: oldest first.
        capacity: how many are remembered.
    """

    def __init__(self, queries: Iterable[str] = (), *, capacity: int = QUERIES) -> None:
        self._queries: FIFOCache[str, None] = FIFOCache(capacity)
        self.add(queries)

    def add(self, queries: Iterable[str]) -> None:
        """Remember queries as the newest."""
        for query in queries:
            self._queries.pop(query, None)
            self._queries[query] = None

    def __len__(self) -> int:
        return len(self._queries)

    def newest(self, count: int) -> list[str]:
        """Give up to `count` of them, oldest first.

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
        self.by_query: FIFOCache[str, list[str]] = FIFOCache(LIKED_QUERIES)
        for query, ids in (products or {}).items():
            self.by_query[query] = list(ids)

    def add(self, query: str, product_id: str) -> None:
        """Remember that a product pleased a query.

        >>> liked = LikedProducts()
        >>> liked.add("fridge", "P-1"); liked.add("fridge", "P-2"); liked.add("fridge", "P-1")
        >>> dict(liked.by_query)
        {'fridge': ['P-2', 'P-1']}
        """
        products = self.by_query.pop(query, [])
        kept = [known for known in products if known != product_id]
        self.by_query[query] = [*kept, product_id][-LIKED_PRODUCTS:]


class FrequencyEstimator:
    """How often a product is among those of a step's pairs: the Q of logQ, for every product in constant memory.

    Popular products are in-batch negatives more often than others; without the correction the contrastive term would
    punish popularity itself. Per bucket of a hash, the moving average of the number of steps between two sightings.

    Source: Yi et al. 2019, algorithm 2 (docs/papers.md).

    Args:
        last_step: step of each bucket's newest sighting, -1 if never seen, (BUCKETS,) int64.
        gap_steps: moving average of steps between two sightings, (BUCKETS,) float32.
    """

    def __init__(self, last_step: np.ndarray | None = None, gap_steps: np.ndarray | None = None) -> None:
        self.last_step = np.full(BUCKETS, -1, dtype=np.int64) if last_step is None else last_step
        self.gap_steps = np.zeros(BUCKETS, dtype=np.float32) if gap_steps is None else gap_steps

    def observe(self, product_ids: Sequence[str], step: int) -> None:
        """Note that these products are in the micro-batch of a step."""
        buckets = np.unique(buckets_of(product_ids))
        last = self.last_step[buckets]
        seen = last >= 0
        gaps = np.where(seen, step - last, min(step + 1, FIRST_GAP)).astype(np.float32)
        smoothing = np.where(seen, SMOOTHING, 1.0).astype(np.float32)
        self.gap_steps[buckets] = (1 - smoothing) * self.gap_steps[buckets] + smoothing * gaps
        self.last_step[buckets] = step

    def rates(self, product_ids: Sequence[str]) -> np.ndarray:
        """Estimate the probability per step of each product, 0 if it was never seen, (len(product_ids),) float32."""
        gaps: np.ndarray = self.gap_steps[buckets_of(product_ids)]
        rates: np.ndarray = np.divide(1.0, gaps, out=np.zeros_like(gaps), where=gaps > 0)
        return rates


def buckets_of(product_ids: Sequence[str]) -> np.ndarray:
    """Give the bucket of each product, the same in every process.

    >>> buckets_of(["P-1", "P-2"]).tolist()
    [44407, 64717]
    """
    return np.array([zlib.crc32(product_id.encode()) % BUCKETS for product_id in product_ids], dtype=np.int64)

"""How often a product stands among the positives and negatives of a step: the Q of logQ.

Popular products are in-batch negatives more often than others; without the correction the contrastive term would
punish popularity itself. The estimator is the streaming one of Yi et al. 2019 (algorithm 2): per bucket of a hash, the
moving average of the number of steps between two sightings.
"""

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

BUCKETS: Final = 1 << 16
"""At 100,000 products three in four share a bucket with a rarely clicked one; the fixed size fits in a checkpoint."""

SMOOTHING: Final = 0.1

FIRST_GAP: Final = 100
"""Steps, at most, before a first sighting: a launch would else count as nearly impossible for long, and a contrastive
term corrected for that would push it away from every other query."""


class FrequencyEstimator:
    """Per-step probability of standing in a micro-batch, for every product, in constant memory.

    Args:
        last_step: step of each bucket's newest sighting, -1 where never seen, (BUCKETS,) int64.
        gap_steps: moving average of steps between two sightings, (BUCKETS,) float32.
    """

    def __init__(self, last_step: np.ndarray | None = None, gap_steps: np.ndarray | None = None) -> None:
        self.last_step = np.full(BUCKETS, -1, dtype=np.int64) if last_step is None else last_step
        self.gap_steps = np.zeros(BUCKETS, dtype=np.float32) if gap_steps is None else gap_steps

    def observe(self, product_ids: Sequence[str], step: int) -> None:
        """Note that these products stand in the micro-batch of a step."""
        buckets = np.unique(buckets_of(product_ids))
        last = self.last_step[buckets]
        seen = last >= 0
        gaps = np.where(seen, step - last, min(step + 1, FIRST_GAP)).astype(np.float32)
        smoothing = np.where(seen, SMOOTHING, 1.0).astype(np.float32)
        self.gap_steps[buckets] = (1 - smoothing) * self.gap_steps[buckets] + smoothing * gaps
        self.last_step[buckets] = step

    def rates(self, product_ids: Sequence[str]) -> np.ndarray:
        """Return the probability per step of each product, 0 where it was never seen, (len(product_ids),) float32."""
        gaps: np.ndarray = self.gap_steps[buckets_of(product_ids)]
        rates: np.ndarray = np.divide(1.0, gaps, out=np.zeros_like(gaps), where=gaps > 0)
        return rates


def buckets_of(product_ids: Sequence[str]) -> np.ndarray:
    """Return the bucket of each product, the same in every process.

    >>> buckets_of(["P-1", "P-2"]).tolist()
    [44407, 64717]
    """
    return np.array([zlib.crc32(product_id.encode()) % BUCKETS for product_id in product_ids], dtype=np.int64)

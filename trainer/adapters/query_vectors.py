"""Base vectors of queries, encoded when first seen and kept."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from towers.release_files import Encoder

KEPT: Final = 20_000
"""30 MB at 384 dimensions; a shop's head and torso queries."""


class QueryVectors:
    """Encodes each text on its own, so that its vector does not depend on which texts were encoded with it.

    That costs a few milliseconds for a text that was never seen, and buys that a trainer which was interrupted
    computes the same bits as one that was not.

    Args:
        encoder: the base encoder.
        capacity: texts that are kept.
    """

    def __init__(self, encoder: Encoder, *, capacity: int = KEPT) -> None:
        self._encoder = encoder
        self._capacity = capacity
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return base vectors (n, D) of texts."""
        rows = [self._vector(text) for text in texts]
        return np.stack(rows) if rows else np.empty((0, self._encoder.dim), dtype=np.float32)

    def _vector(self, text: str) -> np.ndarray:
        """Return one text's vector."""
        vector = self._vectors.get(text)
        if vector is None:
            vector = self._vectors[text] = self._encoder.encode([text])[0]
            if len(self._vectors) > self._capacity:
                self._vectors.popitem(last=False)
        self._vectors.move_to_end(text)
        return vector

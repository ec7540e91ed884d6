"""Base vectors of queries, with the hot ones remembered."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from towers.release_files import Encoder

HOT_QUERIES: Final = 20_000


class QueryEncoder:
    """Encodes queries with the base encoder and remembers the most recent.

    Safe for several threads.

    Args:
        encoder: the base encoder.
        capacity: how many queries are remembered.
    """

    def __init__(self, encoder: Encoder, *, capacity: int = HOT_QUERIES) -> None:
        self.encoder = encoder
        self._capacity = capacity
        self._hot: OrderedDict[str, np.ndarray] = OrderedDict()
        self._remembering = threading.Lock()

    def known(self, texts: Sequence[str]) -> np.ndarray | None:
        """Return base vectors (N, dim) where every text is remembered, else None; never encodes."""
        with self._remembering:
            if any(text not in self._hot for text in texts):
                return None
            for text in texts:
                self._hot.move_to_end(text)
            return np.stack([self._hot[text] for text in texts])

    def base(self, texts: Sequence[str]) -> np.ndarray:
        """Return base vectors (N, dim), unit float32, encoding what is not remembered."""
        remembered = self.known(texts)
        if remembered is not None:
            return remembered
        rows = self.encoder.encode(list(texts))
        with self._remembering:
            for text, row in zip(texts, rows, strict=True):
                self._hot[text] = row
                self._hot.move_to_end(text)
            while len(self._hot) > self._capacity:
                self._hot.popitem(last=False)
        return rows

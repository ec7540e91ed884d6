"""The base encoder shared by the threads of one process: one text batch at a time."""

import os
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from towers.encoder import BaseEncoder, load_encoder

BULK_THREADS: Final = 2
"""Torch threads where whole catalogues are encoded; more gain little on texts this short."""


class SharedEncoder:
    """A base encoder behind a lock: its tokenizer refuses to be used by two threads at once.

    Args:
        encoder: the encoder.
    """

    def __init__(self, encoder: BaseEncoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()
        self.dim = encoder.dim
        self.base_version = encoder.base_version

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Return unit float32 rows (N, D); the texts of a batch are of like length, whatever the order given."""
        with self._lock:
            return self._encoder.encode(texts, batch_size=batch_size)


def load_shared_encoder(model_name: str, *, bulk: bool = False) -> SharedEncoder:
    """Return the base encoder of a name or folder.

    Args:
        model_name: any sentence-transformers model.
        bulk: whether whole catalogues are encoded here, which is worth a second core where there is one.

    Raises:
        DependencyDown: its weights are nowhere to be had.
    """
    threads = min(BULK_THREADS, os.cpu_count() or 1) if bulk else 1
    return SharedEncoder(load_encoder(model_name, torch_threads=threads))

"""The frozen base encoder that both towers share: texts in, unit vectors out.

`base_version` names model, weights and text template. Vectors of different base versions must never meet, so the
digest is taken over the weights themselves: the same weights give the same version whatever source they came from.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from contracts.errors import DependencyDown
from towers.text import TEMPLATE_VERSION
from towers.weights import find_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_THREADS: Final = 1
"""Several processes share a machine's cores; one text encodes no faster with more."""


class BaseEncoder:
    """A sentence-transformers model in inference mode; several threads may share it, one encodes at a time.

    Args:
        model: the model.
        name: its name without the owner, for `base_version`.
    """

    def __init__(self, model: "SentenceTransformer", *, name: str) -> None:
        self._model = model
        self._encoding = threading.Lock()
        self.dim = int(self.encode([""]).shape[1])
        self.base_version = f"{name}/{_digest(model)}/t{TEMPLATE_VERSION}"

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Return unit float32 rows (N, D), in the order of the texts."""
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        with self._encoding:
            rows = self._model.encode(
                list(texts),
                batch_size=batch_size,
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.ascontiguousarray(rows, dtype=np.float32)


def load_encoder(model_name: str, *, torch_threads: int | None = DEFAULT_THREADS) -> BaseEncoder:
    """Return the base encoder of a name or folder, on the CPU.

    Args:
        model_name: any sentence-transformers model.
        torch_threads: threads of every torch operation in this process; None leaves torch's own choice.

    Raises:
        DependencyDown: its weights are nowhere to be had, or cannot be read.
    """
    folder = find_weights(model_name)
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # ships without an annotation
    try:
        model = SentenceTransformer(str(folder.path), device="cpu", local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DependencyDown(
            f"base model {model_name} from {folder.source} ({folder.path}) cannot be read: {error}",
            fix="remove that folder so that it is fetched again, or correct MILLRACE_BASE_MODEL",
        ) from error
    model.eval()
    model.requires_grad_(requires_grad=False)
    return BaseEncoder(model, name=model_name.rstrip("/").rsplit("/", 1)[-1])


def _digest(model: "SentenceTransformer") -> str:
    """Return eight hex digits of what the weights are."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]

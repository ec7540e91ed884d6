"""A base model as sentence-transformers runs it, and its translation for ONNX Runtime.

`python -m towers.torch_model WEIGHTS INTO` translates the model of a folder.
"""

import hashlib
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson
from typing_extensions import override

from contracts.errors import DependencyDown
from towers.translated_model import DESCRIPTION, GRAPH, TOKENIZER, VECTORS, TranslatedModel, digest_of
from towers.weights import WeightsFolder, quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TOLERANCE: Final = 1e-5
"""By how much a number of a translated model's vectors may differ: rounding of float32 over some hundred numbers."""
PROBES: Final = (
    "",
    " red  small oven ",
    "Ångström CAFÉ № ½ 冷蔵庫 \N{SMILING FACE WITH SUNGLASSES}",
    "GB-5500 55in (139cm) 4K-TV, 2024",
    "word " * 2_000,
)
"""Texts by which a translated model is compared with the original: nothing, blanks, scripts, numbers, too much."""


class TorchModel:
    """A sentence-transformers model in inference mode; one thread encodes at a time.

    Raises:
        DependencyDown: the model cannot be read.
    """

    def __init__(self, weights: WeightsFolder, *, threads: int = 1) -> None:
        quiet()
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        torch.set_num_threads(threads)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # ships without an annotation
        try:
            self.model = SentenceTransformer(str(weights.path), device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise DependencyDown(
                f"base model from {weights.source} ({weights.path}) cannot be read: {error}",
                fix="remove that folder so that it is fetched again, or correct MILLRACE_BASE_MODEL",
            ) from error
        self.model.eval()
        self.model.requires_grad_(requires_grad=False)
        self.digest = weights_digest(self.model)
        self._encoding = threading.Lock()
        self.dim = int(self.encode([""], batch_size=1).shape[1])

    def encode(self, texts: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Encode at least one text to unit float32 rows (N, D), in their order."""
        with self._encoding:
            rows = self.model.encode(
                list(texts),
                batch_size=batch_size,
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.ascontiguousarray(rows, dtype=np.float32)


def weights_digest(model: "SentenceTransformer") -> str:
    """Name the weights of a model, whatever source they came from."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def translate(model: TorchModel, into: Path) -> None:
    """Write a model for ONNX Runtime into a new folder, or why it cannot be.

    Raises:
        OSError: the folder cannot be written; that, too little memory and a missing package say nothing of the model.
    """
    into.mkdir()
    why = None
    try:
        _write(model, into)
        ours, theirs = TranslatedModel(into).encode(PROBES, batch_size=2), model.encode(PROBES, batch_size=2)
        if not np.allclose(ours, theirs, rtol=0.0, atol=TOLERANCE):
            why = f"its vectors differ by {np.abs(ours - theirs).max():.1e}"
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001 - a model is any code, and whatever stops its translation, torch runs it
        why = f"{type(error).__name__}: {error}"[:500]
    if why is not None:
        shutil.rmtree(into)
        into.mkdir()
        (into / DESCRIPTION).write_bytes(orjson.dumps({"refused": why, "files": {}}))


def _write(model: TorchModel, into: Path) -> None:
    """Write graph, tokenizer and description."""
    import torch

    class Vectors(torch.nn.Module):
        """Tokens to unit vectors: every module of the model, one after the other."""

        def __init__(self, modules: "SentenceTransformer") -> None:
            super().__init__()
            self.parts = modules

        @override
        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            """Return rows (N, D) of what the tokenizer gives, each (N, T)."""
            features = dict(zip(tokens, values, strict=True))
            for part in self.parts:
                features = part(features)
            return torch.nn.functional.normalize(features["sentence_embedding"], dim=1)

    original = model.model
    tokenizer = original.tokenizer
    tokens = dict(tokenizer(["red kettle", "a text of some more words"], padding=True, return_tensors="pt"))
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        Vectors(original).eval(),
        tuple(tokens.values()),
        into / GRAPH,
        input_names=list(tokens),
        output_names=[VECTORS],
        dynamic_shapes=(tuple(axes for _ in tokens),),
        dynamo=True,
        verbose=False,
    )
    original.encode([""])  # sets where texts are cut and how they are padded, which the file is to say
    tokenizer.backend_tokenizer.save(str(into / TOKENIZER))
    prompt = original.prompts.get(original.default_prompt_name or "", "")
    files = {path.name: digest_of(path) for path in into.iterdir()}
    described = {"digest": model.digest, "dim": model.dim, "prompt": prompt, "files": files}
    (into / DESCRIPTION).write_bytes(orjson.dumps(described))


def main() -> None:
    """Translate the model of one folder into another."""
    weights, into = sys.argv[1:]
    translate(TorchModel(WeightsFolder(Path(weights), "folder")), Path(into))


if __name__ == "__main__":
    main()

"""The frozen base encoder that both towers share: texts in, unit vectors out.

`base_version` names model, weights and text template. Vectors of different base versions must never meet, so the
digest is taken over the weights themselves: the same weights give the same version whatever source they came from.

A model is translated once for ONNX Runtime and kept so for every later start: it encodes a query in a third of torch's
time, starts in half a second and needs a fifth of its memory. A model that cannot be translated is run by torch.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import structlog

from contracts.errors import DependencyDown
from towers.text import TEMPLATE_VERSION
from towers.translated_model import CANNOT_BE_READ, TranslatedModel
from towers.weights import WeightsFolder, find_weights

DEFAULT_THREADS: Final = 1
"""Several processes share a machine's cores; one text encodes no faster with more."""
FORM: Final = 1
"""Raised when models are to be translated anew."""
_NOT_READ: Final = {".md", ".onnx", ".h5", ".ot", ".msgpack", ".tflite"}
_BLOCK: Final = 2**20


class Model(Protocol):
    """A model at work."""

    digest: str
    """Of its weights."""
    dim: int

    def encode(self, texts: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Encode at least one text to unit float32 rows (N, D), in their order."""
        ...


class BaseEncoder:
    """The base encoder; several threads may share it."""

    def __init__(self, model: Model, *, name: str) -> None:
        self._model = model
        self.dim = model.dim
        self.base_version = f"{name}/{model.digest}/t{TEMPLATE_VERSION}"

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Encode texts to unit float32 rows (N, D), in their order."""
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        return self._model.encode(texts, batch_size=batch_size)


def load_encoder(model_name: str, *, threads: int = DEFAULT_THREADS) -> BaseEncoder:
    """Load the base encoder of a name or folder, on the CPU.

    Raises:
        DependencyDown: no source has the model, or it cannot be read.
    """
    model = _model(find_weights(model_name), threads)
    return BaseEncoder(model, name=model_name.rstrip("/").rsplit("/", 1)[-1])


def _model(weights: WeightsFolder, threads: int) -> Model:
    try:
        return TranslatedModel(_translated(weights), threads=threads)
    except DependencyDown:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, torch can still run the model
        structlog.get_logger("millrace").warning(
            "base_encoder_not_translated", model=str(weights.path), runs_by="torch", error=str(error)
        )
    from towers.torch_model import TorchModel

    return TorchModel(weights, threads=threads)


def _translated(weights: WeightsFolder) -> Path:
    """Return the folder of a model as ONNX Runtime reads it; made now if that was not done before.

    Raises:
        DependencyDown: the model cannot be read.
        OSError: the folder cannot be written, or the process that translates came to an unexpected end.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace" / "encoders"
    folder = cache / f"{_content(weights.path)}-{FORM}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_suffix(".lock")):
        if not folder.is_dir():
            structlog.get_logger("millrace").info("base_encoder_translates", source=weights.source, into=str(folder))
            with tempfile.TemporaryDirectory(dir=cache) as made:
                _translate(weights, Path(made) / "model")
                (Path(made) / "model").rename(folder)
    return folder


def _translate(weights: WeightsFolder, into: Path) -> None:
    """Translate a model in a process of its own: the memory that takes ends with it."""
    command = [sys.executable, "-m", "towers.torch_model", str(weights.path), str(into)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if done.returncode == CANNOT_BE_READ:
        raise DependencyDown(
            f"base model from {weights.source} ({weights.path}) cannot be read: {last}",
            fix="remove that folder so that it is fetched again, or correct MILLRACE_BASE_MODEL",
        )
    if done.returncode:
        raise ChildProcessError(f"the process that translates it ended with {done.returncode}: {last}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Have one process at a time in a block."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _content(weights: Path) -> str:
    """Name what a model's folder holds."""
    digest = hashlib.sha256()
    for path in sorted(weights.rglob("*")):
        if path.is_file() and path.suffix not in _NOT_READ:
            digest.update(f"{path.relative_to(weights)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()[:16]

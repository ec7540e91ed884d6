"""The frozen base encoder that both towers share: texts in, unit vectors out.

`base_version` names model, weights and text template. Vectors of different base versions must never meet, so the
digest is taken over the weights themselves: the same weights give the same version whatever source they came from.

A model is translated once for ONNX Runtime and kept so for every later start: it encodes a query in a third of torch's
time, starts in a tenth and needs a sixth of its memory. A model that cannot be translated is run by torch.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from towers.text import TEMPLATE_VERSION
from towers.torch_model import TorchModel
from towers.translated_model import TranslatedModel, digest_of, is_whole
from towers.weights import NOT_READ, WeightsFolder, find_weights

DEFAULT_THREADS: Final = 1
"""Several processes share a machine's cores; one text encodes no faster with more."""
TRANSLATION_VERSION: Final = "2"
"""Raised when models are to be translated anew."""
TRANSLATED_WITHIN_S: Final = 900.0
_PREFIX: Final = "under-way-"
_ADAPTER: Final = "adapter_config.json"


class BaseEncoder:
    """The base encoder; several threads may share it."""

    def __init__(self, model: TorchModel | TranslatedModel, *, name: str) -> None:
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
    weights = find_weights(model_name)
    name = model_name.rstrip("/").rsplit("/", 1)[-1]
    try:
        return BaseEncoder(TranslatedModel(_translated(weights), threads=threads), name=name)
    except Exception as error:  # noqa: BLE001 - whatever it is, torch may still run the model
        why = f"{type(error).__name__}: {error}"
    encoder = BaseEncoder(TorchModel(weights, threads=threads), name=name)
    structlog.get_logger("millrace").warning("base_encoder_not_translated", model=name, runs_by="torch", error=why)
    return encoder


def _translated(weights: WeightsFolder) -> Path:
    """Return the folder of a model as ONNX Runtime reads it; made now if it is not there, or damaged.

    Raises:
        OSError: the folder cannot be written, or the process that translates came to an end.
        TimeoutExpired: translating it takes too long.
    """
    cache = _cache()
    folder = cache / _key(weights.path)
    if is_whole(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not is_whole(folder):
            structlog.get_logger("millrace").info("base_encoder_translates", source=weights.source, into=str(folder))
            for left in (folder, *cache.glob(f"{_PREFIX}{folder.name}*")):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{folder.name}", dir=cache) as made:
                _translate(weights.path, Path(made) / "model")
                (Path(made) / "model").rename(folder)
    return folder


def _translate(weights: Path, into: Path) -> None:
    """Translate a model in a process of its own: the memory that takes ends with it."""
    command = [sys.executable, "-m", "towers.torch_model", str(weights), str(into)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRANSLATED_WITHIN_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ChildProcessError(f"the process that translates the base model ended with {done.returncode}: {last}")


def _cache() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "millrace" / "encoders"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Have one process at a time in a block."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            structlog.get_logger("millrace").info("base_encoder_is_translated_by_another_process")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(weights: Path) -> str:
    """Name what a model's folder holds, and what translates it.

    Raises:
        ValueError: it does not hold all of the model.
    """
    made_by = [TRANSLATION_VERSION, *(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))]
    digest = hashlib.sha256("\0".join(made_by).encode())
    paths = sorted(Path(at) / name for at, _, names in os.walk(weights, followlinks=True) for name in names)
    for path in paths:
        relative = str(path.relative_to(weights))
        if path.name == _ADAPTER:
            raise ValueError(f"{relative} adapts a model that lies elsewhere")
        if not any(fnmatch(relative, pattern) for pattern in NOT_READ):
            digest.update(f"{relative}\0{digest_of(path)}\0".encode())
    return digest.hexdigest()[:16]

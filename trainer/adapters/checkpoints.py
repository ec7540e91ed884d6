"""Checkpoints as files: one safetensors file and one JSON manifest each, the manifest last.

A checkpoint exists once its manifest does, and only while the digest in it matches: a torn, truncated or edited one is
refused and the one before it used. `epoch` grows with every start of a trainer, so that what a stalled predecessor
still writes into the same folder never counts as newer than its successor's work.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contracts.errors import DependencyDown, UsageError
from service.logging import get_logger
from trainer.core.state import Snapshot

FORMAT: Final = 1
KEPT: Final = 3
OUTBOX: Final = "outbox/"


class CheckpointManifest(BaseModel):
    """What stands beside the tensors."""

    format: int
    epoch: int
    sequence: int
    base_version: str
    tensors: str
    """Name of the safetensors file."""
    sha256: str
    """Of that file."""
    facts: dict[str, Any]
    outbox: list[str] = []
    """Releases in the order in which they are published; their bytes stand among the tensors."""


class Place(NamedTuple):
    """Where a checkpoint stands among others: later starts first, then later saves."""

    epoch: int
    sequence: int


def writable_folder(folder: Path) -> Path:
    """Return a folder that checkpoints can be written into; made if missing.

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
        newest = max(self._places(), default=Place(0, 0))
        self._next = Place(newest.epoch + 1, 1)

    def save(self, snapshot: Snapshot) -> None:
        """Make a state durable and drop the oldest.

        Raises:
            OSError: the disk is full or refuses; nothing older is touched then.
        """
        stem = _stem(self._next)
        outbox = {f"{OUTBOX}{key}": np.frombuffer(value, dtype=np.uint8) for key, value in snapshot.outbox.items()}
        content = bytes(save({**_contiguous(snapshot), **outbox}))
        manifest = CheckpointManifest(
            format=FORMAT,
            epoch=self._next.epoch,
            sequence=self._next.sequence,
            base_version=self._base_version,
            tensors=f"{stem}.safetensors",
            sha256=hashlib.sha256(content).hexdigest(),
            facts=dict(snapshot.facts),
            outbox=list(snapshot.outbox),
        )
        _write(self._folder / manifest.tensors, content)
        _write(self._folder / f"{stem}.json", orjson.dumps(manifest.model_dump()))
        _sync_folder(self._folder)
        self._next = Place(self._next.epoch, self._next.sequence + 1)
        self._drop_old()

    def load(self) -> Snapshot | None:
        """Return the newest whole state; each one that is not whole is named in the log.

        Raises:
            UsageError: the newest whole state belongs to another base model.
        """
        for place in sorted(self._places(), reverse=True):
            try:
                manifest, tensors = self._read(place)
            except (OSError, ValueError, SafetensorError) as error:
                get_logger().warning("checkpoint refused", checkpoint=_stem(place), error=" ".join(str(error).split()))
                continue
            self._check_base(manifest)
            outbox = {key: tensors.pop(f"{OUTBOX}{key}").tobytes() for key in manifest.outbox}
            get_logger().info("checkpoint loaded", checkpoint=_stem(place))
            return Snapshot(tensors, manifest.facts, outbox)
        return None

    def _read(self, place: Place) -> tuple[CheckpointManifest, dict[str, np.ndarray]]:
        """Return one checkpoint, whole."""
        manifest = CheckpointManifest.model_validate_json((self._folder / f"{_stem(place)}.json").read_bytes())
        if manifest.format != FORMAT:
            raise ValueError(f"format {manifest.format} is not known here")
        content = (self._folder / f"{_stem(place)}.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise ValueError("the tensors are not those of the manifest")
        return manifest, load(content)

    def _check_base(self, manifest: CheckpointManifest) -> None:
        """Raise where the state belongs to another encoder."""
        if manifest.base_version != self._base_version:
            raise UsageError(
                f"the checkpoint was trained on base model {manifest.base_version}, not {self._base_version}",
                fix=f"set MILLRACE_BASE_MODEL back, or move {self._folder} away to begin anew",
            )

    def _places(self) -> list[Place]:
        """Return every checkpoint that has a manifest."""
        return [Place(*map(int, path.stem.split("-")[1:])) for path in self._folder.glob("checkpoint-*-*.json")]

    def _drop_old(self) -> None:
        """Remove all but the newest checkpoints and what interrupted saves left; a successor's files are not ours."""
        kept = {_stem(place) for place in sorted(self._places())[-KEPT:]}
        successor = _stem(Place(self._next.epoch + 1, 0))
        for pattern in ("checkpoint-*.json", "checkpoint-*.safetensors", "checkpoint-*.part"):
            for path in self._folder.glob(pattern):
                stem = path.name.split(".")[0]
                if stem not in kept and stem < successor:
                    path.unlink(missing_ok=True)


def _stem(place: Place) -> str:
    """Return a checkpoint's name, which sorts like its place."""
    return f"checkpoint-{place.epoch:06d}-{place.sequence:08d}"


def _contiguous(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Return the tensors as safetensors wants them."""
    return {name: np.ascontiguousarray(tensor) for name, tensor in snapshot.tensors.items()}


def _write(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, whenever the power goes."""
    part = path.with_suffix(path.suffix + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Make the names themselves durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

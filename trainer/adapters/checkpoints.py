"""Checkpoints as files: one safetensors file each, named for its place, its release and the SHA-256 of its content.

A file whose content is not what its name says is refused, and the one before it used. `epoch` grows with every start of
a trainer: what a stalled predecessor still writes into the same folder never counts as newer than its successor's work.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load, save

from contracts.errors import DependencyDown
from service.logging import get_logger
from service.machine import write_atomically
from trainer.state import OF_THE_BASE, Progress, Snapshot

FORMAT: Final = 5
READABLE: Final = (4, FORMAT)
KEPT: Final = 3
"""The newest ones."""
HOUR_S: Final = 3600
HOURS_KEPT: Final = 24
"""Of each of so many hours one that was saved with a release is kept, for rollbacks."""
MANIFEST: Final = "manifest"
OUTBOX: Final = "outbox/"
_NAME: Final = re.compile(r"checkpoint-(\d+)-(\d+)(?:-q(\d+))?(?:-([0-9a-f]+))?\.safetensors")


class CheckpointManifest(BaseModel):
    """What lies beside the tensors, as JSON in one of them."""

    format: int
    base_version: str
    progress: Progress
    outbox: list[str]
    """Releases in the order in which they are published; their bytes lie among the tensors."""


class _Checkpoint(NamedTuple):
    """One file; later starts sort after earlier ones, then later saves."""

    epoch: int
    sequence: int
    query_release: int | None
    """The release that was saved with it."""
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
        base_version: of the encoder in use; of a state of another only what was counted goes on.
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
            progress=snapshot.progress,
            outbox=list(snapshot.outbox),
        )
        values = {MANIFEST: manifest.model_dump_json().encode()}
        values |= {f"{OUTBOX}{key}": value for key, value in snapshot.outbox.items()}
        tensors = {name: np.require(tensor, requirements="C") for name, tensor in snapshot.tensors.items()}
        tensors |= {name: np.frombuffer(value, dtype=np.uint8) for name, value in values.items()}
        content = bytes(save(tensors))
        self._sequence += 1
        release = f"-q{snapshot.progress.query_parent}" if snapshot.outbox else ""
        stem = f"{_stem(self._epoch, self._sequence)}{release}"
        name = f"{stem}-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_atomically(self._folder / name, content)
        self._drop_old(snapshot.progress.kept_for)

    def load(self, *, query_release: int | None = None, taken_back: Sequence[tuple[int, int]] = ()) -> Snapshot | None:
        """Read the newest whole state, None if there is none; each one that is not whole is named in the log.

        Args:
            query_release: read the state that was saved with this release, or with the last one before it.
            taken_back: releases above the first number up to the second are none that may be gone back to.
        """
        found = list(self._found())
        if query_release is not None:
            found = [
                one
                for one in found
                if (number := one.query_release) is not None
                and number <= query_release
                and not any(low < number <= high for low, high in taken_back)
            ]
            found.sort(key=lambda one: (one.query_release, one[:2]))
        else:
            found.sort(key=lambda one: one[:2])
        for checkpoint in reversed(found):
            try:
                manifest, tensors = _read(checkpoint)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                get_logger().warning(
                    "checkpoint_refused", checkpoint=checkpoint.path.name, error=" ".join(str(error).split())
                )
                continue
            outbox = {key: tensors.pop(f"{OUTBOX}{key}").tobytes() for key in manifest.outbox}
            get_logger().info("checkpoint_loaded", checkpoint=checkpoint.path.name)
            if manifest.base_version == self._base_version:
                return Snapshot(tensors, manifest.progress, outbox)
            get_logger().warning("checkpoint_of_another_base", found=manifest.base_version, goes_on="what was counted")
            kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(OF_THE_BASE)}
            return Snapshot(kept, manifest.progress.over_another_base())
        return None

    def _found(self) -> Iterator[_Checkpoint]:
        for path in self._folder.iterdir():
            if name := _NAME.fullmatch(path.name):
                release = None if name[3] is None else int(name[3])
                yield _Checkpoint(int(name[1]), int(name[2]), release, name[4] or "", path)

    def _drop_old(self, kept_for: Sequence[int]) -> None:
        """Remove what nobody goes back to and what interrupted saves left; a successor's files are not ours."""
        found = sorted(self._found(), key=lambda one: one[:2])
        hours = {int(one.path.stat().st_mtime // HOUR_S): one.path for one in found if one.query_release is not None}
        kept = {one.path for one in found[-KEPT:]} | {hours[hour] for hour in sorted(hours)[-HOURS_KEPT:]}
        for release in kept_for:
            older = [one for one in found if one.query_release is not None and one.query_release <= release]
            kept |= {max(older, key=lambda one: (one.query_release, one[:2])).path} if older else set()
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
    if stored["format"] not in READABLE:
        raise ValueError(f"format {stored['format']} is not known here")
    return CheckpointManifest.model_validate(stored), tensors

"""A file is replaced whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from service.machine import PART_SUFFIX, replacing, write_atomically


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    """The new content stands there alone, with the rights that were asked for."""
    target = tmp_path / "up.env"
    write_atomically(target, b"one")
    write_atomically(target, b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["up.env"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """Whoever names /dev/null as root means to lose the result, not the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="no file"):
        write_atomically(pipe, b"one")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_refusal_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    """Nobody has heard of the temporary file beside it."""
    target = tmp_path / "missing" / "pairs.jsonl"
    with pytest.raises(FileNotFoundError) as refused:
        write_atomically(target, b"one")
    assert refused.value.filename == str(target)


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    """The system does not say what it had no room for."""
    target = tmp_path / "pairs.jsonl"
    with pytest.raises(OSError, match="No space left") as full, replacing(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.filename == str(target)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk refuses, the file is as before and no part of the new one is left."""
    target = tmp_path / "state.json"
    write_atomically(target, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"after")
    assert target.read_bytes() == b"before"
    assert not list(tmp_path.glob(f"*{PART_SUFFIX}"))

"""The machine's clock, in the unit of every time that leaves the process, and its disk: files are whole or absent."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

EpochClock = Callable[[], int]
"""Returns epoch milliseconds; core code is given one, or the time itself."""


def epoch_ms() -> int:
    """Tell the time, milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000


FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or a share of it, on which nothing more has room."""
PART_SUFFIX: Final = ".part"
"""Ends the name of a file that is being written; one that is left over belongs to an interrupted write."""


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file in one step, or leave it and raise OSError; see `replacing`."""
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Give a file to write that replaces another in one step: temporary file, fsync, rename, fsync of the folder.

    If the block raises, the other file stays. `mode` is the rights of the new file, less the process's umask: 0o600 for
    what holds keys. What is there and no file, such as a device, is refused: nobody means to replace it.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is there already and no file", str(path))
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    except OSError as error:
        error.filename = str(path)  # whoever reads of it named this one
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            error.filename = str(path)  # the system names none
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: new files, renames and deletions."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

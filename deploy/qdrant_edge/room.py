"""Whether the disk has room for another write.

Edge writes through mapped files: on a full disk the system would end the process with a bare SIGBUS in the middle of
a write. So a write is refused while there is still room, with a sentence, and succeeds again once there is more.
"""

import shutil
from pathlib import Path
from typing import Final

from deploy.qdrant_edge.errors import DiskFull

RESERVE_BYTES: Final = 256 * 1024**2
"""More than one write takes: its body, a segment of the log, and a chunk of vectors and of payload, 32 MiB each."""


def require_room(folder: Path) -> None:
    """Raise where the disk under a folder is about to be full.

    Raises:
        DiskFull: there is less room than the reserve.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < RESERVE_BYTES:
        raise DiskFull(
            f"Service internal error: only {free_bytes / 1024**2:.0f} MiB free in {folder}, writes need "
            f"{RESERVE_BYTES // 1024**2}; free some space, or set MILLRACE_DATA_DIR to a larger disk"
        )

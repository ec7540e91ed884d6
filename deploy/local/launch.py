"""Start a command so that it cannot outlive its supervisor: `python launch.py PARENT_PID COMMAND...`.

On Linux the kernel sends SIGKILL to the command when the thread that started it ends, even when that was by SIGKILL.
The request is made here, between fork and exec, in a process of its own: code that runs there in a forked copy of a
multi-threaded supervisor can deadlock. Only the standard library is used, so that starting costs milliseconds.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; end at once where it already has."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit(f"the supervisor {parent} has ended")


def main(argv: list[str]) -> None:
    """Tie this process to its parent and become the command."""
    parent, *command = argv
    die_with_parent(int(parent))
    try:
        os.execvp(command[0], command)  # noqa: S606 - becoming the command, without a shell, is the purpose
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""A stand-in process for tests of the supervisor: ready at once, starts a child of its own, and ignores SIGTERM."""

import signal
import subprocess
import sys

from tests.support.dummies import steady

if __name__ == "__main__":
    steady_signal = signal.signal
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"grandchild {grandchild.pid}", flush=True)  # noqa: T201 - this is the log that a test reads
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal = lambda number, handler: None  # type: ignore[assignment] # keeps `steady` from listening to SIGTERM
    steady.main()

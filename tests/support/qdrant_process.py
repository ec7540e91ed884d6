"""A vector store in a process of its own, for tests that kill it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

from tests.support.poll import eventually
from tests.support.ports import free_port

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0


class QdrantProcess:
    """A process that answers Qdrant's REST API.

    Args:
        command: what to run.
        environ: added to this process's environment.
        port: where it will answer.
        log: file for its output.
        folder: where it runs, None for that of this process.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], *, port: int, log: Path, folder: Path | None = None
    ) -> None:
        self.command = list(command)
        self.environ = {**os.environ, **environ}
        self._log = log
        self._folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def embedded(cls, data_dir: Path, **environ: str) -> Self:
        """Return our embedded Qdrant on a free port, not yet started."""
        port = free_port()
        settings = {"MILLRACE_DATA_DIR": str(data_dir), "MILLRACE_HOST": "127.0.0.1", "MILLRACE_PORT": str(port)}
        command = [sys.executable, "-m", "deploy.qdrant_edge"]
        return cls(command, {**settings, **environ}, port=port, log=data_dir.with_suffix(".log"))

    @classmethod
    def server(cls, binary: str, folder: Path) -> Self:
        """Return a Qdrant server on free ports, not yet started; it runs in its folder, for it leaves files there."""
        folder.mkdir(exist_ok=True)
        port = free_port()
        environ = {
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(port),
            "QDRANT__SERVICE__GRPC_PORT": str(free_port()),
            "QDRANT__STORAGE__STORAGE_PATH": str(folder / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(folder / "snapshots"),
            "QDRANT__TELEMETRY_DISABLED": "true",
        }
        command = [str(Path(binary).resolve())]
        return cls(command, environ, port=port, log=folder.with_suffix(".log"), folder=folder)

    @classmethod
    def at_hand(cls, folder: Path) -> Self:
        """Return a Qdrant server where QDRANT_BIN names one, else the embedded Qdrant, not yet started."""
        binary = os.environ.get("QDRANT_BIN")
        return cls.server(binary, folder) if binary else cls.embedded(folder)

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self.environ, cwd=self._folder, stdout=log, stderr=log)
        try:
            eventually(self._ready, timeout_s=_START_TIMEOUT_S, what=f"{self.command[-1]} is ready, see {self._log}")
        except BaseException:
            self.kill()
            raise
        return self

    def _ready(self) -> bool:
        """Return whether it answers that it is ready; that it ended is a failure, not a wait."""
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}: {self.log_text()}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).is_success
        except httpx.TransportError:
            return False

    def log_text(self) -> str:
        """Return what it wrote."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(_STOP_TIMEOUT_S)
        self.process = None
        return code

"""The process: how it starts, refuses and ends."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.qdrant_process import QdrantProcess


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantProcess]:
    """One running process behind a key."""
    process = QdrantProcess.embedded(tmp_path_factory.mktemp("qdrant") / "data", MILLRACE_QDRANT_API_KEY="sesame")
    yield process.start()
    process.stop()


def last_line(process: QdrantProcess) -> dict[str, object]:
    """Return the last fact that a process logged."""
    line: dict[str, object] = json.loads(process.log_text().splitlines()[-1])
    return line


def test_key_from_the_settings_is_asked_for(running: QdrantProcess) -> None:
    """The setting that clients send is the one that the process checks."""
    assert httpx.get(f"{running.url}/collections").status_code == 401
    assert httpx.get(f"{running.url}/collections", headers={"api-key": "sesame"}).status_code == 200


def test_second_process_on_the_same_folder_ends_with_one_line(running: QdrantProcess, tmp_path: Path) -> None:
    """A folder in use is a missing dependency: exit 4, the cause and the fix in one line, no traceback."""
    second = QdrantProcess.embedded(tmp_path / "data")
    environ = {**second.environ, "MILLRACE_DATA_DIR": running.environ["MILLRACE_DATA_DIR"]}
    ended = subprocess.run(second.command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 4
    line = json.loads(ended.stderr.splitlines()[-1])
    assert "in use by another embedded Qdrant" in line["error"]
    assert "MILLRACE_DATA_DIR" in line["fix"]
    assert "Traceback" not in ended.stderr


def test_busy_port_ends_with_one_line(running: QdrantProcess, tmp_path: Path) -> None:
    """A port in use is a missing dependency too."""
    second = QdrantProcess.embedded(tmp_path / "data")
    environ = {**second.environ, "MILLRACE_PORT": running.environ["MILLRACE_PORT"]}
    ended = subprocess.run(second.command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 4
    assert "MILLRACE_PORT" in json.loads(ended.stderr.splitlines()[-1])["fix"]


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    """Asked to stop, it closes its shards and exits 0; the folder opens again at once."""
    process = QdrantProcess.embedded(tmp_path / "data").start()
    httpx.put(f"{process.url}/collections/a", json={"vectors": {"size": 2, "distance": "Dot"}}).raise_for_status()
    assert process.stop() == 0
    assert last_line(process)["level"] == "info"
    process.start()
    assert httpx.get(f"{process.url}/collections/a/exists").json()["result"] == {"exists": True}
    process.kill()

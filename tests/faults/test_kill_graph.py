"""The embedded Qdrant killed while it builds a graph and changes over to it, under writes: no write lost or undone.

A real process, four SIGKILLs (twenty with `make faults`), each at a chosen stage of a build and a random moment in it,
while points are written and deleted. What was acknowledged must be there afterwards, and what was deleted must not.
"""

import json
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.support.poll import eventually
from tests.support.qdrant_process import QdrantProcess

IS_LONG = os.environ.get("FAULTS") == "long"
KILLS = 20 if IS_LONG else 4
SEED = 20_261_129
POINTS = 2_000
DIM = 16
BATCH = 20
PAUSE_S = 0.01
"""Between two requests, so that the graph, which takes the processor last, is ever built."""
NAME = "shop"

pytestmark = [pytest.mark.faults, pytest.mark.qdrant, pytest.mark.slow, pytest.mark.timeout(900)]

Version = int | None
"""Of a point, None where it is deleted or was never written."""


class Writer:
    """Writes and deletes points one request after the other, and remembers what must be there.

    Args:
        url: of the store.
    """

    def __init__(self, url: str) -> None:
        self.certain: dict[int, Version] = dict.fromkeys(range(POINTS))
        self.unanswered: dict[int, Version] = {}
        self.answered = 0
        self._client = QdrantClient(url=url, timeout=30)
        self._random = np.random.default_rng(SEED)
        self._version = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def fill(self) -> None:
        """Make the collection and write every point once."""
        self._client.create_collection(
            NAME,
            vectors_config={"product": models.VectorParams(size=DIM, distance=models.Distance.DOT)},
            hnsw_config=models.HnswConfigDiff(full_scan_threshold=10),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=POINTS * DIM * 4 // 1024 // 10),
        )
        for begin in range(0, POINTS, 500):
            self._write([*range(begin, begin + 500)], version=0)

    def start(self) -> None:
        """Write in a thread until the store goes away."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the store has gone away, or stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Write, and delete every fourth time, until a request fails or the end is asked for."""
        while not self._stop.wait(PAUSE_S):
            numbers = self._random.choice(POINTS, BATCH, replace=False).tolist()
            self._version += 1
            version = None if self._version % 4 == 0 else self._version
            self.unanswered = dict.fromkeys(numbers, version)
            try:
                self._write(numbers, version=version)
            except (ResponseHandlingException, UnexpectedResponse):
                return
            self.unanswered = {}
            self.answered += 1

    def _write(self, numbers: list[int], *, version: Version) -> None:
        """Write points, or delete them, and remember that once it is acknowledged."""
        if version is None:
            self._client.delete(NAME, models.PointIdsList(points=[*numbers]), wait=True)
        else:
            vectors = self._random.standard_normal((len(numbers), DIM))
            points = [
                models.PointStruct(id=number, vector={"product": vector}, payload={"version": version})
                for number, vector in zip(numbers, vectors.tolist(), strict=True)
            ]
            self._client.upsert(NAME, points, wait=True)
        self.certain.update(dict.fromkeys(numbers, version))

    def compare(self) -> Counter[str]:
        """Count what is stored otherwise than it must be; what was not answered may be there or not, and then is."""
        records, _ = self._client.scroll(NAME, limit=2 * POINTS, with_payload=True)
        stored: dict[int, Version] = {int(one.id): (one.payload or {})["version"] for one in records}
        faults = Counter[str]()
        for number, expected in self.certain.items():
            found = stored.get(number)
            if found == expected:
                continue
            if number in self.unanswered and found == self.unanswered[number]:
                self.certain[number] = found
            elif found is None:
                faults["missing"] += 1
            else:
                faults["resurrected" if expected is None else "stale"] += 1
        self.unanswered = {}
        return faults

    def close(self) -> None:
        """Stop and let go of the store."""
        self.wait()
        self._client.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[QdrantProcess]:
    """The embedded Qdrant, ready."""
    process = QdrantProcess.embedded(tmp_path / "data").start()
    yield process
    process.stop()


def test_kills_while_a_graph_is_built_lose_and_revive_nothing(store: QdrantProcess, tmp_path: Path) -> None:
    """Whenever the process ends in a build, each acknowledged write is there after, in the old files or the new."""
    folder = tmp_path / "data" / "qdrant"
    rng = random.Random(SEED)
    writer = Writer(store.url)
    writer.fill()
    faults, stages = Counter[str](), Counter[str]()
    try:
        for number in range(KILLS):
            stage, begun = STAGES[number % len(STAGES)]
            writer.start()
            before = current(folder)
            eventually(partial(begun, folder, before), timeout_s=120, interval_s=0.003, what=stage)
            threading.Event().wait(rng.uniform(0.0, LONGEST_S[stage]))
            store.kill()
            writer.wait()
            store.start()
            found = writer.compare()
            assert not found, (number, stage, found)
            faults += found
            stages[stage] += 1
    finally:
        writer.close()
    print(json.dumps({"kills": stages, "writes": writer.answered, "faults": faults}), file=sys.stderr)  # noqa: T201 - the test's figures
    assert writer.answered > 10 * KILLS


def current(folder: Path) -> bytes:
    """What tells which files answer."""
    path = folder / NAME / "current.json"
    return path.read_bytes() if path.exists() else b""


def is_copied(folder: Path, _before: bytes) -> bool:
    """Whether a copy has begun."""
    return (folder / f".graph-{NAME}").exists()


def is_taken_over(folder: Path, _before: bytes) -> bool:
    """Whether a copy with its graph is being brought up to the present."""
    return len([*(folder / NAME).glob("shard*")]) > 1


def has_changed(folder: Path, before: bytes) -> bool:
    """Whether the copy answers."""
    return current(folder) != before


Begun = Callable[[Path, bytes], bool]
STAGES: list[tuple[str, Begun]] = [
    ("copied", is_copied),
    ("built", is_copied),
    ("taken over", is_taken_over),
    ("changed", has_changed),
]
LONGEST_S = {"copied": 0.05, "built": 1.5, "taken over": 0.1, "changed": 0.05}
"""How long after its begin a stage is interrupted at most."""

"""When a graph pays, and how it is built beside a store that answers and is written to.

HNSW leads a search to its products past nearly all others; points written since it was built are scanned beside it, so
they are found at once. Building takes minutes of a processor and twice the shard's disk (`docs/operations.md`).
"""

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from contracts.errors import DependencyDown
from deploy.qdrant_edge.collection import Collection, GraphState
from deploy.qdrant_edge.shard import require_space
from deploy.qdrant_edge.store import Store
from deploy.qdrant_edge.worker import Kind, Worker
from service.logging import get_logger

CHECK_INTERVAL_S: Final = 1.0
FILLING_FROM: Final = 0.1
"""Growth from one look to the next, as a share of what needs no graph, above which a collection is being filled."""

REST_AFTER_FAILURE_S: Final = 60.0
_COPIES: Final = 2
"""The copy, and beside it the segment with the graph."""


def is_due(state: GraphState, before_kb: float) -> bool:
    """Tell whether a graph is to be built: it pays, and what is scanned grows slowly.

    Args:
        state: of the collection.
        before_kb: its `scanned_kb` at the last look.

    >>> is_due(GraphState(20_000, all_kb=20_000, threshold_kb=15_000), before_kb=20_000)
    True
    >>> is_due(GraphState(20_000, all_kb=20_000, threshold_kb=15_000), before_kb=12_000)  # it is being filled
    False
    >>> is_due(GraphState(20_000, all_kb=400_000, threshold_kb=15_000), before_kb=20_000)  # little beside its graph
    False
    """
    return state.pays and state.scanned_kb - before_kb <= FILLING_FROM * state.threshold_kb


class GraphBuilder:
    """Builds the graphs of a store, one after the other.

    Args:
        store: whose collections.
        worker: runs what touches them.
        interval_s: between two looks.
    """

    def __init__(self, store: Store, worker: Worker, *, interval_s: float = CHECK_INTERVAL_S) -> None:
        self._store = store
        self._worker = worker
        self._interval_s = interval_s
        self._before_kb: dict[str, float] = {}

    async def work(self) -> None:
        """Look and build, until cancelled; half of the time at most goes into building."""
        while True:
            await asyncio.sleep(self._interval_s)
            for collection in self._due():
                began_s = time.monotonic()
                try:
                    await self.build(collection)
                except Exception as error:  # noqa: BLE001 -- Edge raises bare exceptions; searches go on by scanning
                    get_logger().error("graph_failed", collection=collection.name, error=str(error))
                    await asyncio.sleep(REST_AFTER_FAILURE_S)
                await asyncio.sleep(time.monotonic() - began_s)

    def _due(self) -> list[Collection]:
        looks = [(collection, collection.graph_state()) for collection in self._store.collections()]
        before, self._before_kb = self._before_kb, {one.name: state.scanned_kb for one, state in looks}
        return [one for one, state in looks if is_due(state, before.get(one.name, 0.0))]

    async def build(self, collection: Collection) -> None:
        """Build a graph over all points of a collection and have it answer, while it is searched and written to.

        Writes wait only as long as the files are copied.

        Raises:
            ApiError: the disk has no room for it.
            DependencyDown: the process that builds it failed.
        """
        shard = collection.shard
        began_s = time.monotonic()
        try:
            with self._worker.holding(Kind.WRITE):
                source = shard.begin_copy()
                await asyncio.to_thread(_copy, source, shard.building)
            copied_s = time.monotonic()
            await _optimize(shard.building)
            built_s = time.monotonic()
            while not await self._worker.run(Kind.WRITE, shard.take_over, must_run=True):
                pass
        finally:
            shard.abandon()
            await asyncio.to_thread(shutil.rmtree, shard.building, ignore_errors=True)
        if shard.is_closed:  # the collection is gone; there may be another of its name in the folder
            return
        await asyncio.to_thread(shard.remove_retired)
        get_logger().info(
            "graph_built",
            collection=collection.name,
            points=shard.points_count() - shard.scanned(),
            copied_s=round(copied_s - began_s, 3),
            built_s=round(built_s - copied_s, 3),
            taken_over=shard.scanned(),
        )


def _copy(source: Path, target: Path) -> None:
    size_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    require_space(source, _COPIES * size_bytes)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


async def _optimize(folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.qdrant_edge.optimize", str(os.getpid()), str(folder),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise DependencyDown(
            f"the process that builds a graph ended with {process.returncode}: {said.decode(errors='replace')[-500:]}",
            fix="searches go on by scanning; give the machine more memory if it was killed (-9)",
        )

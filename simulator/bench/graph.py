"""`millrace bench graph`: what the graph of the embedded vector store gains beside a scan, finds, and costs to build.

One collection grows from size to size. At each its graph is built, then every query is asked twice in turn, by the
graph and by a scan, of the same points and over the same HTTP. At the last size a fifth is rewritten meanwhile.
Vectors are drawn: directions in few dimensions around centres, as sentence encoders give them, and a quality beside.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil
from qdrant_client import QdrantClient, models

from deploy.local.supervisor import LocalMillrace
from indexer.filters import PAYLOAD_INDEXES
from indexer.qdrant import VECTOR_NAME, connect
from indexer.search.retrieval import CANDIDATES, DENSE_PARAMS
from indexer.store import BATCH_SIZE
from simulator.bench.report import Tell, figure, machine

SIZES: Final = (5_000, 10_000, 20_000, 50_000, 100_000)
REWRITTEN: Final = 0.2
QUERIES: Final = 300
K: Final = 10
DIM: Final = 384
GOAL_RECALL: Final = 0.97
_COLLECTION: Final = "bench-graph"
_LATENT: Final = 48
_CENTRES: Final = 300
_WORDS: Final = 12
_SMALLEST_KB: Final = 1_000
"""A graph at every size, so that it can be seen from which one it pays."""

_EXACT: Final = models.SearchParams(exact=True)
_BUILT_TIMEOUT_S: Final = 3_600.0


class _Build(NamedTuple):
    """What a graph cost: from the last write until it answers, and the most that its own process took."""

    products: int
    waited_s: float
    cpu_s: float
    memory_mb: float
    disk_mb: float


class _Asked(NamedTuple):
    """Milliseconds of each query by the graph and by a scan, and the share of the ten best that the graph found."""

    graph_ms: list[float]
    scan_ms: list[float]
    recall: float


def run(tell: Tell, *, sizes: Sequence[int] = SIZES, queries: int = QUERIES) -> dict[str, Any]:
    """Measure searches with and without a graph, and the building of it."""
    with (
        tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder,
        LocalMillrace(processes=["qdrant"], data_dir=Path(folder)) as running,
    ):
        bench = _Bench(connect(running.settings, timeout_s=60), Path(folder), queries)
        results: list[dict[str, Any]] = []
        builds: list[_Build] = []
        for before, size in zip((0, *sizes), sizes, strict=False):
            bench.write(range(before, size))
            builds.append(bench.wait_for_graph(size))
            tell(f"{builds[-1]}")
            for arms, asked in (("ten nearest", bench.ask()), ("both arms", bench.ask(words=True))):
                results += _rows(f"{arms} of {size:,}", asked)
            tell(f"asked {size:,}")
        rewritten = range(int(REWRITTEN * sizes[-1]))
        asked = bench.ask(rewriting=rewritten)
        results += _rows(f"ten nearest of {sizes[-1]:,} while {REWRITTEN:.0%} is rewritten", asked)
        bench.close()
    return {
        "bench": "graph",
        "machine": machine(),
        "results": results,
        "builds": [build._asdict() for build in builds],
    }


def _rows(what: str, asked: _Asked) -> list[dict[str, Any]]:
    rows = [
        figure(f"{what}: p{percent}", "ms", ours=ours, peer="scan", peer_value=scan, most=1.0)
        for percent in (50, 99)
        for ours, scan in [(float(np.percentile(times, percent)) for times in asked[:2])]
    ]
    return [
        *rows,
        figure(f"{what}: recall@{K}", "", ours=asked.recall, peer="scan", peer_value=1.0, least=GOAL_RECALL),
    ]


class _Bench:
    def __init__(self, client: QdrantClient, folder: Path, queries: int) -> None:
        self._client = client
        self._folder = folder
        self._random = np.random.default_rng(20_261_129)
        self._basis = self._random.standard_normal((_LATENT, DIM)) / DIM**0.5
        self._centres = 0.5 * self._random.standard_normal((_CENTRES, _LATENT))
        self._queries = np.hstack([self._directions(queries), np.ones((queries, 1), np.float32)])
        client.create_collection(
            _COLLECTION,
            vectors_config={VECTOR_NAME: models.VectorParams(size=DIM + 1, distance=models.Distance.DOT)},
            sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=_SMALLEST_KB),
            hnsw_config=models.HnswConfigDiff(full_scan_threshold=_SMALLEST_KB),
        )
        for field, kind in PAYLOAD_INDEXES.items():
            client.create_payload_index(_COLLECTION, field, kind)

    def close(self) -> None:
        self._client.close()

    def _directions(self, count: int) -> np.ndarray:
        places = self._centres[self._random.integers(0, _CENTRES, count)]
        rows = (places + self._random.standard_normal((count, _LATENT))) @ self._basis
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def _sparse(self) -> models.SparseVector:
        indices = np.unique(np.minimum(self._random.zipf(1.3, _WORDS), 20_000))
        return models.SparseVector(indices=indices.tolist(), values=[1.0] * len(indices))

    def write(self, numbers: range) -> None:
        """Write products with vectors never seen before."""
        for begin in range(numbers.start, numbers.stop, BATCH_SIZE):
            self._write_batch(range(begin, min(begin + BATCH_SIZE, numbers.stop)))

    def _write_batch(self, numbers: range) -> None:
        quality = self._random.normal(0.0, 0.03, (len(numbers), 1))
        vectors = np.hstack([self._directions(len(numbers)), quality]).tolist()
        points = [
            models.PointStruct(
                id=number,
                vector={VECTOR_NAME: vector, "words": self._sparse()},
                payload={"product_id": f"P-{number}", "brand": f"brand{number % 200}", "price": float(number)},
            )
            for number, vector in zip(numbers, vectors, strict=True)
        ]
        self._client.upsert(_COLLECTION, points, wait=True)

    def wait_for_graph(self, products: int) -> _Build:
        """Wait until the graph leads to every product; watch what that takes."""
        began_s, cpu_s, memory, disk = time.monotonic(), 0.0, 0, 0
        while time.monotonic() - began_s < _BUILT_TIMEOUT_S:
            for process in _builders():
                with suppress(psutil.Error):
                    cpu = process.cpu_times()
                    cpu_s, memory = max(cpu_s, cpu.user + cpu.system), max(memory, process.memory_info().rss)
            disk = max(disk, _disk_bytes(self._folder / "qdrant" / f".graph-{_COLLECTION}"))
            if self._client.get_collection(_COLLECTION).indexed_vectors_count == products:
                return _Build(products, time.monotonic() - began_s, cpu_s, memory / 1e6, disk / 1e6)
            time.sleep(0.2)
        raise AssertionError(f"no graph of {products} products after {_BUILT_TIMEOUT_S} s")

    def ask(self, *, words: bool = False, rewriting: range = range(0)) -> _Asked:
        """Ask each query by the graph and by a scan, each first in turn; after each rewrite a share."""
        times: tuple[list[float], list[float]] = ([], [])
        hits, step = 0, len(rewriting) // len(self._queries)
        for number, query in enumerate(self._queries.tolist()):
            sparse, ids = self._sparse() if words else None, []
            ways = [*zip((DENSE_PARAMS, _EXACT), times, strict=True)]
            for params, times_ms in ways if number % 2 else reversed(ways):  # what comes second finds warm caches
                began_s = time.perf_counter()
                answers = self._client.query_batch_points(_COLLECTION, _requests(query, sparse, params))
                times_ms.append(1000 * (time.perf_counter() - began_s))
                ids.append({point.id for point in answers[0].points[:K]})
            hits += len(ids[0] & ids[1])
            self.write(rewriting[number * step : (number + 1) * step])
        return _Asked(*times, hits / (K * len(self._queries)))


def _requests(
    query: list[float], words: models.SparseVector | None, params: models.SearchParams
) -> list[models.QueryRequest]:
    """Ask as search does: for ten by meaning, or by both arms for both scores of all that either finds."""
    if words is None:
        return [models.QueryRequest(query=query, using=VECTOR_NAME, limit=K, params=params, with_payload=["brand"])]
    arms = [
        models.Prefetch(query=query, using=VECTOR_NAME, limit=CANDIDATES, params=params),
        models.Prefetch(query=words, using="words", limit=CANDIDATES),
    ]
    return [
        models.QueryRequest(
            prefetch=arms, query=query, using=VECTOR_NAME, limit=2 * CANDIDATES, with_payload=["brand"]
        ),
        models.QueryRequest(prefetch=arms, query=words, using="words", limit=2 * CANDIDATES),
    ]


def _builders() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "deploy.qdrant_edge.optimize" in process.cmdline():
                yield process


def _disk_bytes(folder: Path) -> int:
    """What the files of a folder take on disk; those that vanish while they are counted take nothing."""
    used = 0
    for at, _folders, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                used += Path(at, name).stat().st_blocks * 512
    return used

"""`millrace bench indexer`: what a product release costs, beside the same vector store when nothing is written.

A catalogue is filled into the embedded vector store, then product releases that move 1 % of it come into force, one
after the other, by the roll-out loop of the indexer; topics are lists in memory. A process of its own searches all the
while, so that what a search waits for is the store and the machine, not this process.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from contracts import wire
from contracts.base import YEAR_2000_MS
from contracts.catalog import PointPayload
from contracts.releases import SERVING_KEY, ReleaseManifest, Serving, release_key
from deploy.local.supervisor import LocalMillrace
from indexer.catalog.base_vectors import BaseProduct, BaseVectors
from indexer.catalog.planning import Refusal
from indexer.points import Owner
from indexer.qdrant import VECTOR_NAME, connect
from indexer.rollout.loop import RollOutLoop
from indexer.store import ProductStore
from service.models import ModelsTable
from service.settings import Settings
from simulator.bench.report import Tell, figure, machine
from towers.features import FeatureSpace, key_of
from towers.model import ProductTower
from towers.release_files import PROBE_TEXTS, Release, pack, release_tensors, weights_sha256

PRODUCTS: Final = 100_000
MOVED: Final = 0.01
DIM: Final = 384
WORDS: Final = 3_000
RELEASES: Final = 10
SEARCHES_PER_S: Final = 20
GOAL_S: Final = 5.0
GOAL_P99: Final = 1.5
REST_S: Final = 15.0
"""How long searches are measured while nothing is written."""

Span = tuple[float, float]


class _Encoder:
    """Unit vectors drawn from the text: nothing here depends on what they mean."""

    dim = DIM
    base_version = "bench/t1"

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        del batch_size
        rows = [np.random.default_rng(key_of(text)).standard_normal(DIM, np.float32) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows])


class _Log:
    """`product-vectors` in memory: everything is known."""

    def __init__(self, known: BaseVectors) -> None:
        self.known = known

    def publish(self, products: Sequence[BaseProduct]) -> None: ...
    def forget(self, product_ids: Sequence[str]) -> None: ...
    def read_to_end(self) -> None: ...
    def complete(self) -> None: ...
    def set_aside(self, refusals: Sequence[Refusal]) -> None: ...


def run(tell: Tell, *, products: int = PRODUCTS, releases: int = RELEASES) -> dict[str, Any]:
    """Measure a product release in place, and searches meanwhile."""
    with (
        tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder,
        LocalMillrace(processes=["qdrant"], data_dir=Path(folder)) as running,
    ):
        bench = _Bench(running.settings)
        tell(f"filling {products:,} products")
        filled_s = bench.fill(products)
        tell(f"filled at {products / filled_s:,.0f}/s")
        times_s, idle, busy = bench.measure(releases, tell)
    moved = f"product release, {MOVED:.0%} of {products:,} moved"
    results = [
        figure(moved, "s", ours=float(np.median(times_s)), peer="goal", peer_value=GOAL_S, most=1.0),
        figure("CPU of the indexer", "s", ours=float(np.median(bench.cpu_s)), peer="goal", peer_value=GOAL_S, most=1.0),
        *(
            figure(f"search p{percent} meanwhile", "ms", ours=ours, peer="idle", peer_value=rested, most=GOAL_P99)
            for percent in (99, 50)
            for ours, rested in [(float(np.percentile(busy, percent)), float(np.percentile(idle, percent)))]
        ),
    ]
    return {"bench": "indexer", "machine": machine(), "results": results}


class _Bench:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.cpu_s: list[float] = []
        self._encoder = _Encoder()
        self._known = BaseVectors(folder=settings.data_dir)
        self._models = ModelsTable()
        owner = Owner("bench", "")
        self._loop = RollOutLoop(
            ProductStore(connect(settings), owner=owner),
            owner,
            models=self._models,
            put_in_force=lambda serving, _releases=None: self._models.apply(SERVING_KEY, wire.encode(serving)),
            log=_Log(self._known),
            encoder=self._encoder,
            pause=_pause,
            refresh_window_s=settings.refresh_window_s,
        )

    def fill(self, count: int) -> float:
        """Fill the catalogue; return how long the vector store took."""
        drawn = np.random.default_rng(1)
        rows = drawn.standard_normal((count, DIM), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        titles = drawn.integers(0, WORDS, (count, 6))
        for number, (row, title) in enumerate(zip(rows, titles, strict=True)):
            payload = PointPayload(title=" ".join(f"word{word}" for word in title), brand=f"brand{number % 200}")
            self._known.apply(BaseProduct(f"P-{number}", 1, self._encoder.base_version, "", row, payload))
        began = time.monotonic()
        self._loop.settle()
        return time.monotonic() - began

    def measure(self, releases: int, tell: Tell) -> tuple[list[float], list[float], list[float]]:
        """Return seconds of each release, and milliseconds of searches while nothing was written, and meanwhile."""
        ours, theirs = multiprocessing.Pipe()
        serving = self._models.serving()
        if serving is None:
            raise AssertionError("nothing is in force")
        context = multiprocessing.get_context("spawn")
        searcher = context.Process(target=_search, args=(self._settings.qdrant_url, serving.collection, theirs))
        searcher.start()
        ours.recv()
        rested = (time.monotonic(), time.monotonic() + REST_S)
        time.sleep(REST_S)
        spans = [self._release(number, serving) for number in range(1, releases + 1)]
        ours.send(None)
        searches: list[Span] = ours.recv()
        searcher.join()
        for began, ended in spans:
            tell(f"released in {ended - began:.2f} s")
        busy = [wait for span in spans for wait in _waits(searches, span)]
        return [ended - began for began, ended in spans], _waits(searches, rested), busy

    def _release(self, number: int, serving: Serving) -> Span:
        """Put a product release in force that moves its share of the catalogue; return from when until when."""
        self._models.apply(release_key("product", number), pack(self._product_release(number)))
        began, used = time.monotonic(), time.process_time()
        while self._loop.step(leads=True):
            pass
        ended = time.monotonic()
        self.cpu_s.append(time.process_time() - used)
        in_force = self._models.serving()
        if in_force is None or in_force.product_release != number or in_force.collection != serving.collection:
            raise AssertionError(f"product release {number} did not come into force")
        return began, ended

    def _product_release(self, number: int) -> Release:
        ids = [state.product_id for state in self._known.states()]
        moved = np.random.default_rng(3).choice(len(ids), int(MOVED * len(ids)), replace=False)
        products = np.sort(np.array([key_of(ids[place]) for place in moved], dtype=np.uint64))
        words = np.sort(np.array([key_of(f"t:word{word}") for word in range(WORDS)], dtype=np.uint64))
        space = FeatureSpace(words, np.ones(WORDS, np.float32))
        tower = replace(
            ProductTower.untrained(),
            features=space,
            words=np.full(WORDS, 1e-4, np.float32),
            products=products,
            own=np.full(len(products), number % 2, np.float32),
            own_width=np.full(len(products), 0.1, np.float32),
            cap=3.0,
        )
        tensors = release_tensors(tower, self._encoder)
        manifest = ReleaseManifest(
            kind="product", release=number, product_release=number, query_release=0, created_at=YEAR_2000_MS,
            base_version=self._encoder.base_version, dim=DIM, pairs_trained=0, lists_trained=0, offsets={},
            probe_texts=PROBE_TEXTS, weights_sha256=weights_sha256(tensors),
        )  # fmt: skip
        return Release(manifest, tensors)


def _pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _waits(searches: Sequence[Span], within: Span) -> list[float]:
    """Milliseconds of the searches that were asked in a span of time."""
    return [1000 * (ended - began) for began, ended in searches if within[0] <= began <= within[1]]


def _search(url: str, collection: str, pipe: Connection) -> None:
    """Search one after the other, at most at a rate, until told to stop; send when each search began and ended."""
    client = connect(Settings(qdrant_url=url))
    drawn = np.random.default_rng(2)
    done: list[Span] = []
    due = time.monotonic()
    pipe.send(None)
    while not pipe.poll():
        vector = [*(drawn.standard_normal(DIM) / DIM**0.5).tolist(), 1.0]
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        client.query_points(collection, query=vector, using=VECTOR_NAME, limit=10, with_payload=["product_id"])
        done.append((began, time.monotonic()))
        due = max(due + 1 / SEARCHES_PER_S, began)
    pipe.send(done)
    client.close()

"""`millrace bench trainer`: what a micro-batch and a release cost, with 50,000 and 500,000 cells in memory.

Drawn lists of several weeks are counted until there are so many cells. Then, micro-batch by micro-batch, the trainer's
own code counts one, computes the towers at the cut, decides on a release of both kinds, and saves its state.
Beside it, in turn, the steps of what was replaced (`simulator.one_pass`) on the same lists. One thread; times are the
process's on a processor, so that what else runs on the machine counts less.
"""

import base64
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from contracts import wire
from contracts.catalog import PointPayload, ProductVector
from contracts.structs import TrainingSearch, TrainingSlot
from simulator.bench.report import Tell, figure, machine
from simulator.one_pass import OnePass
from towers.features import key_of
from trainer.adapters.checkpoints import FileCheckpoints
from trainer.adapters.vectors import TextVectors, VectorTable
from trainer.learner import DAY_MS, Learner, Towers
from trainer.preference.evidence import CELLS_LEFT, MAX_CELLS, Shown
from trainer.release.planning import Earlier, plan_release
from trainer.state import Snapshot

CELLS: Final = (50_000, 500_000)
LISTS: Final = 128
"""Of a micro-batch."""
SHOWN: Final = 10
NEAR: Final = 25
"""Products from which the lists of a query are drawn."""
CLICKS: Final = 0.9
"""Clicks a list, about."""
ROUNDS: Final = 9
DIM: Final = 384
LATENT: Final = 48
"""Directions in which drawn vectors differ most, as those of sentence encoders do."""
VOCABULARY: Final = 2_000
TITLE: Final = 6
"""Words of a product's title; a query has two of a product that it finds."""
HALF_LIFE_DAYS: Final = 16.0
BEGIN_MS: Final = 1_795_196_000_000
GOAL_MS: Final = 150.0
GOAL_S: Final = 5.0
GOAL_MB: Final = 2_000.0


class _List(NamedTuple):
    query: int
    shown: list[Shown]


class _Shop:
    """Queries, products and what shoppers want, drawn; a list shows products that are near its query."""

    base_version = "drawn"
    dim = DIM

    def __init__(self, cells: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        queries, products = cells // (NEAR - 5), cells // 10
        space = self._rng.standard_normal((LATENT, DIM))
        self.query_vectors, self.product_vectors = (
            _unit(self._rng.standard_normal((n, LATENT)) @ space) for n in (queries, products)
        )
        self.titles = [
            " ".join(f"w{word}" for word in row)
            for row in self._rng.integers(0, VOCABULARY, (products, TITLE)).tolist()
        ]
        self._worth = self._rng.standard_normal(products)
        near = self._rng.permutation(products)
        self._near = np.stack([near[(np.arange(NEAR) + 10 * query) % products] for query in range(queries)])
        self.queries = [
            f"{' '.join(self.titles[row[0]].split()[:2])} q{number}" for number, row in enumerate(self._near.tolist())
        ]
        self._number_of = {query: number for number, query in enumerate(self.queries)}
        self._lists = 0

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Unit rows: those of queries as they were drawn, any other text's by its name, (N, D)."""
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> np.ndarray:
        number = self._number_of.get(text)
        if number is not None:
            return np.asarray(self.query_vectors[number])
        return np.asarray(_unit(np.random.default_rng(key_of(text)).standard_normal((1, DIM)))[0])

    def fill(self, table: VectorTable) -> None:
        """Give the products as `product-vectors` has them."""
        for number, (title, vector) in enumerate(zip(self.titles, self.product_vectors, strict=True)):
            record = ProductVector(
                product_id=f"P-{number}", version=1, base_version=self.base_version,
                vector=base64.b64encode(vector.tobytes()).decode(), payload=PointPayload(title=title),
            )  # fmt: skip
            table.on_record(record.product_id.encode(), wire.encode(record), 0)

    def lists(self, count: int, *, popular: bool = True) -> Iterator[_List]:
        """Lists of ten, of popular queries most of all; or of each query in turn."""
        for place in range(count):
            query = int(len(self.queries) * self._rng.random() ** 3) if popular else place % len(self.queries)
            products = self._rng.choice(self._near[query], SHOWN, replace=False)
            looks = 1 / np.arange(1, SHOWN + 1)
            attraction = CLICKS / 2 / (1 + np.exp(-self._worth[products]))
            clicks = self._rng.random(SHOWN) < attraction * looks
            columns = products.tolist(), looks.tolist(), clicks.astype(float).tolist()
            yield _List(query, [Shown(*one) for one in zip(*columns, strict=True)])

    def written(self, one: _List, *, time_ms: int) -> TrainingSearch:
        """A list as `training-searches` has it."""
        self._lists += 1
        slots = tuple(
            TrainingSlot(product_id=f"P-{slot.product}", position=place, showing=slot.showing, value=slot.click)
            for place, slot in enumerate(one.shown, start=1)
        )
        query = self.queries[one.query]
        return TrainingSearch(
            search_id=f"s-{self._lists}", search_time=time_ms, closed_at=time_ms, query=query, slots=slots
        )


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def run(tell: Tell, *, cells: Sequence[int] = CELLS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure micro-batches and releases over tables of these sizes."""
    torch.set_num_threads(1)
    results = []
    with threadpool_limits(1), TemporaryDirectory() as folder:
        for size in cells:
            results += _rows(size, _measured(size, rounds, tell, folder=Path(folder)))
    return {"bench": "trainer", "machine": machine(), "results": results}


class _Times(NamedTuple):
    """Milliseconds of each round, by step; cells there were."""

    cells: int
    counted: list[float]
    solved: list[float]
    released: list[float]
    peer: list[float]


def _measured(size: int, rounds: int, tell: Tell, *, folder: Path) -> _Times:
    shop = _Shop(size, seed=1)
    products = VectorTable(folder, DIM, base_version=shop.base_version)
    tell(f"reading {len(shop.titles):,} products")
    shop.fill(products)
    learner = Learner(DIM, products=products, encode=TextVectors(shop), half_life_days=HALF_LIFE_DAYS)
    evidence, peer = learner.evidence, OnePass(shop.query_vectors, shop.product_vectors)
    checkpoints = FileCheckpoints(folder, base_version=shop.base_version)
    tell(f"counting until there are {size:,} cells")
    time_ms = BEGIN_MS
    least = min(size, round(CELLS_LEFT * MAX_CELLS))  # a full table has just let go of some
    while len(evidence.table) < least:
        for one in shop.lists(len(shop.queries), popular=False):
            time_ms += int(HALF_LIFE_DAYS * DAY_MS / len(shop.queries) / 5)
            evidence.take_list(shop.written(one, time_ms=time_ms), time_ms=time_ms)
    tell("learning the prior")
    learner.learn_prior()
    towers = learner.solve(Towers.untrained(DIM)).towers
    times = _Times(len(evidence.table), [], [], [], [])

    for number in range(1, rounds + 1):
        lists = list(shop.lists(LISTS))
        written = [shop.written(one, time_ms=time_ms) for one in lists]
        marks_s = [time.process_time()]
        for search in written:
            evidence.take_list(search, time_ms=time_ms)
        marks_s.append(time.process_time())
        found = learner.solve(towers).towers
        marks_s.append(time.process_time())
        plan = plan_release(
            learner, found, earlier=Earlier(towers, towers), with_products=True, encoder=shop, now_ms=time_ms
        )
        if plan is None or not plan.values:
            raise AssertionError("nothing was released")
        checkpoints.save(Snapshot(learner.state(), learner.progress, plan.values))
        marks_s.append(time.process_time())
        for one in lists:
            peer.add(*one)
        marks_s.append(time.process_time())
        towers = found
        tell(f"round {number} of {rounds}")
        for kept, took_s in zip(times[1:], np.diff(marks_s), strict=True):
            kept.append(1000 * float(took_s))
    return times


def _rows(size: int, times: _Times) -> list[dict[str, Any]]:
    """What was measured, each beside the one-pass steps on the same lists."""
    peer = float(np.median(times.peer))
    named = f"{times.cells:,} cells"
    in_time = GOAL_MS if size <= CELLS[0] else None
    towers = np.add(times.counted, times.solved)
    figures = [
        (f"count {LISTS} lists, {named}", times.counted, None),
        (f"count {LISTS} lists and compute towers, {named}", towers, in_time),
        (f"the same, decided on, made and saved, {named}", towers + times.released, 1000 * GOAL_S),
    ]
    results: list[dict[str, Any]] = []
    for name, taken, goal in figures:
        ours = float(np.median(taken))
        beside = "AdamW steps, low-rank head"
        results.append(figure(name, "ms", ours=ours, peer=beside, peer_value=peer, most=goal, absolute=True))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = f"most memory of the process, {named}"
    return [*results, figure(memory, "MB", ours=used, peer="goal", peer_value=GOAL_MB, most=1.0)]

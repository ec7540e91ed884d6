"""`millrace bench trainer`: what counting a micro-batch and solving a release cost, with 50,000 and 500,000 cells.

Micro-batches of drawn lists are counted into a table that holds so many cells already, and after each the weights are
solved again from those before, as the trainer does for a release. Beside it, in turn, one step of what was replaced: a
low-rank head, trained by one pass of AdamW over the pairs of the same lists. One thread.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from simulator.bench.indexer import Tell
from simulator.bench.streams import machine
from trainer.preference.evidence import EvidenceTable, Shown
from trainer.preference.learner import PreferenceLearner
from trainer.preference.model import Catalogue, Weights

CELLS: Final = (50_000, 500_000)
LISTS: Final = 128
SHOWN: Final = 10
CLICKS: Final = 0.9
"""Clicks a list, about."""
ROUNDS: Final = 9
DIM: Final = 384
LATENT: Final = 48
"""Directions in which drawn vectors differ most, as those of sentence encoders do."""
RANK: Final = 64
RATE: Final = 1e-3
GOAL_MS: Final = 150.0
GOAL_S: Final = 5.0
GOAL_MB: Final = 2_000.0


class _List(NamedTuple):
    query: int
    shown: list[Shown]


class _Shop:
    """Queries, products and what shoppers want, drawn; a list shows products that are near its query."""

    def __init__(self, cells: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.queries, products = cells // 25, cells // 10
        space = self._rng.standard_normal((LATENT, DIM))
        self.query_vectors, vectors = (
            self._unit(self._rng.standard_normal((n, LATENT)) @ space) for n in (self.queries, products)
        )
        words = self._rng.integers(0, 2_000, (products, 6))
        rows = np.repeat(np.arange(products), words.shape[1])
        features = csr_matrix(
            (np.full(words.size, words.shape[1] ** -0.5), (rows, words.reshape(-1))), shape=(products, 2_000)
        )
        self.catalogue = Catalogue(vectors, features)
        self._worth = self._rng.standard_normal(products)
        near = self._rng.permutation(products)
        self._near = np.stack(
            [near[(np.arange(2 * SHOWN + 5) + 10 * query) % products] for query in range(self.queries)]
        )

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def lists(self, count: int, *, popular: bool = True) -> Iterator[_List]:
        """Lists of ten, of popular queries most of all; or of each query in turn."""
        for place in range(count):
            query = int(self.queries * self._rng.random() ** 3) if popular else place % self.queries
            products = self._rng.choice(self._near[query], SHOWN, replace=False)
            looks = 1 / np.arange(1, SHOWN + 1)
            attraction = CLICKS / 2 / (1 + np.exp(-self._worth[products]))
            clicks = self._rng.random(SHOWN) < attraction * looks
            yield _List(
                query,
                [
                    Shown(*one)
                    for one in zip(products.tolist(), looks.tolist(), clicks.astype(float).tolist(), strict=True)
                ],
            )


class _OnePass:
    """What was replaced: a low-rank head on the query side and a quality per product, one AdamW step a micro-batch."""

    def __init__(self, shop: _Shop) -> None:
        self._queries, self._products = (
            torch.from_numpy(rows) for rows in (shop.query_vectors, shop.catalogue.vectors)
        )
        self._down = torch.nn.Parameter(torch.randn(DIM, RANK) / DIM**0.5)
        self._up = torch.nn.Parameter(torch.zeros(RANK, DIM))
        self._quality = torch.nn.Parameter(torch.zeros(len(self._products)))
        self._optimizer = torch.optim.AdamW([self._down, self._up, self._quality], lr=RATE)

    def step(self, lists: Sequence[_List]) -> None:
        """Train on every clicked product against every other one of its list, weighted by the ratio of looks."""
        pairs = [
            (one.query, chosen.product, other.product, min(1.0, other.showing / chosen.showing))
            for one in lists for chosen in one.shown if chosen.click for other in one.shown if not other.click
        ]  # fmt: skip
        query, chosen, rejected = (torch.tensor(column) for column in list(zip(*pairs, strict=True))[:3])
        weights = torch.tensor([pair[3] for pair in pairs])
        learned = self._queries[query] @ self._down @ self._up
        margin = (learned * (self._products[chosen] - self._products[rejected])).sum(dim=1)
        loss = (
            weights * torch.nn.functional.softplus(-margin - self._quality[chosen] + self._quality[rejected])
        ).mean()
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()


def run(tell: Tell, *, cells: Sequence[int] = CELLS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure micro-batches and releases over tables of these sizes."""
    torch.set_num_threads(1)
    results = []
    with threadpool_limits(1):
        for size in cells:
            results += _rows(size, _measured(size, rounds, tell))
    return {"bench": "trainer", "machine": machine(), "results": results}


class _Times(NamedTuple):
    """Milliseconds of each round; cells there were."""

    cells: int
    counted: list[float]
    solved: list[float]
    peer: list[float]


def _measured(size: int, rounds: int, tell: Tell) -> _Times:
    shop, table = _Shop(size, seed=1), EvidenceTable()
    tell(f"counting until there are {size:,} cells")
    while len(table) < size:
        for one in shop.lists(shop.queries, popular=False):
            table.add(*one)
    learner, peer = PreferenceLearner(), _OnePass(shop)
    tell("learning the prior")
    learner.learn_prior(table.cells(), shop.query_vectors, shop.catalogue, 1.0)
    weights = Weights.untrained(shop.catalogue)
    times = _Times(len(table), [], [], [])

    for number in range(rounds + 1):
        lists = list(shop.lists(LISTS))
        began_s = time.perf_counter()
        for one in lists:
            table.add(*one)
        counted_s = time.perf_counter()
        weights = learner.solve(table.cells(), shop.query_vectors, shop.catalogue, start=weights).weights
        solved_s = time.perf_counter()
        peer.step(lists)
        if number:  # the first one solves from nothing
            tell(f"round {number} of {rounds}")
            times.counted.append(1000 * (counted_s - began_s))
            times.solved.append(1000 * (solved_s - counted_s))
            times.peer.append(1000 * (time.perf_counter() - solved_s))
    return times


def _rows(size: int, times: _Times) -> list[dict[str, Any]]:
    """What was measured, each beside the one-pass step on the same lists."""
    peer = float(np.median(times.peer))
    named = f"{times.cells:,} cells"
    goal_ms = GOAL_MS if size <= CELLS[0] else 1000 * GOAL_S
    figures = [
        (f"count {LISTS} lists, {named}", "ms", float(np.median(times.counted)), None),
        (f"count and solve a release, {named}", "ms", float(np.median(np.add(times.counted, times.solved))), goal_ms),
    ]
    results: list[dict[str, Any]] = []
    for name, unit, ours, goal in figures:
        judged = {} if goal is None else {"goal": f"<= {goal:g} ms", "met": ours <= goal}
        row = {"name": name, "unit": unit, "ours": ours, "peer": "one AdamW step, low-rank head", "peer_value": peer}
        results.append({**row, "ratio": ours / peer, **judged})
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = {"name": f"most memory of the process, {named}", "unit": "MB", "ours": used, "peer": "goal"}
    return [
        *results,
        {**memory, "peer_value": GOAL_MB, "ratio": used / GOAL_MB, "goal": f"<= {GOAL_MB:g}", "met": used <= GOAL_MB},
    ]

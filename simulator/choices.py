"""Clicks without lists as evidence: each was a choice among the whole catalogue, and counts at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from simulator.click_log import DAY_MS, Click, ClickLog
from trainer.preference.evidence import Cells
from trainer.preference.learner import PreferenceLearner
from trainer.preference.memory import RECENT_SHARE, remember
from trainer.preference.model import Catalogue, Weights
from trainer.preference.priors import Learned

HALF_LIFE_DAYS: Final = 16.0
WARM_ITERATIONS: Final = 8
"""Of each solve: it goes on from the last one."""
CANDIDATES: Final = 1_500
"""Products that a choice is modelled among; of a larger catalogue, all that were clicked and a sample."""
MOST_CELLS: Final = 6_000_000
PRIOR_QUERIES: Final = 800


class Choices:
    """Clicks without lists, as evidence: each was a choice among the catalogue, and old ones fade."""

    def __init__(self, products: int, *, seed: int) -> None:
        self._products = products
        self._rng = np.random.default_rng(seed)
        self._cells: dict[tuple[int, int], float] = {}
        self._now_ms = 0.0

    def add(self, query: int, click: Click) -> None:
        """Count what a click is worth; everything before it fades."""
        self._fade(click.time_ms)
        key = (query, click.product)
        self._cells[key] = self._cells.get(key, 0.0) + click.value

    def cells(self) -> Cells:
        """The evidence as a grid: of each query that was typed, every product that could have been chosen."""
        clicks_of: dict[int, float] = defaultdict(float)
        for (query, _), count in self._cells.items():
            clicks_of[query] += count
        products, log_showings = self._candidates()
        most = max(1, MOST_CELLS // len(products))
        queries = np.array(sorted(sorted(clicks_of, key=lambda one: -clicks_of[one])[:most]), dtype=np.int64)
        place = {query: row for row, query in enumerate(queries.tolist())}
        column = {product: k for k, product in enumerate(products.tolist())}
        clicks = np.zeros((len(queries), len(products)))
        for (query, product), count in self._cells.items():
            if query in place:
                clicks[place[query], column[product]] = count
        size = len(products)
        return Cells(
            queries,
            np.arange(len(queries)) * size,
            np.repeat(np.arange(len(queries)), size),
            np.tile(products, len(queries)),
            clicks.reshape(-1),
            np.tile(log_showings, len(queries)),
            width=size,
        )

    def _candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """Products to choose among, and log Q: how many products each of them stands for."""
        count = self._products
        if count <= CANDIDATES:
            return np.arange(count), np.zeros(count)
        clicked = np.unique([product for _, product in self._cells])
        others = np.setdiff1d(np.arange(count), clicked)
        sampled = self._rng.choice(others, size=min(len(others), CANDIDATES // 3), replace=False)
        products = np.union1d(clicked, sampled)
        stands_for = np.where(np.isin(products, clicked), 1.0, len(others) / max(len(sampled), 1))
        return products, np.log(stands_for)

    def sample(self, cells: Cells) -> Cells:
        """Of many queries so many that the prior can be learned of them."""
        if len(cells.queries) <= PRIOR_QUERIES:
            return cells
        kept = np.zeros(len(cells.queries), dtype=bool)
        kept[self._rng.choice(len(cells.queries), PRIOR_QUERIES, replace=False)] = True
        return cells.of_queries(kept)

    def _fade(self, now_ms: float) -> None:
        days = (now_ms - self._now_ms) / DAY_MS
        if self._now_ms and days < 0.25:
            return
        factor = 0.5 ** (days / HALF_LIFE_DAYS) if self._now_ms else 1.0
        self._cells = {key: count * factor for key, count in self._cells.items() if count * factor >= 1e-2}
        self._now_ms = now_ms


class Chosen:
    """What was chosen for each query, as known with some delay: of all time and of lately.

    Each click was a choice among the whole catalogue. The trainer reads lists, of which a product's prior is stronger
    (`trainer.preference.memory`), caps what one query and one product may say, and knows a list once it is closed.
    """

    def __init__(self) -> None:
        self._of: defaultdict[int, dict[int, tuple[float, float, float]]] = defaultdict(dict)
        self._read = 0

    def advance(self, clicks: Sequence[Click], queries: np.ndarray, until_ms: float, before: int) -> None:
        """Count the clicks up to a moment, at most those before a place in the log."""
        while self._read < before and clicks[self._read].time_ms <= until_ms:
            click, own = clicks[self._read], self._of[int(queries[self._read])]
            worth, lately, at_ms = own.get(click.product, (0.0, 0.0, click.time_ms))
            whole, recent = _faded(click.time_ms - at_ms)
            own[click.product] = worth * whole + click.value, lately * recent + click.value, click.time_ms
            self._read += 1

    def added(self, query: int, scores: np.ndarray, now_ms: float) -> np.ndarray:
        """Scores of the whole catalogue, in nats, (P,), with what is remembered of a query."""
        own = self._of.get(query)
        if not own:
            return scores
        products = np.array(sorted(own))
        counts = np.array([[*own[product][:2], *_faded(now_ms - own[product][2])] for product in products.tolist()])
        counts = np.vstack([counts[:, :2] * counts[:, 2:], np.zeros(2)])
        highest = scores.max()
        masses = np.exp(scores - highest)
        rest = max(float(masses.sum() - masses[products].sum()), np.finfo(float).tiny)
        nats = np.append(scores[products] - highest, np.log(rest))
        cells = Cells(
            np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(len(nats), np.int64),
            np.append(products, len(scores)), counts[:, 0], np.zeros(len(nats)), width=len(nats),
        )  # fmt: skip
        remembered = remember(cells, nats, replace(cells, clicks=counts[:, 1])).get(0)
        if remembered is None:
            return scores
        found = np.append(scores, 0.0)  # the last one stands for all that was not chosen
        found[remembered[0]] += remembered[1]
        return found[:-1]


def _faded(age_ms: float) -> tuple[float, float]:
    """What is left of evidence, of all time and of lately."""
    days = age_ms / DAY_MS
    return 0.5 ** (days / HALF_LIFE_DAYS), 0.5 ** (days / (RECENT_SHARE * HALF_LIFE_DAYS))


class ChoiceLearner:
    """The preference model over clicks alone.

    Args:
        log: the log.
        queries: number of each click's query, (clicks,).
        query_vectors: base vectors of the queries, (Q, D).
        query_keys: what names each query, (Q,) uint64.
        catalogue: the products.
        seed: of samples.
    """

    def __init__(
        self,
        log: ClickLog,
        queries: np.ndarray,
        query_vectors: np.ndarray,
        query_keys: np.ndarray,
        catalogue: Catalogue,
        seed: int,
    ) -> None:
        self._log, self._queries, self._query_vectors, self._query_keys = log, queries, query_vectors, query_keys
        self._catalogue = catalogue
        self._choices, self._read = Choices(len(log.products), seed=seed), 0
        self._learner = PreferenceLearner(max_iterations=WARM_ITERATIONS)
        self.released = self._solved = Weights.untrained(catalogue)

    @property
    def learned(self) -> Learned | None:
        """The prior in force."""
        return self._learner.learned

    def solve(self, clicks: int) -> None:
        """Learn the first clicks of the log."""
        for place in range(self._read, clicks):
            self._choices.add(int(self._queries[place]), self._log.clicks[place])
        self._read = clicks
        cells = self._choices.cells()
        if self._learner.prior_due(clicks):
            self._learner.learn_prior(
                self._choices.sample(cells), self._query_vectors, self._catalogue, clicks, query_keys=self._query_keys
            )
        fit = self._learner.solve(cells, self._query_vectors, self._catalogue, start=self._solved)
        self._solved, self.released = fit.weights, fit.released

"""`millrace backtest`: what would Millrace have gained on a shop's own old log of clicks?

Each click is predicted before it is learned, in order of time: every method ranks the whole catalogue for the query
that was typed, and the rank of the product that was clicked counts. Old logs hold no lists, so the evidence is a choice
among the catalogue; old clicks fade. The model is solved some hundred times; what the shoppers of a query chose counts
at once. Beside Millrace stand the base model, BM25, both together, and what a shop can do by counting: popularity and
the clicks of this very query.
"""

import resource
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from millrace.output import Tell
from simulator.base_vectors import encode_catalogue
from simulator.click_log import DAY_MS, Click, ClickLog, Counts
from simulator.words import Words
from towers.encoder import BaseEncoder
from towers.features import key_of
from towers.model import DEFAULT_MIX, NATS_PER_COSINE
from trainer.preference.evidence import Cells
from trainer.preference.learner import PreferenceLearner
from trainer.preference.memory import RECENT_SHARE, remember
from trainer.preference.model import Weights
from trainer.preference.priors import Learned

DELAYS_MS: Final = {"live": 0.0, "1h": 3_600_000.0, "1d": 86_400_000.0}
HALF_LIFE_DAYS: Final = 16.0
SOLVES: Final = 150
"""How often the model is solved over the log, unless a day passes sooner."""
WARM_ITERATIONS: Final = 8
"""Of each of these solves: it goes on from the last one."""
FEWEST_CLICKS: Final = 100
"""Between two solves."""
CANDIDATES: Final = 1_500
"""Products that a choice is modelled among; of a larger catalogue, all that were clicked and a sample."""
MOST_CELLS: Final = 6_000_000
PRIOR_QUERIES: Final = 800
WINDOW_DAYS: Final = 10
CURVE_POINTS: Final = 40
REPLICATES: Final = 1_000


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


class Backtest:
    """One log with its base vectors.

    Args:
        log: catalogue and clicks.
        encoder: the base encoder.
        cache: folder in which base vectors are kept; None keeps none.
        tell: told how it goes.
        k: depth of the reciprocal rank.
        seed: of samples and intervals.
    """

    def __init__(
        self, log: ClickLog, encoder: BaseEncoder, *, cache: Path | None, tell: Tell, k: int = 5, seed: int = 1
    ) -> None:
        self._log, self._tell, self._k, self._seed = log, tell, k, seed
        typed: dict[str, str] = {}
        for click in log.clicks:
            typed.setdefault(click.query, click.typed)
        self._typed = list(typed.values())
        self._query_keys = np.array([key_of(query) for query in typed], dtype=np.uint64)
        numbers = {query: number for number, query in enumerate(typed)}
        self._queries = np.array([numbers[click.query] for click in log.clicks])
        catalogue, self._query_vectors = encode_catalogue(log.products, self._typed, encoder, cache=cache, tell=tell)
        self._words = words = Words(log.products)
        texts = self._typed
        self._catalogue = replace(catalogue, matches=lambda cells: words.matches.of(cells, texts, words.of_products))

    def run(self, delays: Sequence[str]) -> dict[str, Any]:
        """Predict and learn the whole log; return the report (docs/quickstart.md, "Would it help my shop?")."""
        began_s = time.process_time()
        clicks, learner = self._log.clicks, PreferenceLearner(max_iterations=WARM_ITERATIONS)
        choices = Choices(len(self._log.products), seed=self._seed)
        counts = {delay: Counts(len(self._log.products)) for delay in delays}
        chosen = {delay: Chosen() for delay in delays}
        ranks = {(name, delay): [] for name in METHODS for delay in delays}  # type: dict[tuple[str, str], list[float]]
        solved = Weights.untrained(self._catalogue)
        released: deque[tuple[float, Weights]] = deque([(-np.inf, solved)])
        for first, last in self._blocks():
            self._tell("clicks", first, len(clicks))
            if first:
                solved, may_go_out = self._solve(learner, choices, first, start=solved)
                released.append((clicks[first - 1].time_ms, may_go_out))
            vectors = {delay: _in_force(released, clicks[first].time_ms - DELAYS_MS[delay]) for delay in delays}
            products = {delay: weights.product_vectors(self._catalogue) for delay, weights in vectors.items()}
            for place in range(first, last):
                self._predict(place, counts, chosen, vectors, products, ranks)
                choices.add(int(self._queries[place]), clicks[place])
            while len(released) > 1 and released[1][0] < clicks[last - 1].time_ms - max(DELAYS_MS.values()):
                released.popleft()
        self._tell("clicks", len(clicks), len(clicks))
        found = {key: np.array(values) for key, values in ranks.items()}
        return self._report(
            found, delays, cpu_s=time.process_time() - began_s, learned=learner.learned, last=released[-1][1]
        )

    def _solve(
        self, learner: PreferenceLearner, choices: Choices, clicks: int, *, start: Weights
    ) -> tuple[Weights, Weights]:
        cells = choices.cells()
        if learner.prior_due(clicks):
            sample = choices.sample(cells)
            learner.learn_prior(sample, self._query_vectors, self._catalogue, clicks, query_keys=self._query_keys)
        fit = learner.solve(cells, self._query_vectors, self._catalogue, start=start)
        return fit.weights, fit.released

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Places in the log between which the model is solved anew."""
        clicks, first = self._log.clicks, 0
        size = max(FEWEST_CLICKS, len(clicks) // SOLVES)
        while first < len(clicks):
            last = first + 1
            while last < len(clicks) and last - first < size and clicks[last].time_ms < clicks[first].time_ms + DAY_MS:
                last += 1
            yield first, last
            first = last

    def _predict(
        self,
        place: int,
        counts: dict[str, Counts],
        chosen: dict[str, Chosen],
        weights: dict[str, Weights],
        products: dict[str, np.ndarray],
        ranks: dict[tuple[str, str], list[float]],
    ) -> None:
        click, query = self._log.clicks[place], int(self._queries[place])
        text = NATS_PER_COSINE * (self._catalogue.vectors @ self._query_vectors[query])
        asked = self._words.ask(self._typed[query])
        hybrid = asked.added(text, DEFAULT_MIX)
        fixed = {"bm25": asked.scores(len(text)), "base": text, "hybrid": hybrid}
        fixed_ranks = {name: _rank(scores, click.product) for name, scores in fixed.items()}
        for delay, known in counts.items():
            known.advance(self._log.clicks, self._queries, click.time_ms - DELAYS_MS[delay], place)
            chosen[delay].advance(self._log.clicks, self._queries, click.time_ms - DELAYS_MS[delay], place)
            model = weights[delay]
            vector = model.query_vectors(self._query_vectors[[query]])[0]
            scores = asked.mixed(NATS_PER_COSINE * (products[delay] @ vector), model.mix)
            scores = asked.pinned(chosen[delay].added(query, scores, click.time_ms))
            for name, rank in fixed_ranks.items():
                ranks[name, delay].append(rank)
            ranks["boring", delay].append(_rank(hybrid + known.boost(query), click.product))
            ranks["millrace", delay].append(_rank(scores, click.product))

    def _report(
        self,
        ranks: dict[tuple[str, str], np.ndarray],
        delays: Sequence[str],
        *,
        cpu_s: float,
        learned: Learned | None,
        last: Weights,
    ) -> dict[str, Any]:
        log, rng = self._log, np.random.default_rng(self._seed)
        first_time = np.zeros(len(log.clicks), dtype=bool)
        first_time[np.unique(self._queries, return_index=True)[1]] = True
        whole = np.ones_like(first_time)
        second = np.arange(len(log.clicks)) >= len(log.clicks) // 2
        slices = {"all": whole, "first_time": first_time, "repeated": ~first_time}

        def figures(part: np.ndarray) -> dict[str, Any]:
            return {
                name: {
                    delay: {
                        kind: self._figures(ranks[name, delay], part & chosen, rng) for kind, chosen in slices.items()
                    }
                    for delay in delays
                }
                for name in METHODS
            }

        gain = self._reciprocal(ranks["millrace", delays[0]]) - self._reciprocal(ranks["boring", delays[0]])
        low, high = _interval(gain[second], rng)
        mean = float(gain[second].mean())
        return {
            "clicks": len(log.clicks),
            "queries": len(self._typed),
            "products": len(log.products),
            "skipped": dict(log.skipped),
            "times": log.times,
            "settings": {
                "half_life_days": HALF_LIFE_DAYS, "k": self._k, "seed": self._seed,
                "mix": last.mix.named(),
                "prior": None if learned is None else {**learned.prior._asdict(), "gain": learned.gain.mean},
            },
            "methods": figures(whole),
            "halves": {"first": figures(~second), "second": figures(second)},
            "windows": self._windows(ranks, delays[0]),
            "curve": self._curve(ranks, delays[0]),
            "verdict": {"gain": mean, "low": low, "high": high, "words": verdict(mean, low, high)},
            "cpu_s": round(cpu_s, 1),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }  # fmt: skip

    def _reciprocal(self, ranks: np.ndarray) -> np.ndarray:
        return np.where(ranks <= self._k, 1 / ranks, 0.0)

    def _figures(self, ranks: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        reciprocal = self._reciprocal(ranks[part])
        if not len(reciprocal):
            return {"n": 0, f"mrr@{self._k}": None, "recall@10": None, f"mrr@{self._k}_interval": None}
        return {
            "n": len(reciprocal),
            f"mrr@{self._k}": float(reciprocal.mean()),
            "recall@10": float((ranks[part] <= 10).mean()),
            f"mrr@{self._k}_interval": list(_interval(reciprocal, rng)),
        }

    def _windows(self, ranks: dict[tuple[str, str], np.ndarray], delay: str) -> list[dict[str, Any]]:
        times = np.array([click.time_ms for click in self._log.clicks])
        window = ((times - times[0]) // (WINDOW_DAYS * DAY_MS)).astype(int)
        found = []
        for number in np.unique(window).tolist():
            part, begin_ms = window == number, times[0] + number * WINDOW_DAYS * DAY_MS
            means = {name: float(self._reciprocal(ranks[name, delay][part]).mean()) for name in METHODS}
            found.append(
                {"from": _day(begin_ms), "to": _day(begin_ms + WINDOW_DAYS * DAY_MS), "n": int(part.sum()), **means}
            )
        return found

    def _curve(self, ranks: dict[tuple[str, str], np.ndarray], delay: str) -> list[dict[str, Any]]:
        size = max(1, len(self._log.clicks) // CURVE_POINTS)
        return [
            {
                "clicks": first,
                "untrained": float(self._reciprocal(ranks["base", delay][first : first + size]).mean()),
                "trained": float(self._reciprocal(ranks["millrace", delay][first : first + size]).mean()),
            }
            for first in range(0, len(self._log.clicks), size)
        ]


METHODS: Final = ("bm25", "base", "hybrid", "boring", "millrace")


def verdict(gain: float, low: float, high: float) -> str:
    """Say in one sentence whether to install."""
    told = f"{gain:+.3f} in MRR over counting clicks on a hybrid search ({low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"Yes: on the second half of this log Millrace would have gained {told}."
    if high < 0:
        return f"No: on the second half of this log Millrace would have lost, {told}; counting is better here."
    return f"No: on the second half of this log no gain is certain, {told}; do not install it for these clicks alone."


def _in_force(released: Sequence[tuple[float, Weights]], at_ms: float) -> Weights:
    return next(weights for since_ms, weights in reversed(released) if since_ms <= at_ms)


def _rank(scores: np.ndarray, product: int) -> float:
    """The rank of a product; equal scores share the mean of their ranks."""
    own = float(scores[product])
    return 1 + float((scores > own).sum()) + (float((scores == own).sum()) - 1) / 2


def _interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A bootstrap's 95 % percentile interval of the mean."""
    if not len(values):
        return 0.0, 0.0
    size = len(values)
    means = [values[rng.integers(0, size, size)].mean() for _ in range(REPLICATES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _day(time_ms: float) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()

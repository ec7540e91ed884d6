"""`millrace backtest`: what would Millrace have gained on a shop's own old log of clicks?

Each click is predicted before it is learned, in order of time: every method ranks the whole catalogue for the query
that was typed, and the rank of the product that was clicked counts. Most old logs hold no lists, so the evidence is a
choice among the catalogue, and what the shoppers of a query chose counts at once; of a log with its lists the evidence
is what the trainer has, once a list is closed. The model is solved some hundred times; old evidence fades. Beside
Millrace stand the base model, BM25, both together, and what a shop can do by counting: popularity and the clicks of
this very query.
"""

import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from contracts.structs import TrainingSearch
from millrace.output import Tell, utc
from simulator.base_vectors import encode_catalogue
from simulator.choices import HALF_LIFE_DAYS, ChoiceLearner, Chosen
from simulator.click_log import DAY_MS, ClickLog, Counts
from simulator.logged_lists import ListLearner, Release
from simulator.words import Words
from towers.encoder import BaseEncoder
from towers.features import key_of
from towers.model import DEFAULT_MIX, NATS_PER_COSINE
from towers.text import normalised
from trainer.preference.model import Weights
from trainer.preference.priors import Learned

DELAYS_MS: Final = {"live": 0.0, "1h": 3_600_000.0, "1d": 86_400_000.0}
SOLVES: Final = 150
"""How often the model is solved over the log, unless a day passes sooner."""
FEWEST_CLICKS: Final = 100
"""Between two solves."""
FEWEST_JUDGED: Final = 100
"""In the half of a log that decides."""
FEWEST_QUERIES: Final = 20
"""Likewise; of fewer the interval is too narrow."""
WINDOW_DAYS: Final = 10
CURVE_POINTS: Final = 40
REPLICATES: Final = 1_000

Model = Weights | Release
"""What may go out."""
Learning = ChoiceLearner | ListLearner
"""What learns a log: from clicks alone, or from lists."""


class Backtest:
    """One log with its base vectors.

    Args:
        log: catalogue and clicks.
        encoder: the base encoder.
        cache: folder in which base vectors are kept; None keeps none.
        tell: told how it goes.
        k: depth of the reciprocal rank.
        seed: of samples and intervals.
        lists: what was shown, in the order in which it closes; None if nobody knows.
    """

    def __init__(
        self,
        log: ClickLog,
        encoder: BaseEncoder,
        *,
        cache: Path | None,
        tell: Tell,
        k: int = 5,
        seed: int = 1,
        lists: Sequence[TrainingSearch] | None = None,
    ) -> None:
        self._lists = lists
        self._log, self._tell, self._k, self._seed = log, tell, k, seed
        typed: dict[str, str] = {}
        for click in log.clicks:
            typed.setdefault(click.query, click.typed)
        self._typed = list(typed.values())
        self._query_keys = np.array([key_of(query) for query in typed], dtype=np.uint64)
        numbers = {query: number for number, query in enumerate(typed)}
        self._queries = np.array([numbers[click.query] for click in log.clicks])
        clicked = {normalised(search.query) for search in lists or () if any(slot.value for slot in search.slots)}
        shown = [" ".join(search.query.split()) for search in lists or () if normalised(search.query) in clicked]
        asked = [*self._typed, *dict.fromkeys(shown)]
        catalogue, vectors = encode_catalogue(log.products, asked, encoder, cache=cache, tell=tell)
        self._query_vectors = vectors[: len(self._typed)]
        self._vector_of = dict(zip(asked, vectors, strict=True))
        self._words = words = Words(log.products)
        texts = self._typed
        self._catalogue = replace(catalogue, matches=lambda cells: words.matches.of(cells, texts, words.of_products))

    def run(self, delays: Sequence[str]) -> dict[str, Any]:
        """Predict and learn the whole log; return the report (docs/quickstart.md, "Would it help my shop?")."""
        began_s = time.process_time()
        clicks, learning = self._log.clicks, self._learning()
        counts = {delay: Counts(len(self._log.products)) for delay in delays}
        chosen = None if self._lists is not None else {delay: Chosen() for delay in delays}
        ranks = {(name, delay): [] for name in METHODS for delay in delays}  # type: dict[tuple[str, str], list[float]]
        released: deque[tuple[float, Model]] = deque([(-np.inf, learning.released)])
        for first, last in self._blocks():
            self._tell("clicks", first, len(clicks))
            if first:
                learning.solve(first)
                released.append((clicks[first - 1].time_ms, learning.released))
            models = {delay: _in_force(released, clicks[first].time_ms - DELAYS_MS[delay]) for delay in delays}
            products = {delay: model.product_vectors(self._catalogue) for delay, model in models.items()}
            for place in range(first, last):
                self._predict(place, counts, chosen, models, products, ranks)
            while len(released) > 1 and released[1][0] < clicks[last - 1].time_ms - max(DELAYS_MS.values()):
                released.popleft()
        self._tell("clicks", len(clicks), len(clicks))
        found = {key: np.array(values) for key, values in ranks.items()}
        return self._report(
            found, delays, cpu_s=time.process_time() - began_s, learned=learning.learned, last=released[-1][1]
        )

    def _learning(self) -> Learning:
        """What learns: from lists if there are any, else from clicks alone."""
        log = self._log
        if self._lists is None:
            return ChoiceLearner(log, self._queries, self._query_vectors, self._query_keys, self._catalogue, self._seed)
        encode = self._vector_of.__getitem__
        return ListLearner(self._lists, log, self._typed, self._catalogue, self._words, encode)

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
        chosen: dict[str, Chosen] | None,
        models: Mapping[str, Model],
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
            model = models[delay]
            vector = model.query_vectors(self._query_vectors[[query]])[0]
            scores = asked.mixed(NATS_PER_COSINE * (products[delay] @ vector), model.mix)
            if chosen is None:
                scores = model.remembered(query, scores)
            else:
                chosen[delay].advance(self._log.clicks, self._queries, click.time_ms - DELAYS_MS[delay], place)
                scores = chosen[delay].added(query, scores, click.time_ms)
            scores = asked.pinned(scores)
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
        last: Model,
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
        low, high = _interval(gain[second], self._queries[second], rng)
        judged = int(second.sum()), len(np.unique(self._queries[second]))
        mean = float(gain[second].mean())
        return {
            "clicks": len(log.clicks),
            "queries": len(self._typed),
            "products": len(log.products),
            "skipped": dict(log.skipped),
            "times": log.times,
            "lists": None if self._lists is None else len(self._lists),
            "settings": {
                "half_life_days": HALF_LIFE_DAYS, "k": self._k, "seed": self._seed,
                "mix": last.mix.named(),
                "prior": None if learned is None else {**learned.prior._asdict(), "gain": learned.gain.mean},
            },
            "methods": figures(whole),
            "halves": {"first": figures(~second), "second": figures(second)},
            "windows": self._windows(ranks, delays[0]),
            "curve": self._curve(ranks, delays[0]),
            "verdict": {"gain": mean, "low": low, "high": high, "words": verdict(mean, low, high, *judged)},
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
            f"mrr@{self._k}_interval": list(_interval(reciprocal, self._queries[part], rng)),
        }

    def _windows(self, ranks: dict[tuple[str, str], np.ndarray], delay: str) -> list[dict[str, Any]]:
        times = np.array([click.time_ms for click in self._log.clicks])
        window = ((times - times[0]) // (WINDOW_DAYS * DAY_MS)).astype(int)
        found = []
        for number in np.unique(window).tolist():
            part, begin_ms = window == number, times[0] + number * WINDOW_DAYS * DAY_MS
            means = {name: float(self._reciprocal(ranks[name, delay][part]).mean()) for name in METHODS}
            found.append(
                {"from": day_of(begin_ms), "to": day_of(begin_ms + WINDOW_DAYS * DAY_MS), "n": int(part.sum()), **means}
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


def verdict(gain: float, low: float, high: float, clicks: int, queries: int) -> str:
    """Say in one sentence whether to install.

    Args:
        gain: over counting clicks, on the second half of a log.
        low: of its interval.
        high: likewise.
        clicks: of the second half; few that are alike have an interval of no width.
        queries: that they are for; likewise.
    """
    if clicks < FEWEST_JUDGED:
        return f"No: {clicks:,} clicks in the second half of this log are too few to tell; {FEWEST_JUDGED} may do."
    if queries < FEWEST_QUERIES:
        return f"No: {queries} queries in the second half of this log are too few to tell; {FEWEST_QUERIES} may do."
    told = f"{gain:+.3f} in MRR over counting clicks on a hybrid search ({low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"Yes: on the second half of this log Millrace would have gained {told}."
    if high < 0:
        return f"No: on the second half of this log Millrace would have lost, {told}; counting is better here."
    return f"No: on the second half of this log no gain is certain, {told}; do not install it for these clicks alone."


def _in_force(released: Sequence[tuple[float, Model]], at_ms: float) -> Model:
    return next(model for since_ms, model in reversed(released) if since_ms <= at_ms)


def _rank(scores: np.ndarray, product: int) -> float:
    """The rank of a product; equal scores share the mean of their ranks."""
    own = float(scores[product])
    return 1 + float((scores > own).sum()) + (float((scores == own).sum()) - 1) / 2


def _interval(values: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A bootstrap's 95 % percentile interval of the mean, over queries: clicks for one of them are much alike.

    Args:
        values: of clicks, (N,).
        queries: numbers of their queries, (N,).
        rng: draws queries.
    """
    if not len(values):
        return 0.0, 0.0
    _, clusters = np.unique(queries, return_inverse=True)
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    draws = (rng.integers(0, len(sums), len(sums)) for _ in range(REPLICATES))
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in draws]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def day_of(time_ms: float) -> str:
    """The day of a moment, UTC."""
    return utc(time_ms)[:10]

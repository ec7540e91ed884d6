"""`millrace simulate`: how much a world's clicks teach the preference model, without servers.

A closed loop: a query is drawn by popularity, the model in force ranks the whole catalogue, the first ten products are
shown, the shopper clicks, the pairs stage judges the list, the evidence is counted; now and then the model is solved
and redeployed. Judgments decide what shoppers click and are read for scoring; the learner sees what it sees of a shop.
"""

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from contracts.catalog import Product
from indexer.search.exploration import MOST_EXPLORED
from millrace.output import Tell
from simulator import evaluation
from simulator.base_vectors import encode_catalogue
from simulator.judged_lists import JudgedList, JudgedLists
from simulator.one_pass import OnePass
from simulator.shop.world import SPLITS, Query, World
from simulator.shown_lists import SHOWN, Noise, Ranking, ShownLists, SimulateOptions
from simulator.words import Words
from towers.model import NATS_PER_COSINE
from towers.release_files import Encoder
from trainer.preference.debiasing import NAIVE, Debias, Exchanges
from trainer.preference.evidence import EvidenceTable
from trainer.preference.learner import PreferenceLearner
from trainer.preference.model import Weights

FIXED_BY: Final = 2.0
"""What distinguishes a fixed ranker from the untrained model, in standard deviations of that one's scores."""
DEBIAS: Final[Mapping[str, Debias]] = {"ratio": "on", "one": "off", "auto": "auto"}


class Simulation:
    """One world with its base vectors.

    Args:
        world: the world.
        encoder: the base encoder.
        cache: folder in which base vectors are kept; None keeps none.
        tell: told how it goes.
    """

    def __init__(self, world: World, encoder: Encoder, *, cache: Path | None, tell: Tell) -> None:
        self.world = world
        self._tell = tell
        products = [Product.model_validate(dict(message)) for message in world.products]
        self._product_ids = [product.product_id for product in products]
        self._products = [(product.product_id, product.parent_id) for product in products]
        self._row_of = {one: row for row, one in enumerate(self._product_ids)}
        typed = [query.query for query in world.queries]
        catalogue, self._query_vectors = encode_catalogue(products, typed, encoder, cache=cache, tell=tell)
        self._words = words = Words(products)
        self._catalogue = replace(catalogue, matches=lambda cells: words.matches.of(cells, typed, words.of_products))
        self._number_of = {query.query_id: number for number, query in enumerate(world.queries)}

    def run(self, options: SimulateOptions) -> dict[str, Any]:
        """Run the loop and return the report (docs/quickstart.md, "Would it help my shop?")."""
        began_s = time.process_time()
        learner = PreferenceLearner(loss=options.loss, debias=DEBIAS[options.weights])
        weighed = options.weights != "one"
        heads = OnePass(self._query_vectors, self._catalogue.vectors, seed=options.seed, weighed=weighed)
        told = _Told(heads if options.learner == "one-pass" else None)
        solved = weights = Weights.untrained(self._catalogue)
        ranking = self._ranking(weights)
        shown = ShownLists(self.world, options, products=self._products, numbers=self._number_of)
        typed = [query.query for query in self.world.queries]
        stage = JudgedLists(options.filters, options.look_ahead, queries=typed, row_of=self._row_of)
        before, fixed = self._scores(ranking), self._fixed(ranking, options, shown)
        curve = [self._point(0, before)]
        clicks, lost, after = 0, 0.0, before
        for first in range(0, options.lists, options.redeploy):
            self._tell("lists", first, options.lists)
            count = min(options.redeploy, options.lists - first)
            noise = self._noise(weights, options, shown.rng)
            for place in range(first, first + count):
                listed = shown.next(fixed or ranking, noise)
                clicks += sum(bool(slot.get("clicked")) for slot in listed.slots)
                lost += listed.lost
                judged = stage.take(listed)
                if place + 1 == options.lists:
                    judged += stage.finish()
                told.add(judged)
                if options.learner == "preference" and learner.prior_due(told.table.lists):
                    self._learn(learner, told.table, told.exchanges)
            if options.learner == "preference":
                cells = told.table.cells(debiasing=learner.strength)
                fit = learner.solve(cells, self._query_vectors, self._catalogue, start=solved)
                solved, weights = fit.weights, fit.remembering()
            elif options.learner == "one-pass":
                weights = heads.weights(self._catalogue)
            if options.learner != "none":
                ranking = self._ranking(weights)
            after = self._scores(ranking)
            curve.append(self._point(first + count, after))
        self._tell("lists", options.lists, options.lists)
        return {
            "world": self.world.name,
            "seed": options.seed,
            "lists": options.lists,
            "clicks": clicks,
            "learner": options.learner,
            "settings": {**asdict(options), **_learned(learner, weights)},
            "quality": {name: evaluation.comparison(before[name], after[name], seed=options.seed) for name in SPLITS},
            "by_class": {name: evaluation.by_class(before[name], after[name], seed=options.seed) for name in SPLITS},
            "curve": curve,
            "debiasing": learner.debiasing(),
            "lists_by_outcome": stage.outcomes(),
            "pushed": self._pushed(shown.target, ranking, told.honest, learner),
            "twin": self._twin(told.table, learner, options, after) if options.twin else None,
            "exploration": {
                "by": options.explore_by, "nats": options.explore, "utility_lost": lost / max(options.lists, 1)
            },
            "cpu_s": round(time.process_time() - began_s, 2),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }  # fmt: skip

    def _learn(self, learner: PreferenceLearner, table: EvidenceTable, exchanges: Exchanges) -> None:
        learner.learn(
            lambda strength: table.cells(debiasing=strength), exchanges.rows(),
            self._query_vectors, self._catalogue, table.lists,
        )  # fmt: skip

    def _twin(
        self,
        table: EvidenceTable,
        learner: PreferenceLearner,
        options: SimulateOptions,
        ours: Mapping[str, list[evaluation.QueryScore]],
    ) -> dict[str, Any]:
        """What the same lists teach when showings are weighed otherwise, and by how much that is worse."""
        twin = PreferenceLearner(loss=options.loss, debias="on" if learner.strength == NAIVE else "off")
        self._learn(twin, table, Exchanges())
        cells = table.cells(debiasing=twin.strength)
        fit = twin.solve(cells, self._query_vectors, self._catalogue)
        theirs = self._scores(self._ranking(fit.remembering()))
        quality = {name: evaluation.comparison(theirs[name], ours[name], seed=options.seed) for name in SPLITS}
        return {"strength": twin.strength, "quality": quality}

    def _pushed(
        self, target: int | None, ranking: Ranking, honest: EvidenceTable, learner: PreferenceLearner
    ) -> dict[str, Any] | None:
        """How many ranks those who click it everywhere moved a product up, over the queries that find it."""
        if target is None:
            return None
        fit = learner.solve(honest.cells(debiasing=learner.strength), self._query_vectors, self._catalogue)
        fair = self._ranking(fit.remembering())
        moved = [
            _rank(fair[number][0], target) - _rank(rows, target)
            for number, (rows, _) in ranking.items()
            if target in rows[:SHOWN] or target in fair[number][0][:SHOWN]
        ]
        by = {"most": max(moved, default=0), "mean": float(np.mean(moved or [0])), "queries": len(moved)}
        return {"product": self._product_ids[target], **by}

    def _fixed(self, ranking: Ranking, options: SimulateOptions, lists: ShownLists) -> Ranking | None:
        """What another engine, which learns nothing, ranks first for the queries that are typed; None if there is none.

        Its scores are standardised; what spoils or helps them has twice their standard deviation.
        """
        if options.ranker == "own":
            return None
        rng = np.random.default_rng(options.seed)
        found = {}
        for number in lists.queries.tolist():
            rows, scores = ranking[number]
            added = np.zeros(len(rows))
            if options.ranker == "weak":
                added = rng.standard_normal(len(rows))
            elif options.ranker == "strong":
                added = _standard(lists.attractions(number, rows))
            scores = _standard(scores) + FIXED_BY * added
            order = np.argsort(-scores, kind="stable")
            found[number] = (rows[order], scores[order])
        return found

    def _noise(self, weights: Weights, options: SimulateOptions, rng: np.random.Generator) -> Noise:
        """What exploration adds to the scores of a list, as search does (indexer/search/exploration.py)."""
        if options.explore_by == "noise":
            return lambda rows: options.explore * rng.standard_normal(len(rows))
        own = weights.own_deviations(len(self._product_ids))
        return lambda rows: np.asarray(options.explore * own[rows] * rng.standard_normal(len(rows)))

    def nats(self, weights: Weights) -> Iterator[np.ndarray]:
        """What weights say of the whole catalogue for each query of the world, in nats, (P,) each."""
        products = weights.product_vectors(self._catalogue)
        for number, query in enumerate(weights.query_vectors(self._query_vectors)):
            asked = self._words.ask(self.world.queries[number].query)
            yield weights.remembered(number, asked.added(NATS_PER_COSINE * (products @ query), weights.mix))

    def _ranking(self, weights: Weights) -> Ranking:
        """What ranks first for each query of the world."""
        found = {}
        for number, scores in enumerate(self.nats(weights)):
            most = min(MOST_EXPLORED, len(scores))
            rows = np.argpartition(-scores, most - 1)[:most]
            rows = rows[np.lexsort((rows, -scores[rows]))]
            found[number] = (rows, scores[rows])
        return found

    def _scores(self, ranking: Ranking) -> dict[str, list[evaluation.QueryScore]]:
        """How good the lists of all queries are, by split."""
        return {name: list(self._score(ranking, self.world.of_split(split))) for name, split in SPLITS.items()}

    def _score(self, ranking: Ranking, queries: Sequence[Query]) -> Iterator[evaluation.QueryScore]:
        for query in queries:
            rows, _ = ranking[self.number(query)]
            ranked = [self._product_ids[row] for row in rows[:SHOWN]]
            grades = self.world.grades(query.query_id)
            yield evaluation.score(query.query_id, ranked, query_class=query.query_class, grades=grades)

    def _point(self, lists: int, scores: Mapping[str, Sequence[evaluation.QueryScore]]) -> dict[str, Any]:
        return {"lists": lists, **{name: evaluation.means(of)["ndcg@10"] for name, of in scores.items()}}

    def number(self, query: Query) -> int:
        """The row of a query among the query vectors."""
        return self._number_of[query.query_id]


def _rank(rows: np.ndarray, product: int) -> int:
    """The rank of a product, 1-based; one more than there are if it is not found."""
    found = np.flatnonzero(rows == product)
    return int(found[0]) + 1 if len(found) else len(rows) + 1


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-9))


class _Told:
    """What judged lists tell.

    Args:
        heads: learn beside it; None if they are not compared.
    """

    def __init__(self, heads: OnePass | None) -> None:
        self.table, self.exchanges, self._heads = EvidenceTable(), Exchanges(), heads
        self.honest = EvidenceTable()
        """Of the lists of usual shoppers alone."""

    def add(self, judged: Sequence[JudgedList]) -> None:
        for listed, slots, exchanged in judged:
            self.table.add(listed.number, slots)
            if listed.is_usual:
                self.honest.add(listed.number, slots)
            if self._heads is not None:
                self._heads.add(listed.number, slots)
            for upper, lower in exchanged:
                self.exchanges.add(listed.number, (upper.product, lower.product), (upper.click, lower.click))


def _learned(learner: PreferenceLearner, weights: Weights) -> dict[str, Any]:
    return {"prior": _prior(learner), "mix": weights.mix.named(), "text_nats": weights.text}


def _prior(learner: PreferenceLearner) -> dict[str, Any] | None:
    """What was learned of the prior, and what it is worth on queries left out."""
    learned = learner.learned
    if learned is None:
        return None
    return {
        **learned.prior._asdict(),
        "gain": learned.gain.mean,
        "error": learned.gain.error,
        "released": learned.helps,
    }

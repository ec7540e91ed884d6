"""`millrace simulate`: how much a world's clicks teach the preference model, without servers.

A closed loop: a query is drawn by popularity, the model in force ranks the whole catalogue, the first ten products are
shown, the shopper clicks, the evidence is counted; now and then the model is solved and redeployed. Judgments decide
what shoppers click and are read for scoring; the learner sees lists and clicks alone.
"""

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from contracts.catalog import Product
from contracts.outcomes import VALUE, Grade, examination, first_swapped, grade, is_bounce
from contracts.structs import JoinedSlot
from indexer.search.exploration import MOST_EXPLORED, swapped
from millrace.output import Tell
from simulator import evaluation
from simulator.base_vectors import encode_catalogue
from simulator.one_pass import OnePass
from simulator.shop.click_models import TRUST, ClickModel, Habits, browse
from simulator.shop.shoppers import Action, Shoppers
from simulator.shop.world import Query, Split, World
from simulator.words import Words
from towers.model import NATS_PER_COSINE
from towers.release_files import Encoder
from trainer.preference.debiasing import NAIVE, Debias, Exchanges
from trainer.preference.evidence import EvidenceTable, Shown
from trainer.preference.learner import PreferenceLearner
from trainer.preference.losses import LossName
from trainer.preference.model import Weights

SHOWN: Final = 10
FIXED_BY: Final = 2.0
"""What distinguishes a fixed ranker from the untrained model, in standard deviations of that one's scores."""
DEBIAS: Final[Mapping[str, Debias]] = {"ratio": "on", "one": "off", "auto": "auto"}
SPLITS: Final[Mapping[str, Split]] = {"seen": "train", "unseen": "test"}


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """One run.

    Args:
        lists: how many are shown.
        seed: of queries, shoppers and noise.
        redeploy: lists after which the model is solved and put in force.
        shoppers: `simple` ones click on what they looked at by attraction; `shop` ones are the shop simulator's.
        bias: whether simple shoppers look less at lower positions.
        click_model: how they read a list; `cascade` and `trust` are those of `simulator.shop.click_models`.
        ranker: whose lists they see: those of the model in force (`own`), or always those of the untrained model
            (`base`), of that one spoiled by noise (`weak`), or of one that knows half of what they like (`strong`).
        swaps: share of lists whose neighbours are exchanged at random, as search does.
        weights: `ratio` undoes position bias by 1/position, `one` does not, `auto` is what exchanged neighbours prove.
        twin: whether the same lists are also solved without weights, or with them if there are none in force.
        explore: standard deviation of noise on the scores of shown lists, in nats; with draws, in deviations of each
            product's own quality.
        explore_by: `noise` is alike for all products; `draws` of their qualities move only what is uncertain.
        learner: `preference`; `one-pass` for the heads that it replaced (`simulator.one_pass`); `none` for the
            untrained model.
        loss: what is solved.
    """

    lists: int = 12_000
    seed: int = 1
    redeploy: int = 500
    shoppers: Literal["simple", "shop"] = "simple"
    bias: Literal["position", "none"] = "position"
    click_model: ClickModel = "position"
    ranker: Literal["own", "base", "weak", "strong"] = "own"
    swaps: float = 0.0
    weights: Literal["ratio", "one", "auto"] = "ratio"
    twin: bool = False
    explore: float = 0.0
    explore_by: Literal["noise", "draws"] = "noise"
    learner: Literal["preference", "one-pass", "none"] = "preference"
    loss: LossName = "softmax"


Ranking = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""By query: the rows of the products that rank first, best first, and their scores in nats."""
Noise = Callable[[np.ndarray], np.ndarray]
"""Rows of products -> what is added to their scores in one list."""


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
        typed = [query.query for query in world.queries]
        catalogue, self._query_vectors = encode_catalogue(products, typed, encoder, cache=cache, tell=tell)
        self._words = words = Words(products)
        self._catalogue = replace(catalogue, matches=lambda cells: words.matches.of(cells, typed, words.of_products))
        self._number_of = {query.query_id: number for number, query in enumerate(world.queries)}

    def run(self, options: SimulateOptions) -> dict[str, Any]:
        """Run the loop and return the report (docs/quickstart.md, "Would it help my shop?")."""
        began_s = time.process_time()
        table, exchanges = EvidenceTable(), Exchanges()
        learner = PreferenceLearner(loss=options.loss, debias=DEBIAS[options.weights])
        heads = OnePass(
            self._query_vectors, self._catalogue.vectors, seed=options.seed, weighed=options.weights != "one"
        )
        solved = weights = Weights.untrained(self._catalogue)
        ranking = self._ranking(weights)
        shown = _Lists(self, options)
        before, fixed = self._scores(ranking), self._fixed(ranking, options, shown)
        curve = [self._point(0, before)]
        clicks, lost, after = 0, 0.0, before
        for first in range(0, options.lists, options.redeploy):
            self._tell("lists", first, options.lists)
            count = min(options.redeploy, options.lists - first)
            noise = self._noise(weights, options, shown.rng)
            for place in range(first, first + count):
                number, slots, utility_lost = shown.next(fixed or ranking, noise)
                clicks += sum(slot.click > 0 for slot in slots)
                lost += utility_lost
                table.add(number, slots)
                if options.learner == "one-pass":
                    heads.add(number, slots)
                for upper, lower in shown.exchanged(slots):
                    exchanges.add(number, (upper.product, lower.product), (upper.click, lower.click))
                if options.learner == "preference" and learner.prior_due(place + 1):
                    self._learn(learner, table, exchanges)
            if options.learner == "preference":
                cells = table.cells(debiasing=learner.strength)
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
            "twin": self._twin(table, learner, options, after) if options.twin else None,
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

    def _fixed(self, ranking: Ranking, options: SimulateOptions, lists: "_Lists") -> Ranking | None:
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

    def _ranking(self, weights: Weights) -> Ranking:
        """What ranks first for each query of the world."""
        products = weights.product_vectors(self._catalogue)
        queries = weights.query_vectors(self._query_vectors)
        most = min(MOST_EXPLORED, len(products))
        found = {}
        for number, query in enumerate(queries):
            asked = self._words.ask(self.world.queries[number].query)
            scores = asked.added(NATS_PER_COSINE * (products @ query), weights.mix)
            scores = weights.remembered(number, scores)
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

    def product_id(self, row: int) -> str:
        """The id of the product in a row of the catalogue."""
        return self._product_ids[row]

    def number(self, query: Query) -> int:
        """The row of a query among the query vectors."""
        return self._number_of[query.query_id]


class _Lists:
    """Who searches for what, and what they click on; one list after the other."""

    def __init__(self, simulation: Simulation, options: SimulateOptions) -> None:
        self._simulation, self._options = simulation, options
        typed = simulation.world.of_split("train")
        self.queries = np.array([simulation.number(query) for query in typed], dtype=np.int64)
        self._query_of = {simulation.number(query): query for query in typed}
        self.rng = np.random.default_rng(options.seed)
        popularity = np.array([query.popularity for query in typed])
        self._popularity = popularity / popularity.sum() if popularity.sum() > 0 else None
        self._examined = self._looks = np.array([examination(position) for position in range(1, SHOWN + 1)])
        """What the learner takes for the chance of a look, and what it is for simple shoppers."""
        if options.bias == "none":
            self._looks = np.full(SHOWN, self._looks.mean())
        self._habits = Habits(options.click_model, trust=TRUST[options.click_model])
        self._first_swapped: int | None = None
        """Of the last list the first position that was exchanged with chance 1/2; None if none was."""
        self._shoppers = Shoppers(simulation.world, options.seed)
        self._visit, self._step = self._shoppers.visit(0), 0
        self._typed: Query | None = self._visit.first

    def next(self, ranking: Ranking, noise: Noise) -> tuple[int, list[Shown], float]:
        """The next list: its query, its slots with their evidence, and what exploration cost in mean attraction."""
        if self._options.shoppers == "simple":
            number = int(self.rng.choice(self.queries, p=self._popularity))
            shown, lost = self._shown(number, ranking, noise)
            looks = self._looks[: len(shown)]
            clicks = self._clicked(self.attractions(number, shown), looks)
        else:
            query = self._next_typed()
            number = self._simulation.number(query)
            shown, lost = self._shown(number, ranking, noise)
            returned = [self._simulation.product_id(row) for row in shown]
            reaction = self._shoppers.react(self._visit, self._step, query=query, returned=returned)
            self._typed, self._step = reaction.follow_up, self._step + 1
            clicks, looks = _worth(reaction.actions, returned), self._looks[: len(shown)]
        looks = self._examined[: len(shown)]
        slots = [Shown(*slot) for slot in zip(shown.tolist(), looks.tolist(), clicks.tolist(), strict=True)]
        return number, slots, lost

    def _shown(self, number: int, ranking: Ranking, noise: Noise) -> tuple[np.ndarray, float]:
        rows, scores = ranking[number]
        self._first_swapped = None
        if self._options.swaps and self.rng.random() < self._options.swaps:
            seed = int(self.rng.integers(2**31))
            self._first_swapped = first_swapped(seed)
            return np.array(swapped([rows[:SHOWN].tolist()], seed)[0]), 0.0
        if not self._options.explore:
            return rows[:SHOWN], 0.0
        noisy = scores + noise(rows)
        shown = rows[np.argsort(-noisy, kind="stable")[:SHOWN]]
        lost = self.attractions(number, rows[:SHOWN]).mean() - self.attractions(number, shown).mean()
        return shown, float(lost)

    def exchanged(self, slots: Sequence[Shown]) -> list[tuple[Shown, Shown]]:
        """The neighbours of the last list that were exchanged with chance 1/2."""
        if self._first_swapped is None:
            return []
        first = self._first_swapped - 1
        return list(zip(slots[first::2], slots[first + 1 :: 2], strict=False))

    def _clicked(self, attractions: np.ndarray, looks: np.ndarray) -> np.ndarray:
        """What a simple shopper clicks, 1 or 0 by slot."""
        if self._options.click_model == "position":
            return np.asarray(self.rng.random(len(looks)) < attractions * looks, dtype=float)
        _, clicked = browse(attractions.tolist(), self.rng.random((len(looks), 3)).tolist(), habits=self._habits)
        return np.asarray(np.isin(np.arange(len(looks)), clicked), dtype=float)

    def attractions(self, number: int, rows: np.ndarray) -> np.ndarray:
        query_id, world = self._query_of[number].query_id, self._simulation.world
        judged = [world.judgment(query_id, self._simulation.product_id(row)) for row in rows]
        return np.array([judgment.click_probability() for judgment in judged])

    def _next_typed(self) -> Query:
        """What the shopper types next, or the next shopper if this one has left."""
        if self._typed is None:
            self._visit, self._step = self._shoppers.visit(self._visit.number + 1), 0
            self._typed = self._visit.first
        return self._typed


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-9))


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


def _worth(actions: Sequence[Action], returned: Sequence[str]) -> np.ndarray:
    """What the shopper's choices are worth by slot, graded as the pairs are; a bounce is worth nothing."""
    slots: list[dict[str, Any]] = [{"product_id": one, "position": k} for k, one in enumerate(returned, start=1)]
    for action in actions:
        slot = slots[action.position - 1]
        if action.kind == "click":
            slot["clicked"] = True
        elif action.kind == "dwell":
            slot["dwell_ms"] = max(action.dwell_ms, slot.get("dwell_ms", 0))
        elif action.kind in {"cart", "purchase"}:
            slot[f"{action.kind}_quantity"] = 1
    return np.array([_value(JoinedSlot(**slot)) for slot in slots])


def _value(slot: JoinedSlot) -> float:
    own = grade(slot)
    return 0.0 if own is Grade.SKIP or is_bounce(slot) else VALUE[own]

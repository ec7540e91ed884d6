"""From evidence to towers: what the trainer knows between releases, and what it computes of it at a cut.

Towers are a function of the evidence at the cut, the catalogue, the prior in force, and the parent release, from which
the solver begins. So nothing of an earlier solve has to be kept, and any release can be computed again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from contracts.catalog import PointPayload
from towers.features import FeatureSpace, matched
from towers.lexical import Sparse, word_vector
from towers.memory import QueryMemory, points_of
from towers.model import NATS_PER_COSINE, Mix, ProductTower, QueryTower, product_vectors
from towers.word_index import TermCounts, WordIndex
from trainer.preference.debiasing import Debias
from trainer.preference.evidence import Cells
from trainer.preference.learner import PreferenceLearner
from trainer.preference.losses import LossName
from trainer.preference.matches import Matches, WordMatches
from trainer.preference.model import QUALITY_CAP, Catalogue, Prior, Weights, rates_of
from trainer.records import TEXT, Evidence, under
from trainer.state import Progress

DAY_MS: Final = 86_400_000
MEMORY_QUERIES: Final = 5_000
"""Queries with a memory in a release: the most clicked ones; 1.5 MB if each moves as many products as it may."""
CHANGED_SHARE: Final = 0.05
"""Share of its products, those before and now together, by which the catalogue has to change until its features and
words are counted anew."""
SKETCHED: Final = 4096
"""Products of which the change of a larger catalogue is told, by their digests."""
SAMPLE_QUERIES: Final = 256
SAMPLE_PRODUCTS: Final = 4096
NOTHING: Final = np.zeros(0, dtype=np.int64), np.zeros(0)
"""What a query without a memory remembers."""


class Towers(NamedTuple):
    """Both sides of the model."""

    query: QueryTower
    product: ProductTower

    @classmethod
    def untrained(cls, dim: int) -> "Towers":
        """The text alone decides."""
        return cls(QueryTower.untrained(dim), ProductTower.untrained())


class Products(Protocol):
    """The catalogue, as far as it has been read."""

    def digests(self) -> np.ndarray:
        """A number for each product with its features and words, in any order, (P,) uint64."""

    def feature_space(self) -> FeatureSpace:
        """Count the features of the whole catalogue."""

    def word_index(self) -> WordIndex:
        """Index the words of the whole catalogue."""

    def look(self, product_ids: Sequence[str]) -> "Looked":
        """What is known of products."""


class Looked(NamedTuple):
    """What is known of N products.

    Args:
        known: whether each is in the catalogue, (N,) of bool; of one that is not, the rest is 0 or empty.
        vectors: base vectors, (N, D) float32.
        features: keys of the features of each.
        words: of each.
    """

    known: np.ndarray
    vectors: np.ndarray
    features: list[np.ndarray]
    words: list[Sparse]


class Sample(NamedTuple):
    """Queries and products that a release is judged on."""

    texts: Sequence[str]
    query_vectors: np.ndarray
    product_ids: Sequence[str]
    vectors: np.ndarray
    features: Sequence[np.ndarray]
    matches: Matches

    def scores(self, towers: Towers) -> np.ndarray:
        """What towers say of each query and product, (queries, products)."""
        quality = towers.product.quality(self.product_ids, self.features)
        products = product_vectors(self.vectors, quality)
        rates = self.matches.strengths @ rates_of(towers.query.mix)
        added = rates[:, None] * self.matches.shares
        added += towers.query.memory.nats_of_products(self.texts, self.product_ids)
        return np.asarray(towers.query.vectors(self.query_vectors) @ products.T + added / NATS_PER_COSINE)


class Solved(NamedTuple):
    """What a cut came to."""

    towers: Towers
    iterations: int
    converged: bool
    rules_asked: float
    """Weight that pairs of rules ask for, as a share of that of the clicks; 0 without clicks."""
    sought: int
    """Products of which only the memory of their queries learns."""


class Learner:
    """What the trainer knows: evidence, prior, which features count, and how far it has come.

    Args:
        dim: width of base vectors.
        products: the catalogue.
        encode: gives the base vector (D,) of a text, which depends on that text only.
        half_life_days: after which evidence weighs half as much.
        loss: what is solved.
        debias: whether showings are weighed by their examination.
    """

    def __init__(
        self,
        dim: int,
        *,
        products: Products,
        encode: Callable[[str], np.ndarray],
        half_life_days: float,
        loss: LossName = "softmax",
        debias: Debias = "auto",
    ) -> None:
        self.half_life_days = half_life_days
        self._dim = dim
        self._options: dict[str, Any] = {"loss": loss, "debias": debias}
        self.products, self.encode = products, encode
        self.progress = Progress()
        self.forget()

    def forget(self) -> None:
        """Begin again without any evidence."""
        self.evidence = Evidence(self._dim, half_life_ms=self.half_life_days * DAY_MS)
        self.preference = PreferenceLearner(**self._options)
        self._space = FeatureSpace.of([])
        self._sketch = np.zeros(0, dtype=np.uint64)
        """Of the catalogue when its features and words were counted."""
        nothing = WordIndex([])
        self.words = WordMatches(self.word_index, nothing.counts)
        self._indexed = 0, nothing
        """The catalogue's words, and the sum of the digests of what they are of."""

    @property
    def has_catalogue(self) -> bool:
        """Whether any product has a vector: else a prior and a release would say that nothing was learned."""
        return len(self.products.digests()) > 0

    @property
    def prior_due(self) -> bool:
        """Whether the prior is to be learned now: that depends on the lists alone, not on when they arrived."""
        return self.preference.prior_due(self.evidence.table.lists) and self.has_catalogue

    def learn_prior(self) -> None:
        """Learn the prior anew, and how strongly showings are weighed."""
        _, catalogue, known = self._problem()
        evidence = self.evidence
        self.preference.learn(
            lambda strength: evidence.cells(known, debiasing=strength),
            evidence.exchanges.rows(np.asarray(evidence.query_vectors.any(axis=1)), known),
            evidence.query_vectors,
            catalogue,
            float(evidence.table.lists),
            query_keys=evidence.queries.keys(),
        )

    def solve(self, parent: Towers) -> Solved:
        """Compute the towers of everything that was counted, beginning at those of another release."""
        cells, catalogue, known = self._problem()
        rules = self.evidence.rule_cells(known)
        recent = self.evidence.cells(known, debiasing=self.preference.strength, lately=True)
        start = self._start(parent)
        fit = self.preference.solve(cells, self.evidence.query_vectors, catalogue, rules=rules, start=start)
        weights = fit.remembering(recent, among=self._memorable(cells))
        towers = Towers(self._query_tower(weights), self._product_tower(weights))
        clicks = float(cells.clicks.sum())
        asked = float(rules.clicks.sum()) / clicks if clicks else 0.0
        return Solved(towers, fit.iterations, fit.converged, asked, len(cells.sought))

    def prior(self) -> dict[str, float]:
        """The prior in force and how evidence fades, as manifests name them."""
        return {**self._prior._asdict(), "half_life_days": self.half_life_days}

    def gain(self) -> tuple[float | None, float | None]:
        """What the prior gained on left-out queries, in nats per click, and its standard error."""
        learned = self.preference.learned
        return (None, None) if learned is None else learned.gain

    def debiasing(self) -> dict[str, float]:
        """How strongly showings are weighed, and what exchanged neighbours say of it, as manifests name them."""
        return self.preference.debiasing()

    def sample(self) -> Sample:
        """The newest queries and products that have evidence."""
        queries = np.flatnonzero(self.evidence.query_vectors.any(axis=1))[-SAMPLE_QUERIES:]
        texts = [self.evidence.typed[number] for number in queries.tolist()]
        names = [name for name in self.evidence.products.texts if not name.startswith(TEXT)][-SAMPLE_PRODUCTS:]
        found = self.products.look(names)
        places = np.flatnonzero(found.known).tolist()
        return Sample(
            texts,
            self.evidence.query_vectors[queries].astype(np.float32),
            [names[place] for place in places],
            found.vectors[places],
            [found.features[place] for place in places],
            self.words.grid(texts, [found.words[place] for place in places]),
        )

    def largest_move(self, before: ProductTower, after: ProductTower) -> float:
        """By how many nats the quality of a product that has evidence differs at most."""
        names = self.evidence.products.texts
        features = self.products.look(names).features
        return float(np.abs(after.quality(names, features) - before.quality(names, features)).max(initial=0.0))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next cut depends on, besides catalogue and parent release."""
        return {
            **{f"evidence.{name}": array for name, array in self.evidence.state().items()},
            **{f"preference.{name}": array for name, array in self.preference.state().items()},
            "space.keys": self._space.keys,
            "space.idf": self._space.idf,
            "space.sketch": self._sketch,
            "words.products": np.array(self.words.counts.products, dtype=np.int64),
            "words.terms": self.words.counts.terms,
            "words.having": self.words.counts.having,
            "words.best": np.array([self.words.best.get(text, np.nan) for text in self.evidence.typed]),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where another one was when it gave its state; without what is of its base, if that was another."""
        none = {"query_vectors": np.zeros((0, self._dim), dtype=np.float16)}
        self.evidence = Evidence.from_state(none | under(state, "evidence."), half_life_ms=self.half_life_days * DAY_MS)
        self.preference = PreferenceLearner(**self._options)
        if preference := under(state, "preference."):
            self.preference = PreferenceLearner.from_state(preference, **self._options)
        self._space = FeatureSpace(state["space.keys"], state["space.idf"])
        self._sketch = state["space.sketch"]
        counts = TermCounts(int(state["words.products"]), state["words.terms"], state["words.having"])
        best = zip(self.evidence.typed, state["words.best"].tolist(), strict=True)
        self.words = WordMatches(self.word_index, counts, {text: nats for text, nats in best if not math.isnan(nats)})

    @property
    def _prior(self) -> Prior:
        learned = self.preference.learned
        return Prior() if learned is None else learned.prior

    def _problem(self) -> tuple[Cells, Catalogue, np.ndarray]:
        """The evidence of what has vectors, the products that it names, and which of those have one."""
        self.evidence.renumber()
        self.evidence.encode_queries(self.encode)
        sketch = sketch_of(self.products.digests())
        if changed_share(self._sketch, sketch) > CHANGED_SHARE:
            self._space, self._sketch = self.products.feature_space(), sketch
            self.words.recount(self.word_index().counts)
        names, texts = self.evidence.products.texts, self.evidence.typed
        known, vectors, features, words = self.products.look(names)
        is_text = np.array([name.startswith(TEXT) for name in names], dtype=bool)
        for number in np.flatnonzero(is_text).tolist():
            text = names[number].removeprefix(TEXT)
            known[number], vectors[number] = True, np.nan_to_num(self.encode(text))
            words[number] = word_vector("", PointPayload.model_construct(title=text))
        cells = self.evidence.cells(known, debiasing=self.preference.strength)
        asked = np.union1d(cells.queries, self.evidence.rules.used()[0])
        self.words.keep({texts[number] for number in asked.tolist()})
        catalogue = Catalogue(
            vectors,
            self._space.matrix(features),
            matches=lambda cells: self.words.of(cells, texts, words, is_text=is_text),
        )
        return cells, catalogue, known

    def word_index(self) -> WordIndex:
        """The words of the catalogue as it is now."""
        total = int(self.products.digests().sum())
        if total != self._indexed[0]:
            self._indexed = total, self.products.word_index()
        return self._indexed[1]

    def _start(self, parent: Towers) -> Weights:
        """A release's towers as weights over the present numbers."""
        query, product = parent
        words = _over(self._space.keys, product.features.keys, product.words)
        products, rows = matched(self.evidence.products.keys(), product.products)
        rates = np.append(rates_of(query.mix), query.text)
        return Weights(query.taste, query.common, query.mean_query, words, products, product.own[rows], rates=rates)

    def _memorable(self, cells: Cells) -> np.ndarray:
        """Which cells a release may remember, (N,): of the most clicked queries, and of products that can be shown."""
        keys, names = self.evidence.queries.keys(), self.evidence.products.texts
        most = np.zeros(len(cells.queries), dtype=bool)
        most[np.lexsort((keys[cells.queries], -cells.query_clicks))[:MEMORY_QUERIES]] = True
        is_product = np.array([not name.startswith(TEXT) for name in names], dtype=bool)
        return np.asarray(cells.spread(most) & is_product[cells.products])

    def _query_tower(self, weights: Weights) -> QueryTower:
        products, nats = (np.concatenate(one) for one in zip(*(NOTHING, *weights.memory.values()), strict=True))
        counts = [len(moved) for moved, _ in weights.memory.values()]
        keys = np.repeat(self.evidence.queries.keys()[np.array(list(weights.memory), dtype=np.int64)], counts)
        distinct, place = np.unique(products, return_inverse=True)
        points = points_of(self.evidence.products.texts[number] for number in distinct.tolist())[place]
        memory = QueryMemory.of_entries(keys, points, nats)
        # Without a taste the mean says nothing, and the tower is the one that it was.
        mean = weights.mean_query if weights.taste.any() else np.zeros_like(weights.mean_query)
        return QueryTower(weights.taste, weights.common, mean, memory, weights.mix, weights.text)

    def _product_tower(self, weights: Weights) -> ProductTower:
        names, keys = self.evidence.products.texts, self.evidence.products.keys()
        named = np.array([not names[number].startswith(TEXT) for number in weights.products.tolist()], dtype=bool)
        products, own = weights.products[named], weights.counted_own[named]
        order = np.argsort(keys[products])
        unseen_width = float(np.float32(1 / np.sqrt(self._prior.unheld().own)))
        known = weights.deviations is not None
        widths = weights.own_deviations(len(names)) if known else np.full(len(names), unseen_width)
        own_width = widths[products][order].astype(np.float32)
        return ProductTower(
            self._space, weights.words, keys[products][order], own[order], own_width, unseen_width, QUALITY_CAP
        )


def sketch_of(digests: np.ndarray) -> np.ndarray:
    """The least of a catalogue's digests, (P,): at most SKETCHED, rising.

    Source: Broder, On the Resemblance and Containment of Documents, SEQUENCES 1997.
    """
    least = np.partition(digests, SKETCHED)[:SKETCHED] if len(digests) > SKETCHED else digests  # sorts no catalogue
    return np.sort(least)


def changed_share(before: np.ndarray, now: np.ndarray) -> float:
    """Of all products of two catalogues, the share that is not the same in both; a changed product counts as two.

    Args:
        before: sketch of one, (at most SKETCHED,).
        now: of the other.

    >>> changed_share(np.array([1, 2, 3]), np.array([1, 2, 3, 4]))
    0.25
    """
    either = np.union1d(before, now)[:SKETCHED]
    return 1.0 - float(np.isin(either, np.intersect1d(before, now)).mean()) if len(either) else 0.0


def mixed(before: Towers, after: Towers, *, share: float) -> Towers:
    """The towers that lie on the way between two: a share of the second, the rest of the first."""
    if share == 1.0:
        return after
    rest = 1 - share
    old, new = before.query, after.query
    common = share * new.common + rest * (old.common + (new.mean_query - old.mean_query) @ old.taste)
    query = QueryTower(
        (share * new.taste + rest * old.taste).astype(np.float32), common.astype(np.float32), new.mean_query,
        old.memory.towards(new.memory, share=share), Mix.of(share * np.array(new.mix) + rest * np.array(old.mix)),
        share * new.text + rest * old.text,
    )  # fmt: skip
    was, is_now = before.product, after.product
    products = np.union1d(was.products, is_now.products)
    words = share * is_now.words + rest * _over(is_now.features.keys, was.features.keys, was.words)
    own = share * _over(products, is_now.products, is_now.own) + rest * _over(products, was.products, was.own)
    width = np.full(len(products), is_now.unseen_width, dtype=np.float32)
    places, rows = matched(products, is_now.products)
    width[places] = is_now.own_width[rows]
    product = ProductTower(
        is_now.features, words.astype(np.float32), products, own.astype(np.float32), width,
        is_now.unseen_width, is_now.cap,
    )  # fmt: skip
    return Towers(query, product)


def _over(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values by wanted key, 0 of a key that has none."""
    found = np.zeros((len(wanted), *values.shape[1:]), dtype=np.float32)
    places, rows = matched(wanted, keys)
    found[places] = values[rows]
    return found

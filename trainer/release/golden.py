"""A shop's own judged queries: how well towers rank their products, and how much worse a release may do it.

Measured is nDCG@10 over the judged products that the catalogue knows, ranked as search would rank them: by meaning, by
quality and by words. Pins of identifiers are left out: no release moves them. Queries whose products all have the same
grade are left out too, because every order of these is perfect.

Source: docs/papers.md, "Steps that are safe".
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import orjson

from contracts.golden import GoldenQuery
from contracts.releases import GoldenSet, SafetyCheck
from towers.model import ProductTower, QueryTower
from towers.word_index import TermCounts
from trainer.learner import Learner, Towers
from trainer.preference.matches import WordMatches
from trainer.release.asked import AskedProducts

GOLDEN_NDCG: Final = "golden_ndcg"
TOP: Final = 10
KEPT_RATIO: Final = 0.99
"""Share of the nDCG before that a release has to reach."""
LEAST_QUERIES: Final = 2
"""Of fewer nobody can tell how differently queries are moved."""


def ndcg(scores: np.ndarray, gains: np.ndarray, starts: np.ndarray, *, top: int = TOP) -> np.ndarray:
    """The nDCG of each query, (Q,); of products with the same score, the earlier one ranks first.

    Args:
        scores: by which products are ranked, (N,).
        gains: what each product is worth, 2^grade - 1; some of each query's above 0, (N,).
        starts: the first product of each query, rising from 0, (Q,).
        top: how many products count.

    >>> ndcg(np.array([0.1, 0.9, 0.5]), np.array([3.0, 0.0, 1.0]), np.array([0])).round(4).tolist()
    [0.5869]
    """
    sizes = np.diff(np.append(starts, len(scores)))
    query_of = np.repeat(np.arange(len(starts)), sizes)
    ranks = np.arange(len(scores)) - np.repeat(starts, sizes)
    discounts = np.where(ranks < top, 1 / np.log2(ranks + 2), 0.0)

    def summed(by: np.ndarray) -> np.ndarray:
        return np.add.reduceat(gains[np.lexsort((-by, query_of))] * discounts, starts)

    return np.asarray(summed(scores) / summed(gains))


class GoldenSample(NamedTuple):
    """What golden queries and the catalogue give to measure by.

    Args:
        golden: what it is of, for the manifest.
        asked: queries and the judged products that the catalogue knows, N judgments.
        gains: of each judgment, (N,).
    """

    golden: GoldenSet
    asked: AskedProducts
    gains: np.ndarray

    @property
    def texts(self) -> Sequence[str]:
        """The queries, (Q,)."""
        return self.asked.texts

    def quality(self, tower: ProductTower) -> np.ndarray:
        """The quality of each product, in nats, (P,)."""
        return self.asked.quality(tower)

    def ndcg(self, tower: QueryTower, quality: np.ndarray) -> np.ndarray:
        """The nDCG@10 of each query, (Q,).

        Args:
            tower: of the queries.
            quality: of each product, in nats, (P,).
        """
        return ndcg(self.asked.scores(tower, quality), self.gains, self.asked.cells.starts)


class GoldenBar(NamedTuple):
    """What a release has to reach.

    Args:
        sample: what is measured.
        before: the nDCG of each query untrained or in force, of whichever has the higher mean, (Q,).
        served: the mean of what is in force, which a release need not exceed: else nothing could mend a bad one.
        product: the product tower in force.
        quality: what it says of each product: most releases leave it as it is, (P,).
    """

    sample: GoldenSample
    before: np.ndarray
    served: float
    product: ProductTower
    quality: np.ndarray

    @classmethod
    def of(cls, sample: GoldenSample, in_force: Towers) -> "GoldenBar":
        """Measure what shoppers are served, and what they would be served if nothing had been learned."""
        quality = sample.quality(in_force.product)
        served = sample.ndcg(in_force.query, quality)
        untrained = sample.ndcg(QueryTower.untrained(sample.asked.query_vectors.shape[1]), np.zeros_like(quality))
        return cls(sample, max(served, untrained, key=np.mean), float(served.mean()), in_force.product, quality)

    def check(self, towers: Towers) -> SafetyCheck:
        """Measure a release.

        The limit is 1 % below what was before, and one standard error of the mean difference below that. With few
        queries 1 % is noise: harm to a single query, however large, moves the mean by its standard error and no more,
        so one query alone holds nothing back. Harm to most of them does, however few they are.
        """
        is_same = towers.product is self.product
        found = self.sample.ndcg(towers.query, self.quality if is_same else self.sample.quality(towers.product))
        error = np.std(found - self.before, ddof=1) / np.sqrt(len(found))
        value = float(found.mean())
        limit = min(float(KEPT_RATIO * self.before.mean() - error), self.served)
        return SafetyCheck(name=GOLDEN_NDCG, value=value, limit=limit, passed=value >= limit)


class GoldenCheck:
    """Finds in the catalogue what golden queries judge.

    What words match is computed anew when the queries or the catalogue's words changed, and of the two alone, so that
    it does not depend on when a trainer was started. Vectors are looked up each time: an edited description changes
    nothing else.

    Args:
        look: gives the golden queries as they are now, by key; another mapping each time that they changed.
    """

    def __init__(self, look: Callable[[], Mapping[str, GoldenQuery]]) -> None:
        self._look = look
        self._asked: _Asked | None = None
        self._found: tuple[_Asked, int, TermCounts, GoldenSample | None] | None = None

    def sample(self, learner: Learner) -> GoldenSample | None:
        """What releases are measured by now; None if the catalogue knows what is judged of too few queries."""
        queries = self._look()
        if not queries:
            return None
        if self._asked is None or self._asked.queries is not queries:
            self._asked = _Asked.of(queries, learner.encode)
        asked, words, counts = self._asked, int(learner.products.digests().sum()), learner.words.counts
        found = self._found
        if found is None or found[0] is not asked or found[1] != words or found[2] is not counts:
            found = self._found = asked, words, counts, _sample(asked, learner)
        sample = found[3]
        return sample and sample._replace(asked=sample.asked.looked_up(learner.products))


class _Asked(NamedTuple):
    """Golden queries as arrays, Q queries by key and N judgments, those of a query by product."""

    queries: Mapping[str, GoldenQuery]
    sha256: str
    """Of what decides anything: queries, products and grades."""
    texts: list[str]
    vectors: np.ndarray
    query_of: np.ndarray
    product_ids: np.ndarray
    """Of each judgment, (N,)."""
    gains: np.ndarray

    @classmethod
    def of(cls, queries: Mapping[str, GoldenQuery], encode: Callable[[str], np.ndarray]) -> "_Asked":
        told = [
            (query.query, sorted((one.product_id, one.grade) for one in query.judgments))
            for _, query in sorted(queries.items())
        ]
        texts = [text for text, _ in told]
        judged = [one for _, judgments in told for one in judgments]
        return cls(
            queries,
            hashlib.sha256(orjson.dumps(told)).hexdigest(),
            texts,
            np.nan_to_num(np.array([encode(text) for text in texts], dtype=np.float32)),
            np.repeat(np.arange(len(told)), [len(judgments) for _, judgments in told]),
            np.array([product_id for product_id, _ in judged], dtype=object),
            2.0 ** np.array([grade for _, grade in judged]) - 1,
        )


def _sample(asked: _Asked, learner: Learner) -> GoldenSample | None:
    known = learner.products.look(asked.product_ids.tolist()).known
    highest, lowest = np.zeros(len(asked.texts)), np.full(len(asked.texts), np.inf)
    np.maximum.at(highest, asked.query_of[known], asked.gains[known])
    np.minimum.at(lowest, asked.query_of[known], asked.gains[known])
    telling = highest > lowest
    if np.count_nonzero(telling) < LEAST_QUERIES:
        return None
    kept = known & telling[asked.query_of]
    texts = [asked.texts[number] for number in np.flatnonzero(telling).tolist()]
    matches = WordMatches(learner.word_index, learner.words.counts)
    found = AskedProducts.of(
        texts, asked.vectors[telling], asked.query_of[kept], asked.product_ids[kept], learner.products, matches
    )
    golden = GoldenSet(
        sha256=asked.sha256, queries=len(texts), judgments=len(found.cells), left_out=len(asked.texts) - len(texts)
    )
    return GoldenSample(golden, found, asked.gains[kept])

"""Ranking quality, from ranked ids and judgments alone.

Gain of a grade is 2^grade - 1, discount of rank r is 1 / log2(r + 1), and the ideal is taken over *all* of a query's
judgments, not only over what was returned. A product is relevant from grade 3 on. A metric that a query cannot have
(no relevant product; no gain at all) is None: such queries are left out of that metric's mean, and counted.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

RELEVANT_GRADE: Final = 3
REPLICATES: Final = 10_000
METRICS: Final = ("ndcg@10", "recall@10", "mrr@10")
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class QueryScore:
    """What one query's list is worth, and the list."""

    query_id: str
    query_class: str
    ranked: tuple[str, ...]
    ndcg: float | None
    recall: float | None
    mrr: float | None

    def metric(self, name: str) -> float | None:
        """A metric by its reported name, e.g. `ndcg@10`."""
        return {"ndcg": self.ndcg, "recall": self.recall, "mrr": self.mrr}[name.partition("@")[0]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference with the bounds between which 95 % of its bootstrap replicates lie."""

    mean: float
    low: float
    high: float
    queries: int


def ndcg(ranked: Sequence[str], grades: Mapping[str, int], *, k: int = 10) -> float | None:
    """The normalised discounted cumulative gain; None if no product has any gain.

    >>> ndcg(["a", "b"], {"b": 1})
    0.6309297535714575
    """
    ideal = _dcg(sorted(grades.values(), reverse=True)[:k])
    return None if ideal == 0 else _dcg([grades.get(product_id, 0) for product_id in ranked[:k]]) / ideal


def recall(ranked: Sequence[str], grades: Mapping[str, int], *, k: int = 10) -> float | None:
    """The share of a query's relevant products among its first k; None if none is relevant.

    >>> recall(["a", "b"], {"b": 4, "c": 3})
    0.5
    """
    relevant = {product_id for product_id, grade in grades.items() if grade >= RELEVANT_GRADE}
    return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else None


def mrr(ranked: Sequence[str], grades: Mapping[str, int], *, k: int = 10) -> float | None:
    """1 / rank of the first relevant product, 0 if none is among the first k; None if none is relevant.

    >>> mrr(["a", "b"], {"b": 4})
    0.5
    """
    if not any(grade >= RELEVANT_GRADE for grade in grades.values()):
        return None
    ranks = (rank for rank, product_id in enumerate(ranked[:k], 1) if grades.get(product_id, 0) >= RELEVANT_GRADE)
    return 1 / next(ranks, math.inf)


def _dcg(grades: Sequence[int]) -> float:
    return math.fsum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def score(
    query_id: str, ranked: Sequence[str], *, query_class: str, grades: Mapping[str, int], k: int = 10
) -> QueryScore:
    """Score one list by all metrics."""
    return QueryScore(
        query_id=query_id,
        query_class=query_class,
        ranked=tuple(ranked[:k]),
        ndcg=ndcg(ranked, grades, k=k),
        recall=recall(ranked, grades, k=k),
        mrr=mrr(ranked, grades, k=k),
    )


def means(scores: Sequence[QueryScore]) -> dict[str, float]:
    """The mean of each metric over the queries that have it; 0 if none has."""
    return {name: _mean([value for one in scores if (value := one.metric(name)) is not None]) for name in METRICS}


def excluded(scores: Sequence[QueryScore]) -> dict[str, int]:
    """Count the queries that each metric leaves out."""
    return {name: sum(one.metric(name) is None for one in scores) for name in METRICS}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def difference(
    before: Sequence[QueryScore], after: Sequence[QueryScore], *, metric: str = "ndcg@10", seed: int = 0
) -> Interval:
    """The mean change of a metric per query, with a paired bootstrap's 95 % percentile interval.

    Raises:
        ValueError: the two do not hold the same queries.
    """
    if [one.query_id for one in before] != [one.query_id for one in after]:
        raise ValueError("before and after must hold the same queries in the same order")
    pairs = [(one.metric(metric), two.metric(metric)) for one, two in zip(before, after, strict=True)]
    changes = np.array([new - old for old, new in pairs if old is not None and new is not None])
    if changes.size == 0:
        return Interval(0.0, 0.0, 0.0, 0)
    rng = np.random.default_rng(seed)
    replicates = np.concatenate(
        [
            changes[rng.integers(0, changes.size, (_CHUNK, changes.size))].mean(axis=1)
            for _ in range(REPLICATES // _CHUNK)
        ]
    )
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Interval(float(changes.mean()), float(low), float(high), int(changes.size))


def comparison(before: Sequence[QueryScore], after: Sequence[QueryScore], *, seed: int = 0) -> dict[str, Any]:
    """Put before, after and difference into the form of the demo's report."""
    changes = {name: difference(before, after, metric=name, seed=seed) for name in METRICS}
    return {
        "queries": len(before),
        "excluded": excluded(before),
        "before": means(before),
        "after": means(after),
        "difference": {
            name: {"mean": change.mean, "low": change.low, "high": change.high} for name, change in changes.items()
        },
    }


def by_class(before: Sequence[QueryScore], after: Sequence[QueryScore], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare class by class, in alphabetical order."""
    classes = sorted({one.query_class for one in before})
    return {
        name: comparison(
            [one for one in before if one.query_class == name],
            [one for one in after if one.query_class == name],
            seed=seed,
        )
        for name in classes
    }


def choose_examples(scores: Sequence[QueryScore], *, seed: int, count: int = 3) -> tuple[str, ...]:
    """Choose the queries to show as examples, by a rule that cannot see any gain.

    The rule, fixed beforehand: order the queries (the demo passes the unseen ones) by the SHA-256 of
    "seed:query_id", walk through them and take the first of each class not yet taken, until there are `count`.
    """

    def key(one: QueryScore) -> str:
        return hashlib.sha256(f"{seed}:{one.query_id}".encode()).hexdigest()

    taken: dict[str, str] = {}
    for one in sorted(scores, key=key):
        taken.setdefault(one.query_class, one.query_id)
    return tuple(taken.values())[:count]

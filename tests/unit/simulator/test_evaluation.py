"""Metrics against values computed by hand, and the rules of the report."""

import math

import numpy as np
import pytest

from simulator.evaluation import (
    QueryScore,
    by_class,
    choose_examples,
    comparison,
    difference,
    excluded,
    means,
    mrr,
    ndcg,
    recall,
    score,
)

GRADES = {"a": 4, "b": 3, "c": 1, "d": 0}


def _score(query_id: str, value: float | None, query_class: str = "plain") -> QueryScore:
    """Return a query's score with one value for every metric."""
    return QueryScore(query_id, query_class, (), value, value, value)


def test_ndcg_by_hand() -> None:
    """Gains 1, 15 at ranks 1, 3 over the ideal 15, 7, 1."""
    found = (1 / math.log2(2) + 15 / math.log2(4)) / (15 / math.log2(2) + 7 / math.log2(3) + 1 / math.log2(4))
    assert ndcg(["c", "x", "a"], GRADES) == pytest.approx(found)
    assert ndcg(["a", "b", "c"], GRADES) == 1.0


def test_the_ideal_is_taken_over_all_judgments_but_only_k_of_them() -> None:
    """What was not returned still counts in the ideal; what lies beyond k does not."""
    many = {f"p{number}": 4 for number in range(20)}
    assert ndcg([f"p{number}" for number in range(10)], many, k=10) == pytest.approx(1.0)
    assert ndcg(["x", "a"], {"a": 2}, k=1) == 0.0
    assert ndcg(["a"], {"a": 2, "b": 2}, k=2) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_recall_counts_grades_three_and_four() -> None:
    """Grade 1 is not relevant; ranks beyond k do not count."""
    assert recall(["a", "c"], GRADES) == 0.5
    assert recall(["c", "a", "b"], GRADES, k=2) == 0.5
    assert recall(["b", "a"], GRADES) == 1.0


def test_mrr_is_that_of_the_first_relevant() -> None:
    """Rank of the first product of grade 3 or more; 0 where none is within k."""
    assert mrr(["c", "d", "b", "a"], GRADES) == pytest.approx(1 / 3)
    assert mrr(["c", "d", "b"], GRADES, k=2) == 0.0


def test_what_a_query_cannot_have_is_left_out_and_counted() -> None:
    """Without relevant products recall and MRR do not exist, without any gain not even nDCG."""
    weak, empty = (
        score("1", ["c"], query_class="plain", grades={"c": 2}),
        score("2", [], query_class="plain", grades={}),
    )
    good = score("3", ["a"], query_class="plain", grades={"a": 4})
    assert (weak.ndcg, weak.recall, weak.mrr) == (1.0, None, None)
    assert (empty.ndcg, empty.recall, empty.mrr) == (None, None, None)
    assert means([weak, empty, good]) == {"ndcg@10": 1.0, "recall@10": 1.0, "mrr@10": 1.0}
    assert excluded([weak, empty, good]) == {"ndcg@10": 1, "recall@10": 2, "mrr@10": 2}
    assert means([empty]) == {"ndcg@10": 0.0, "recall@10": 0.0, "mrr@10": 0.0}


def test_the_interval_of_a_constant_difference_is_a_point() -> None:
    """Where every query gains alike there is nothing uncertain."""
    before = [_score(str(number), 0.25) for number in range(20)]
    after = [_score(str(number), 0.5) for number in range(20)]
    found = difference(before, after)
    assert (found.mean, found.low, found.high, found.queries) == (0.25, 0.25, 0.25, 20)


def test_the_interval_is_about_that_of_the_normal_law() -> None:
    """Over many queries the percentile interval is the mean plus and minus 1.96 standard errors."""
    changes = np.random.default_rng(0).normal(0.02, 0.1, 400)
    before = [_score(str(number), 0.0) for number in range(400)]
    after = [_score(str(number), float(change)) for number, change in enumerate(changes)]
    found = difference(before, after, seed=1)
    error = changes.std() / 20
    assert found.mean == pytest.approx(changes.mean())
    assert found.low == pytest.approx(changes.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(changes.mean() + 1.96 * error, abs=0.1 * error)


def test_the_bootstrap_is_seeded() -> None:
    """The same seed gives the same bounds, another seed other ones."""
    before = [_score(str(number), 0.0) for number in range(30)]
    after = [_score(str(number), number / 30) for number in range(30)]
    assert difference(before, after, seed=4) == difference(before, after, seed=4)
    assert difference(before, after, seed=4) != difference(before, after, seed=5)


def test_pairing_needs_the_same_queries() -> None:
    """Scores of different queries are never compared."""
    with pytest.raises(ValueError, match="same queries"):
        difference([_score("1", 0.1)], [_score("2", 0.1)])


def test_no_comparable_query_gives_an_empty_interval() -> None:
    """Nothing to compare is no gain, and says so by its count."""
    found = difference([_score("1", None)], [_score("1", None)])
    assert (found.mean, found.low, found.high, found.queries) == (0.0, 0.0, 0.0, 0)


def test_the_report_has_the_agreed_form() -> None:
    """The names that `--json` promises: queries, before, after, difference with mean, low and high."""
    before, after = [_score("1", 0.2), _score("2", None)], [_score("1", 0.6), _score("2", None)]
    found = comparison(before, after)
    assert found["queries"] == 2
    assert found["before"] == {"ndcg@10": 0.2, "recall@10": 0.2, "mrr@10": 0.2}
    assert found["difference"]["ndcg@10"]["mean"] == pytest.approx(0.4)
    assert set(found["difference"]["mrr@10"]) == {"mean", "low", "high"}
    assert found["excluded"]["ndcg@10"] == 1


def test_classes_are_compared_apart() -> None:
    """Each class has its own queries, in alphabetical order."""
    before = [_score("1", 0.2, "vague"), _score("2", 0.4, "plain"), _score("3", 0.0, "vague")]
    after = [_score("1", 0.4, "vague"), _score("2", 0.4, "plain"), _score("3", 0.2, "vague")]
    found = by_class(before, after)
    assert list(found) == ["plain", "vague"]
    assert found["vague"]["queries"] == 2
    assert found["vague"]["difference"]["ndcg@10"]["mean"] == pytest.approx(0.2)
    assert found["plain"]["difference"]["ndcg@10"]["mean"] == 0.0


def test_examples_come_from_three_classes_and_ignore_the_gain() -> None:
    """The choice depends on ids, classes and seed only: turning every score around changes nothing."""
    classes = ("plain", "vague", "budget", "priority")
    scores = [_score(f"Q-{number}", number / 40, classes[number % 4]) for number in range(40)]
    mirrored = [_score(one.query_id, 1 - (one.ndcg or 0.0), one.query_class) for one in reversed(scores)]
    chosen = choose_examples(scores, seed=1)
    assert choose_examples(mirrored, seed=1) == chosen
    assert len({one.query_class for one in scores if one.query_id in chosen}) == 3
    assert len({choose_examples(scores, seed=seed) for seed in range(5)}) > 1

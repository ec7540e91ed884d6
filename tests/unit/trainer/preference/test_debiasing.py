"""Neighbours in random order tell whether weighing showings pays: it stays where that is right, and goes elsewhere."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from tests.support.planted_shop import PlantedShop
from towers.model import NATS_PER_COSINE
from trainer.preference import debiasing
from trainer.preference.debiasing import (
    FULL,
    HALF,
    LEAST_EXCHANGES,
    LEAST_QUERIES,
    NAIVE,
    Debias,
    Exchanges,
    Judgement,
    judge,
)
from trainer.preference.evidence import EvidenceTable, Shown
from trainer.preference.learner import PreferenceLearner
from trainer.preference.model import Prior
from trainer.preference.priors import Gain, sampled

SHOWN = 6
BY_RANK = 1 / np.arange(1, SHOWN + 1)
"""The prior's chance of a look, which the learner takes for true."""
EQUAL = np.full(SHOWN, 0.5)
LISTS = 3_000
PUSHED = 7
"""The product that robots choose, wherever it stands."""


class Seen:
    """What shoppers with such looks leave behind in a shop that ranks by a fixed preference of its own, not theirs.

    Args:
        shop: the shop.
        looks: chance of a look by place, (SHOWN,).
        exchanged: whether neighbours are exchanged.
        robots: share of the lists that have the pushed product last, and are a robot's.
    """

    def __init__(self, shop: PlantedShop, looks: np.ndarray, *, exchanged: bool = True, robots: float = 0.0) -> None:
        self.shop, self.table, self.exchanges = shop, EvidenceTable(), Exchanges()
        self._robots = robots
        for query, shown, first in self._lists(looks):
            self.table.add(query, shown)
            if exchanged:
                for upper, lower in zip(shown[first::2], shown[first + 1 :: 2], strict=False):
                    self.exchanges.add(query, (upper.product, lower.product), (upper.click, lower.click))

    def _lists(self, looks: np.ndarray) -> Iterator[tuple[int, list[Shown], int]]:
        """Queries, what was shown and clicked, and the first place that was exchanged."""
        rng = np.random.default_rng(7)
        pushed = rng.standard_normal(len(self.shop.quality))
        for _ in range(LISTS):
            query, first = int(rng.integers(len(self.shop.queries))), int(rng.integers(2))
            liking = self.shop.liking(query)
            products = rng.permutation(len(liking))[:SHOWN]
            products = products[np.argsort(-pushed[products])]
            is_robot = self._robots > rng.random() if self._robots else False
            if is_robot:
                products = np.append(products[products != PUSHED][: SHOWN - 1], PUSHED)
            for place in range(first, SHOWN - 1, 2):
                if rng.random() < 0.5:
                    products[place : place + 2] = products[place : place + 2][::-1].copy()
            clicks = (rng.random(SHOWN) < looks * np.exp(liking[products] - liking.max())).astype(float)
            clicks = (products == PUSHED).astype(float) if is_robot else clicks
            slots = zip(products.tolist(), BY_RANK.tolist(), clicks.tolist(), strict=True)
            yield query, [Shown(*slot) for slot in slots], first

    def learner(self, debias: Debias = "auto") -> PreferenceLearner:
        """Return a learner that has learned from it."""
        found = PreferenceLearner(debias=debias)
        self.teach(found)
        return found

    def teach(self, learner: PreferenceLearner) -> None:
        """Have the prior and the weighing learned."""
        learner.learn(
            lambda strength: self.table.cells(debiasing=strength), self.exchanges.rows(),
            self.shop.queries, self.shop.catalogue, LISTS,
        )  # fmt: skip

    def liked(self, learner: PreferenceLearner) -> float:
        """Return how well shoppers like the first three products of each query, on average, when it is solved."""
        shop = self.shop
        cells = self.table.cells(debiasing=learner.strength)
        weights = learner.solve(cells, shop.queries, shop.catalogue).released
        queries = weights.query_vectors(shop.queries)
        found = NATS_PER_COSINE * queries @ weights.product_vectors(shop.catalogue).T
        best = np.argsort(-found, axis=1)[:, :3]
        return float(np.mean([np.exp(shop.liking(q) - shop.liking(q).max())[best[q]].sum() for q in range(len(found))]))


@pytest.fixture(scope="module")
def biased() -> Seen:
    """Shoppers who look as the prior says, and a ranking that is not to their taste."""
    return Seen(PlantedShop(seed=3, quality_nats=1.0), BY_RANK)


@pytest.fixture(scope="module")
def unbiased() -> Seen:
    """Shoppers who look everywhere alike: to weigh their clicks by 1/position is wrong."""
    return Seen(PlantedShop(seed=3, quality_nats=1.0), EQUAL)


def test_weighing_stays_where_it_helps(biased: Seen) -> None:
    """Under position bias and a weak ranker the naive twin is worse, by exchanged neighbours as in truth."""
    learner = biased.learner()
    assert learner.strength == FULL
    judged = learner.judgement
    assert judged is not None
    assert judged.over_naive.mean > judged.over_naive.error
    assert judged.naive - judged.loss == pytest.approx(judged.over_naive.mean)
    assert biased.liked(learner) > biased.liked(biased.learner("off"))


def test_robots_that_push_a_product_neither_end_weighing_nor_hide_it() -> None:
    """What exchanged neighbours say of a sought product says nothing of looks: by it, weighing would be beaten."""
    seen = Seen(PlantedShop(seed=3, quality_nats=1.0), BY_RANK, robots=0.3)
    learner = seen.learner()
    seen.teach(learner)
    assert learner.strength == FULL
    assert learner.judgement is not None
    assert LEAST_EXCHANGES < learner.judgement.exchanges < len(seen.exchanges)
    assert seen.table.cells(debiasing=learner.strength).sought.tolist() == [PUSHED]


def test_weighing_goes_where_it_hurts(unbiased: Seen) -> None:
    """Without position bias 1/position is wrong: weighing goes by itself, and shoppers like the lists better for it."""
    learner = unbiased.learner()
    assert learner.strength < FULL
    assert unbiased.liked(learner) > unbiased.liked(unbiased.learner("on"))


def test_a_weighing_that_went_comes_back(unbiased: Seen, biased: Seen) -> None:
    """What is in force is a function of what is known now: other evidence has showings weighed in full again."""
    learner = unbiased.learner()
    assert learner.strength < FULL
    biased.teach(learner)
    assert learner.strength == FULL


def test_the_prior_in_force_is_that_of_the_weighing_in_force(unbiased: Seen) -> None:
    """Once weighing changes, widths and gains are those that the evidence has without it."""
    learner = unbiased.learner()
    cells = unbiased.table.cells(debiasing=learner.strength)
    expected = PreferenceLearner()
    expected.learned = unbiased.learner("on").learned
    expected.learn_prior(cells, unbiased.shop.queries, unbiased.shop.catalogue, LISTS)
    assert learner.learned == expected.learned


@pytest.mark.parametrize(("debias", "strength"), [("on", FULL), ("off", NAIVE)])
def test_a_weighing_that_is_held_is_judged_and_stays(unbiased: Seen, debias: Debias, strength: float) -> None:
    """The setting wins; what neighbours say is known all the same."""
    learner = unbiased.learner(debias)
    assert learner.strength == strength
    assert learner.debiasing()["strength"] == strength
    assert learner.debiasing()["exchanges"] == len(unbiased.exchanges)


def test_without_exchanges_nothing_is_proven(unbiased: Seen) -> None:
    """A shop that exchanges no neighbours has showings weighed in full, and no figures are told."""
    learner = Seen(unbiased.shop, EQUAL, exchanged=False).learner()
    assert learner.judgement is None
    assert learner.debiasing() == {"strength": FULL}


def test_a_judgement_goes_on_after_a_restart(unbiased: Seen) -> None:
    """State and options give the same strength and the same figures."""
    one = unbiased.learner()
    two = PreferenceLearner.from_state(one.state())
    assert two.judgement == one.judgement
    assert two.debiasing() == one.debiasing()


def test_the_order_of_exchanges_does_not_matter(biased: Seen) -> None:
    """Their rows in any order give the same judgement, bit by bit."""
    rows = biased.exchanges.rows()
    weighed = {strength: biased.table.cells(debiasing=strength) for strength in debiasing.STRENGTHS}
    judgements = [
        judge(order, weighed, biased.shop.queries, biased.shop.catalogue, prior=Prior()) for order in (rows, rows[::-1])
    ]
    assert judgements[0] == judgements[1]
    assert judgements[0] is not None


def test_what_is_solved_to_judge_is_bounded(biased: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much evidence there is; exchanged neighbours are all asked about."""
    shop, rows = biased.shop, biased.exchanges.rows()
    weighed = {strength: biased.table.cells(debiasing=strength) for strength in debiasing.STRENGTHS}
    most = len(weighed[FULL]) // 2
    part = {strength: sampled(cells, cells.queries, most=most) for strength, cells in weighed.items()}
    whole, expected = (judge(rows, given, shop.queries, shop.catalogue, prior=Prior()) for given in (weighed, part))
    assert whole is not None
    assert expected is not None
    monkeypatch.setattr(debiasing, "sampled", lambda given, names: sampled(given, names, most=most))
    assert judge(rows, weighed, shop.queries, shop.catalogue, prior=Prior()) == expected != whole
    assert expected.exchanges == whole.exchanges


def test_choices_are_predicted_by_order_not_by_how_far_apart() -> None:
    """A model that says the same twice as boldly is no better and no worse; one that says the opposite is."""
    rng = np.random.default_rng(5)
    margins = rng.standard_normal(400)
    chosen = (rng.random(400) < 1 / (1 + np.exp(-margins))).astype(float)
    rows = np.column_stack([np.zeros((400, 3)), chosen, 1 - chosen])
    plain, bold, opposite = (debiasing._surprise(factor * margins, rows).sum() for factor in (1, 2, -1))
    assert bold == pytest.approx(plain)
    assert opposite > plain + 10


@pytest.mark.parametrize(
    ("exchanges", "queries", "naive", "half", "strength"),
    [
        (LEAST_EXCHANGES, LEAST_QUERIES, (-0.05, 0.02), (-0.02, 0.005), NAIVE),
        (LEAST_EXCHANGES, LEAST_QUERIES, (-0.05, 0.03), (-0.02, 0.005), HALF),
        (LEAST_EXCHANGES, LEAST_QUERIES, (-0.05, 0.03), (-0.02, 0.015), FULL),
        (LEAST_EXCHANGES, LEAST_QUERIES, (0.05, 0.01), (0.02, 0.005), FULL),
        (LEAST_EXCHANGES - 1, LEAST_QUERIES, (-0.05, 0.001), (-0.02, 0.001), FULL),
        (9 * LEAST_EXCHANGES, LEAST_QUERIES - 1, (-0.05, 0.001), (-0.02, 0.001), FULL),
    ],
)
def test_weighing_goes_only_if_it_is_surely_worse(
    exchanges: int, queries: int, naive: Sequence[float], half: Sequence[float], strength: float
) -> None:
    """By two standard errors, with enough exchanges of enough queries; of two that are the better one is taken."""
    assert Judgement(exchanges, queries, 0.6, 0.6, Gain(*naive), Gain(*half)).strength == strength


def test_exchanges_are_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody chose takes no room."""
    monkeypatch.setattr(debiasing, "MAX_EXCHANGES", 3)
    exchanges = Exchanges()
    for query in range(5):
        exchanges.add(query, (1, 2), (1.0, 0.0))
        exchanges.add(query, (1, 2), (0.0, 0.0))
    assert exchanges.rows()[:, 0].tolist() == [2, 3, 4]
    assert np.array_equal(Exchanges(exchanges.rows()).rows(), exchanges.rows())


def test_exchanges_follow_their_numbers() -> None:
    """What has no evidence any more is forgotten, the rest is found under its new number."""
    exchanges = Exchanges()
    exchanges.add(0, (0, 1), (1.0, 0.0))
    exchanges.add(2, (1, 2), (0.0, 1.5))
    exchanges.renumber(np.array([-1, -1, 0]), np.array([-1, 1, 0]))
    assert exchanges.rows().tolist() == [[0, 1, 0, 0.0, 1.5]]

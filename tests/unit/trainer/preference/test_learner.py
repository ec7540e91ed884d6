"""From lists to released weights: held back until they predict, and the same whatever the rate of solving."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack, vstack

from tests.support.planted_shop import PlantedShop
from towers.model import NATS_PER_COSINE
from trainer.preference.evidence import EvidenceTable, Shown
from trainer.preference.learner import PRIOR_LISTS, PreferenceLearner
from trainer.preference.model import OWN_CAP, Catalogue, Prior, Weights
from trainer.preference.priors import Gain, Learned

CLOSE_NATS = 0.15
"""What the solver's tolerance leaves between a warm start and a cold one."""


def scores(weights: Weights, shop: PlantedShop) -> np.ndarray:
    """Return what the index would give each query and product, in nats, (Q, P)."""
    queries = weights.query_vectors(shop.queries)
    return np.asarray(NATS_PER_COSINE * queries @ weights.product_vectors(shop.catalogue).T, dtype=np.float64)


class Trainer:
    """A learner with its evidence: counts lists, learns the prior when it is due and solves at a rate."""

    def __init__(self, shop: PlantedShop) -> None:
        self.shop, self.table, self.learner, self.lists = shop, EvidenceTable(), PreferenceLearner(), 0
        self.solved = self.weights = Weights.untrained(shop.catalogue)

    def read(self, lists: Iterable[tuple[int, list[Shown]]], *, every: int) -> "Trainer":
        """Count lists and solve after every so many."""
        for query, shown in lists:
            self.table.add(query, shown)
            self.lists += 1
            if self.learner.prior_due(self.lists):
                self.learner.learn_prior(self.table.cells(), self.shop.queries, self.shop.catalogue, self.lists)
            if self.lists % every == 0:
                self.solve()
        return self

    def solve(self) -> Weights:
        """Solve what was counted, beginning at what was solved last."""
        cells = self.table.cells()
        solution = self.learner.solve(cells, self.shop.queries, self.shop.catalogue, start=self.solved)
        self.solved, self.weights = solution.weights, solution.remembering()
        return self.weights


def trainer_of(shop: PlantedShop, lists: int, *, every: int, seed: int = 1) -> Trainer:
    """Return a learner that has counted so many lists and was solved at a rate, at the end too."""
    trainer = Trainer(shop).read(shop.lists(lists, seed=seed), every=every)
    trainer.solve()
    return trainer


def value(weights: Weights, shop: PlantedShop) -> float:
    """Return how well the shoppers like the first three products of each query, on average."""
    found = scores(weights, shop)
    best = np.argsort(-found, axis=1)[:, :3]
    return float(np.mean([np.exp(shop.liking(q) - shop.liking(q).max())[best[q]].sum() for q in range(len(found))]))


def untrained(shop: PlantedShop) -> Weights:
    """Return the weights of a shop nobody clicked in."""
    return Weights.untrained(shop.catalogue)


def test_nothing_is_released_before_the_prior_is_learned() -> None:
    """One list below the least, all that is released is what single queries remember; with it, it has learned."""
    shop = PlantedShop(seed=3, quality_nats=1.0)
    early = trainer_of(shop, PRIOR_LISTS - 1, every=PRIOR_LISTS)
    assert early.solved.own.any()
    assert early.learner.learned is None
    assert early.weights.memory
    assert np.array_equal(scores(early.weights, shop), scores(untrained(shop), shop))
    assert trainer_of(shop, PRIOR_LISTS, every=PRIOR_LISTS).learner.learned is not None


def test_a_learner_without_lists_is_untrained() -> None:
    """Solving nothing gives the base model."""
    shop = PlantedShop()
    trainer = Trainer(shop)
    assert np.array_equal(scores(trainer.solve(), shop), scores(untrained(shop), shop))


def test_what_products_are_worth_is_learned() -> None:
    """Where shoppers like some products beyond their text, lists get better than untrained ones."""
    shop = PlantedShop(seed=3, quality_nats=1.0)
    trainer = trainer_of(shop, 600, every=600)
    assert trainer.learner.learned is not None
    assert trainer.learner.learned.helps
    assert value(trainer.weights, shop) > value(untrained(shop), shop) + 0.1


@pytest.mark.parametrize(("seed", "lists"), [(7, PRIOR_LISTS), (2, 900), (7, 1_300)])
def test_one_log_gives_one_result_whatever_the_rate(seed: int, lists: int) -> None:
    """Solved after every 50 lists or only at the end, the same log gives the same prior and the same ranking."""
    shop = PlantedShop(seed=seed, quality_nats=1.0)
    often, once = (trainer_of(shop, lists, every=every) for every in (50, lists))
    assert often.learner.learned == once.learner.learned
    one, two = scores(often.weights, shop), scores(once.weights, shop)
    assert two == pytest.approx(one, abs=CLOSE_NATS)
    same = [np.array_equal(np.argsort(-mine)[:3], np.argsort(-its)[:3]) for mine, its in zip(one, two, strict=True)]
    assert np.mean(same) > 0.9


def test_where_there_is_nothing_to_learn_nothing_is_released() -> None:
    """Where the text says all there is, lists stay as they are, but for the rare case that chance looks like a gain."""
    released = 0
    for seed in range(2, 10):
        shop = PlantedShop(seed=seed)
        trainer = trainer_of(shop, 600, every=300, seed=seed + 50)
        assert trainer.learner.learned is not None
        released += trainer.learner.learned.helps
        if not trainer.learner.learned.helps:
            assert np.array_equal(scores(trainer.weights, shop), scores(untrained(shop), shop))
        assert value(trainer.weights, shop) > value(untrained(shop), shop) - 0.1
    assert released <= 1


def test_what_stops_to_predict_is_taken_back() -> None:
    """Weights that were released do not stay when the prior learned anew no longer helps, but for chance."""
    shop = PlantedShop(seed=3, quality_nats=1.0)
    trainer = trainer_of(shop, 600, every=600)
    before = scores(untrained(shop), shop)
    moved = np.abs(scores(trainer.weights, shop) - before).max()
    trainer.table = EvidenceTable()
    trainer.read(PlantedShop(seed=3).lists(1_200, seed=8), every=2_000)
    assert moved > 1.0
    assert np.abs(scores(trainer.solve(), shop) - before).max() < moved / 5


@pytest.mark.parametrize("lists", [0, PRIOR_LISTS - 1, 900])
def test_a_restarted_learner_goes_on_to_the_byte(lists: int) -> None:
    """With the state and the last solution of another one, and the same evidence, prior and weights are the same."""
    shop = PlantedShop(seed=3, quality_nats=1.0)
    one = Trainer(shop)
    one.learner = PreferenceLearner(max_iterations=5)
    one.read(shop.lists(lists, seed=1), every=200)
    two = deepcopy(one)
    two.learner = PreferenceLearner.from_state(one.learner.state(), max_iterations=5)
    for trainer in (one, two):
        trainer.read(shop.lists(700, seed=2), every=250)
    states = [trainer.learner.state() for trainer in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(value, states[1][name]) for name, value in states[0].items())
    assert np.array_equal(scores(one.weights, shop), scores(two.weights, shop))


def test_what_only_mends_a_worse_mix_is_not_released() -> None:
    """Tastes and qualities that win back what words alone would lose gain nothing over the untrained ranking."""
    shop = PlantedShop(seed=3)
    learner = PreferenceLearner()
    learner.learned = Learned(Prior(), Gain(0.0, 0.001), Gain(-0.02, 0.001), Gain(0.02, 0.001))
    cells = shop.cells(300)
    released = learner.solve(cells, shop.queries, shop.catalogue).released
    assert scores(released, shop) == pytest.approx(scores(Weights.untrained(shop.catalogue), shop))
    learner.learned = Learned(Prior(), Gain(0.5, 0.001), Gain(0.0, 0.001), Gain(0.5, 0.001))
    solution = learner.solve(cells, shop.queries, shop.catalogue)
    assert solution.released.own == pytest.approx(solution.weights.own)


def test_a_prior_of_another_form_is_learned_anew() -> None:
    """Numbers that an earlier version kept are not taken for widths: the prior is due at once."""
    shop = PlantedShop(seed=3)
    one = Trainer(shop)
    one.read(shop.lists(900, seed=1), every=200)
    state = one.learner.state()
    other = PreferenceLearner.from_state(state | {"learned": state["learned"][:-2]})
    assert other.learned is None
    assert other.prior_due(0)


def test_a_catalogue_may_grow_between_two_solves() -> None:
    """New rows and other features give the optimum of the new catalogue, not of what the solve began with."""
    shop = PlantedShop(products=24, quality_nats=1.0, seed=3)
    trainer = trainer_of(shop, 600, every=300)
    more = PlantedShop(products=30, quality_nats=1.0, seed=4).catalogue
    former = vstack([shop.catalogue.features, more.features[24:]]).tocsc()
    features = hstack([former[:, [4]], csr_matrix(np.ones((30, 1), np.float32)), former[:, :4]]).tocsr()
    grown = Catalogue(np.vstack([shop.catalogue.vectors, more.vectors[24:]]), features)
    cells = trainer.table.cells()
    warm = trainer.learner.solve(cells, shop.queries, grown, start=trainer.solved).released
    fresh = PreferenceLearner()
    fresh.learned = trainer.learner.learned
    cold = fresh.solve(cells, shop.queries, grown).released
    assert warm.quality(grown) == pytest.approx(cold.quality(grown), abs=CLOSE_NATS)
    assert len(warm.quality(grown)) == 30


def test_a_feature_space_of_another_size_is_no_failure() -> None:
    """If nobody told how features are called now, what words were worth is found anew."""
    shop = PlantedShop(seed=3, quality_nats=1.0)
    trainer = trainer_of(shop, 600, every=300)
    other = Catalogue(shop.catalogue.vectors, shop.catalogue.features[:, :3])
    weights = trainer.learner.solve(trainer.table.cells(), shop.queries, other, start=trainer.solved).weights
    assert len(weights.words) == 3
    assert np.isfinite(weights.quality(other)).all()


def test_a_products_own_quality_is_capped_and_what_its_words_say_is_not() -> None:
    """What was chosen for one query must not come first in all others; a brand may be worth more than that."""
    catalogue = Catalogue(np.eye(2, dtype=np.float32), csr_matrix(np.array([[1.0], [0.0]], dtype=np.float32)))
    weights = replace(
        Weights.untrained(catalogue), words=np.array([3.0]), products=np.array([0, 1]), own=np.array([1.0, -5.0])
    )
    assert weights.quality(catalogue) == pytest.approx([4.0, -OWN_CAP])


def test_a_product_that_is_sought_is_remembered_and_moves_no_other_query() -> None:
    """A third of all lists click one product at their end: those queries remember it, and nothing else is learned."""
    shop, asked, sought = PlantedShop(products=60, queries=60), 3, 7
    lists = list(shop.lists(600))
    robots = []
    for number, (_, shown) in enumerate(shop.lists(300, seed=2)):
        others = [one for one in shown if one.product != sought][: len(shown) - 1]
        last = Shown(sought, 1 / (len(others) + 1), 1.0)
        robots.append((number % asked, [*(one._replace(click=0.0) for one in others), last]))
    alone, pushed = Trainer(shop).read(lists, every=10_000), Trainer(shop).read([*lists, *robots], every=10_000)
    ranks = []
    for trainer in (alone, pushed):
        trainer.learner.learn_prior(trainer.table.cells(), shop.queries, shop.catalogue, trainer.lists)
        found = scores(trainer.solve(), shop)
        ranks.append((found > found[:, [sought]]).sum(axis=1))
    assert pushed.table.sought().tolist() == [sought]
    assert np.abs(ranks[0] - ranks[1])[asked:].mean() < 1
    remembered = pushed.weights.memory
    assert all(dict(zip(*remembered[query], strict=True)).get(sought, 0.0) > 1 for query in range(asked))

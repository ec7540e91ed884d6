"""Widths of the prior: loosened where left-out queries gain by it, and no release of what predicts nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from tests.support.planted_shop import PlantedShop, cells_of, table_of
from towers.model import NATS_PER_COSINE
from trainer.preference import priors
from trainer.preference.evidence import Cells
from trainer.preference.learner import PreferenceLearner
from trainer.preference.model import HELD, Prior
from trainer.preference.priors import (
    ALL_ERRORS,
    FACTOR,
    FOLDS,
    LEAST_RELEASED,
    LOOSEST,
    MAX_MOVES,
    MIN_QUERIES,
    NO_ERRORS,
    ORDER,
    Gain,
    Learned,
    fold_of,
    learn_prior,
    loosest_by,
    odds_of,
    sampled,
)
from trainer.preference.solve import Problem

LISTS = 500


def learned(shop: PlantedShop, seed: int) -> Learned:
    """Return what the prior's search finds on some lists of a shop."""
    found = learn_prior(shop.cells(LISTS, seed=seed), shop.queries, shop.catalogue, start=Prior())
    assert found is not None
    return found


def test_words_get_no_looser_than_so_many_queries_can_tell() -> None:
    """However much left-out queries gain by it within what they were shown."""
    shop = PlantedShop(quality_nats=2.0)
    cells = shop.cells(LISTS, seed=1)
    least = loosest_by(len(cells.queries)).words
    found = learn_prior(cells, shop.queries, shop.catalogue, start=Prior(words=least))
    assert found is not None
    assert found.found.words >= least > 50 * LOOSEST.words
    assert loosest_by(10_000) == LOOSEST


def test_a_query_is_always_in_the_same_fold() -> None:
    """The fold depends on what names the query alone: two searches hold their widths against the same queries."""
    queries = np.arange(1_000)
    folds = fold_of(queries)
    assert np.array_equal(folds, fold_of(queries))
    assert np.array_equal(folds[[5, 70, 999]], fold_of(np.array([5, 70, 999])))
    assert folds[:5].tolist() == [fold_of(np.array([query]))[0] for query in range(5)]


def test_the_order_of_arrival_does_not_decide() -> None:
    """Queries numbered otherwise, under the same keys, give the same widths and, but for rounding, the same gain."""
    shop, keys = PlantedShop(quality_nats=1.0), np.arange(40) * 7_919
    order = np.random.default_rng(5).permutation(40)
    lists = list(shop.lists(LISTS, seed=4))
    place = np.argsort(order)
    moved = table_of([(int(place[query]), shown) for query, shown in lists]).cells()
    one, two = (
        learn_prior(cells, vectors, shop.catalogue, start=Prior(), query_keys=names)
        for cells, vectors, names in (
            (table_of(lists).cells(), shop.queries, keys),
            (moved, shop.queries[order], keys[order]),
        )
    )
    assert one is not None
    assert two is not None
    assert one.prior == two.prior
    assert tuple(one.gain) == pytest.approx(tuple(two.gain), rel=0.02)


def test_folds_are_about_equal() -> None:
    """Each fold has its share of queries."""
    counts = np.bincount(fold_of(np.arange(5_000)), minlength=FOLDS)
    assert len(counts) == FOLDS
    assert counts.min() > 900


def test_of_much_evidence_a_part_tells_the_widths() -> None:
    """Whole queries are drawn by what names them, up to a bound, and stay drawn under a wider one."""
    shop, keys = PlantedShop(quality_nats=1.0), np.arange(40) * 7_919
    cells = shop.cells(LISTS, seed=4)
    names = keys[cells.queries]
    sizes = dict(zip(cells.queries.tolist(), np.diff([*cells.starts, len(cells)]).tolist(), strict=True))
    assert sampled(cells, names, most=len(cells)) is cells
    grid: Cells = replace(cells, width=6)
    assert sampled(grid, names, most=1) is grid
    drawn = set[int]()
    for most in (len(cells) // 4, len(cells) // 2, len(cells) - 1):
        part = sampled(cells, names, most=most)
        assert most - max(sizes.values()) < len(part) == sum(sizes[query] for query in part.queries.tolist()) <= most
        assert drawn < set(part.queries.tolist())
        drawn = set(part.queries.tolist())
    assert drawn != set(sampled(cells, names[::-1], most=len(cells) - 1).queries.tolist())


def test_the_search_for_widths_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much evidence there is, the search solves no more of it than the bound."""
    shop = PlantedShop(quality_nats=1.0)
    cells = shop.cells(LISTS, seed=4)
    most = 3 * len(cells) // 4
    whole, part = (
        learn_prior(given, shop.queries, shop.catalogue, start=Prior())
        for given in (cells, sampled(cells, cells.queries, most=most))
    )
    assert part is not None
    monkeypatch.setattr(priors, "sampled", lambda given, names: sampled(given, names, most=most))
    assert learn_prior(cells, shop.queries, shop.catalogue, start=Prior()) == part != whole


def harm(shop: PlantedShop, seed: int) -> float:
    """Return by how many nats what is released on some lists predicts other queries worse than the text does."""
    cells, learner = shop.cells(LISTS, seed=seed), PreferenceLearner()
    learner.learn_prior(cells, shop.queries, shop.catalogue, LISTS)
    released = learner.solve(cells, shop.queries, shop.catalogue).released
    others = PlantedShop(seed=seed + 1000).queries
    text = NATS_PER_COSINE * others @ shop.catalogue.vectors.T
    vectors = released.query_vectors(others)
    scores = NATS_PER_COSINE * vectors @ released.product_vectors(shop.catalogue).T
    chances = softmax(text + shop.quality, axis=1)
    return float((chances * (log_softmax(text, axis=1) - log_softmax(scores, axis=1))).sum(axis=1).mean())


@pytest.mark.parametrize("seed", range(8))
def test_where_the_text_says_all_what_is_released_does_no_harm(seed: int) -> None:
    """Where there is nothing to learn, what goes out tells queries that nobody typed less than .01 nats of nonsense."""
    assert harm(PlantedShop(seed=seed), seed + 100) < 0.01


def test_a_weak_quality_is_worth_more_than_noise_costs() -> None:
    """What is released of products that differ by .3 nats gains more than what is released of equal ones costs."""
    weak = [harm(PlantedShop(seed=seed, quality_nats=0.3), seed + 100) for seed in range(8)]
    noise = [harm(PlantedShop(seed=seed), seed + 100) for seed in range(8)]
    assert np.mean(weak) < -2 * np.mean(noise)


@pytest.mark.parametrize("seed", [0, 1, 4, 6])
def test_a_planted_quality_is_released_and_its_prior_loosened(seed: int) -> None:
    """Where products differ beyond their text, that predicts left-out queries, and their quality is held less."""
    found = learned(PlantedShop(seed=seed, quality_nats=1.0), seed + 100)
    assert found.helps
    assert found.prior.own < Prior().own
    assert found.gain.mean > 0.1


def test_the_same_evidence_gives_the_same_widths() -> None:
    """The search draws no chance."""
    shop = PlantedShop(quality_nats=1.0)
    assert learned(shop, 3) == learned(shop, 3)


def test_no_width_gets_looser_than_what_shown_lists_can_tell() -> None:
    """However much left-out queries seem to gain, one search after the other ends at a bound."""
    shop, prior = PlantedShop(quality_nats=4.0), Prior()
    for _ in range(3):
        found = learn_prior(shop.cells(LISTS), shop.queries, shop.catalogue, start=prior)
        assert found is not None
        prior = found.prior
    assert prior.own < 4 * LOOSEST.own
    assert all(getattr(prior, name) >= getattr(LOOSEST, name) for names in ORDER for name in names)


def test_tastes_get_looser_where_every_product_is_asked_about() -> None:
    """Clicks without lists are chosen of all products, so what predicts left-out ones ruins no rest."""
    shop, rng = PlantedShop(queries=200), np.random.default_rng(2)
    tastes = 3.0 * rng.standard_normal((shop.queries.shape[1], shop.queries.shape[1]))
    scores = (NATS_PER_COSINE * shop.queries + shop.queries @ tastes) @ shop.catalogue.vectors.T
    clicks = 20 * softmax(scores, axis=1)
    shown = cells_of([(query, p, float(count), 1.0) for query, row in enumerate(clicks) for p, count in enumerate(row)])
    widths = {}
    for cells in (shown, replace(shown, width=clicks.shape[1])):
        prior = Prior()
        for _ in range(3):
            found = learn_prior(cells, shop.queries, shop.catalogue, start=prior)
            assert found is not None
            prior = found.prior
        widths[cells.width] = prior.taste
    assert widths[clicks.shape[1]] < LOOSEST.taste <= widths[0]


def test_widths_move_in_whole_steps_and_not_too_far() -> None:
    """One search moves each width by a power of the factor, at most so many steps."""
    found, start = learned(PlantedShop(quality_nats=1.0), 3).prior, Prior()
    moved = np.array(found) != HELD
    steps = np.log(np.array(found)[moved] / np.array(start)[moved]) / np.log(FACTOR)
    assert steps == pytest.approx(np.round(steps), abs=1e-9)
    assert np.abs(steps).max() <= MAX_MOVES + 1e-9


@pytest.mark.parametrize("seed", [1, 3])
def test_what_all_queries_prefer_is_held_as_the_tastes_are(seed: int) -> None:
    """However well a direction that all queries share tells what is shown, it is no looser beside the tastes."""
    found = learned(PlantedShop(seed=seed, quality_nats=1.0), seed + 100).prior
    assert found.taste < HELD
    assert found.common / found.taste == pytest.approx(Prior().common / Prior().taste)


class Foretold:
    """Left-out queries that gain .02 nats of tastes in the mean, and differ the more the looser these are."""

    says = np.ones(100)
    untrained = np.full(100, 2.0)

    def surprise(self, prior: Prior) -> np.ndarray:
        """Of each query."""
        if prior.taste == HELD:
            return np.full(100, 1.0)
        return np.asarray(0.98 + 9.0 / prior.taste * np.resize([1.0, -1.0], 100))

    def clicks(self, prior: Prior) -> np.ndarray:
        """Of each cell."""
        return np.ones(100)


def test_tastes_that_gain_surely_only_if_they_are_tighter_get_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not held at 0 because they are unsure at the width that is best in the mean."""
    monkeypatch.setattr(priors, "_LeftOut", lambda *_: Foretold())
    shop = PlantedShop()
    found = learn_prior(shop.cells(LISTS), shop.queries, shop.catalogue, start=Prior())
    assert found is not None
    assert found.prior.taste == pytest.approx(Prior().taste * FACTOR)


def test_a_part_from_which_nothing_is_gained_is_held() -> None:
    """Where only products' own quality differs, words and tastes stay at 0, and the next search may find them."""
    shop = PlantedShop(quality_nats=1.0)
    cells = shop.cells(4 * LISTS, seed=103)
    found = learn_prior(cells, shop.queries, shop.catalogue, start=Prior())
    assert found is not None
    assert found.prior.own < Prior().own
    assert HELD in found.prior
    weights = Problem(cells, shop.queries, shop.catalogue).solve(found.prior).weights
    for name in ("words", "taste", "common"):
        if getattr(found.prior, name) == HELD:
            assert np.abs(getattr(weights, name)).max() < 1e-3
    assert np.abs(weights.own).max() > 0.5
    assert HELD not in found.found


def test_a_part_that_was_held_is_sought_where_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unsure this time keeps its width for the next search, and does not begin tight again."""
    looser = Prior()._replace(words=Prior().words / FACTOR)
    monkeypatch.setattr(priors, "_LeftOut", lambda *_: Unmoved())
    shop, learner = PlantedShop(), PreferenceLearner()
    gain = Gain(0.1, 0.01)
    learner.learned = Learned(looser, gain, gain, gain, found=looser)
    learner.learn_prior(shop.cells(LISTS), shop.queries, shop.catalogue, LISTS)
    assert learner.learned.prior.words == HELD
    assert learner.learned.found == looser
    assert PreferenceLearner.from_state(learner.state()).learned == learner.learned


class Unmoved:
    """Left-out queries that no width tells anything."""

    says = np.ones(100)
    untrained = np.full(100, 2.0)

    def surprise(self, prior: Prior) -> np.ndarray:
        """Of each query."""
        return self.untrained

    def clicks(self, prior: Prior) -> np.ndarray:
        """Of each cell."""
        return self.says


def test_too_few_queries_tell_nothing() -> None:
    """One query below the least there is no answer, from the least on there is one."""
    shop = PlantedShop(queries=MIN_QUERIES)
    rows = [(query, p, float(p == query % 3), 1.0) for query in range(MIN_QUERIES) for p in range(3)]
    assert learn_prior(cells_of(rows[3:]), shop.queries, shop.catalogue, start=Prior()) is None
    assert learn_prior(cells_of(rows), shop.queries, shop.catalogue, start=Prior()) is not None
    assert learn_prior(cells_of([]), shop.queries, shop.catalogue, start=Prior()) is None


@pytest.mark.parametrize("as_grid", [True, False])
@pytest.mark.parametrize("missing", [[0], [1], [0, 1], [1, 2, 3, 4]])
def test_a_fold_without_queries_is_no_failure(missing: list[int], as_grid: bool) -> None:
    """By chance all clicked queries may lie in some of the folds."""
    shop = PlantedShop(queries=200)
    queries = np.arange(200)[~np.isin(fold_of(np.arange(200)), missing)][:MIN_QUERIES].tolist()
    cells = cells_of([(query, p, float(p == query % 3), 1.0) for query in queries for p in range(3)])
    evidence: Cells = replace(cells, width=3) if as_grid else cells
    found = learn_prior(evidence, shop.queries, shop.catalogue, start=Prior())
    assert found is not None
    assert np.isfinite([found.gain, found.mix, found.rest]).all()
    if len(missing) == FOLDS - 1:
        assert not found.helps


@pytest.mark.parametrize(
    ("errors", "share"),
    [(-9, 0), (0, 0), (NO_ERRORS, 0), ((NO_ERRORS + ALL_ERRORS) / 2, 0.5), (ALL_ERRORS, 1), (50, 1)],
)
def test_the_share_that_is_released_grows_with_certainty(errors: float, share: float) -> None:
    """What shoppers see of it depends on by how many standard errors the gain lies above 0."""
    assert Gain(0.1 * errors, 0.1).share == pytest.approx(share)


def test_either_part_helps_alone() -> None:
    """What words count may be released without the rest, and the rest without it."""
    sure, nothing = Gain(0.5, 0.01), Gain(0.0, 0.01)
    for mix, rest, helps in ((sure, nothing, True), (nothing, sure, True), (nothing, nothing, False)):
        assert Learned(Prior(), sure, mix, rest).helps is helps


@pytest.mark.parametrize(("odds", "share"), [(-3, 1 / 3), (1, 0.731), (50, 1)])
def test_of_what_gains_as_much_is_shown_as_it_is_likely_to_be_true(odds: float, share: float) -> None:
    """Unless the errors alone allow more; nothing if it does not gain, or all together not; and by errors of tastes."""
    sure, unsure = Gain(0.5, 0.01), Gain(0.1, 0.1)
    assert Learned(Prior(taste=6.0), sure, sure, unsure, odds).rest_share == pytest.approx(1 / 3)
    assert Learned(Prior(), sure, sure, unsure, odds).rest_share == pytest.approx(share, abs=1e-3)
    assert Learned(Prior(), Gain(0.0, 0.01), sure, unsure, odds).rest_share == 0
    assert Learned(Prior(), sure, sure, Gain(LEAST_RELEASED, 0.1), odds).rest_share == 0


@pytest.mark.parametrize(("mean", "odds"), [(0.1, np.inf), (0.0, 0.0), (-0.1, -np.inf)])
def test_a_gain_without_error_is_sure(mean: float, odds: float) -> None:
    """Whatever is expected of it; if nothing changes, nothing is known."""
    assert odds_of(Gain(mean, 0.0), expected=0.01) == odds


@pytest.mark.parametrize(("quality_nats", "low", "high"), [(1.0, 3.0, np.inf), (0.0, -np.inf, 1.0)])
def test_the_odds_tell_a_planted_quality_from_nothing(quality_nats: float, low: float, high: float) -> None:
    """In shops of either kind, most of them."""
    found = [learned(PlantedShop(seed=seed, quality_nats=quality_nats), seed + 100).odds for seed in range(8)]
    assert low < np.median(found) < high


def test_a_gain_too_small_to_matter_is_not_released() -> None:
    """However certain, what gains next to nothing stays where it can do no harm."""
    assert Gain(LEAST_RELEASED, 1e-9).share == 0
    assert Gain(2 * LEAST_RELEASED, 1e-9).share == 1
    assert Gain(2 * LEAST_RELEASED, 0.0).share == 1


def test_no_gain_without_error_does_not_help() -> None:
    """A model that predicts exactly as the text does is not released."""
    assert Gain(0.0, 0.0).share == 0

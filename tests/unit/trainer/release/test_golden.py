"""The shop's judged queries: measured as the peer library does, ranked as search does, and no release may harm them."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.catalog import PointPayload, point_id
from contracts.golden import GoldenQuery, Judgment
from contracts.releases import manifest_of
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import (
    DIM,
    EVERY_FOURTH,
    PRODUCTS,
    QUERIES,
    START_MS,
    FakeProducts,
    World,
    new_learner,
    records,
)
from towers.features import FeatureSpace, key_of
from towers.lexical import read_query, word_vector
from towers.model import NATS_PER_COSINE, Mix, ProductTower, QueryTower, Rate
from towers.word_index import WordIndex
from trainer.learner import Learner, Towers
from trainer.release.golden import GOLDEN_NDCG, GoldenBar, GoldenCheck, GoldenSample, ndcg
from trainer.release.planning import Earlier, PlannedRelease, plan_release
from trainer.release.safety import first_safe

UNTRAINED = Towers.untrained(DIM)
NDCG = ir_measures.nDCG(gains={grade: 2**grade - 1 for grade in range(5)}) @ 10
LIKED = tuple(PRODUCTS[number] for number in sorted(EVERY_FOURTH))
OTHERS = tuple(name for number, name in enumerate(PRODUCTS) if number not in EVERY_FOURTH)


def judged(grades: Mapping[str, Mapping[str, int]]) -> dict[str, GoldenQuery]:
    """Return golden queries from grades by product by query."""
    return {
        query: GoldenQuery(
            query=query, judgments=tuple(Judgment(product_id=name, grade=grade) for name, grade in found.items())
        )
        for query, found in grades.items()
    }


def graded(queries: int = 12) -> dict[str, dict[str, int]]:
    """Return so many queries for which what shoppers like is good, and other products are poor or wrong."""
    return {
        query: dict.fromkeys(LIKED[number % 3 :: 3], 3) | dict.fromkeys(OTHERS[number::4], number % 2)
        for number, query in enumerate(QUERIES[:queries])
    }


@pytest.fixture(scope="module")
def learner() -> Learner:
    """Give a learner that has seen what shoppers like."""
    learner = new_learner()
    for record in records(0, 300):
        learner.evidence.take_list(record.content, time_ms=record.time_ms)  # type: ignore[arg-type]
    return learner


@pytest.fixture(scope="module")
def trained(learner: Learner) -> Towers:
    """Give what it learned."""
    return learner.solve(UNTRAINED).towers


def pushed(nats: float, names: tuple[str, ...] = OTHERS) -> Towers:
    """Return towers that say nothing but that some products are by so many nats better."""
    keys = np.array(sorted(map(key_of, names)), dtype=np.uint64)
    own = np.full(len(keys), nats, dtype=np.float32)
    nothing = FeatureSpace(np.zeros(0, np.uint64), np.zeros(0, np.float32))
    return UNTRAINED._replace(product=ProductTower(nothing, np.zeros(0, np.float32), keys, own, own, 0.1, 100.0))


def sampled(learner: Learner, grades: Mapping[str, Mapping[str, int]]) -> GoldenSample:
    """Return what these judgments give to measure by."""
    queries = judged(grades)
    found = GoldenCheck(lambda: queries).sample(learner)
    assert found is not None
    return found


def by_query(sample: GoldenSample, towers: Towers) -> dict[str, float]:
    """Return the nDCG of each query."""
    found = sample.ndcg(towers.query, sample.quality(towers.product))
    return dict(zip(sample.texts, found.tolist(), strict=True))


def by_peer(grades: Mapping[str, Mapping[str, int]], scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the nDCG of each query as trec_eval has it."""
    return {one.query_id: one.value for one in NDCG.iter_calc(grades, scores)}


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=5), st.randoms())
def test_ndcg_is_that_of_the_peer_library(grades: list[list[int]], random: Random) -> None:
    """Whatever the grades, with more and fewer than ten products; the peer says 0 for a query without any gain."""
    grades = [found for found in grades if any(found)] or [[4, 0]]
    scores = [random.sample(range(100), len(found)) for found in grades]
    names = {
        f"q{query}": {f"p{place}": grade for place, grade in enumerate(found)} for query, found in enumerate(grades)
    }
    runs = {
        f"q{query}": {f"p{place}": float(score) for place, score in enumerate(found)}
        for query, found in enumerate(scores)
    }
    starts = np.cumsum([0, *map(len, grades)])[:-1]
    found = ndcg(np.concatenate(scores).astype(float), 2.0 ** np.concatenate(grades) - 1, starts)
    assert found.tolist() == pytest.approx([by_peer(names, runs)[query] for query in names])


def test_products_are_ranked_as_search_ranks_them(learner: Learner, trained: Towers) -> None:
    """By the dot product of both vectors, what the mix gives the best match of words, and what the query remembers."""
    rng = np.random.default_rng(0)
    grades = {query: dict(zip(PRODUCTS, rng.integers(0, 5, len(PRODUCTS)).tolist(), strict=True)) for query in QUERIES}
    mix = Mix(short=Rate(9.0, 1.0, 10.0))
    towers = trained._replace(query=replace(trained.query, mix=mix))
    titled = [PointPayload.model_construct(title=name) for name in PRODUCTS]
    index = WordIndex([word_vector("", product) for product in titled])
    found = learner.products.look(PRODUCTS)
    vectors = np.hstack([found.vectors, towers.product.quality(PRODUCTS, found.features)[:, None] / NATS_PER_COSINE])
    runs = {}
    for query, judged in grades.items():
        read = read_query(query)
        words = np.array(mix.nats(read.kind, index.scores(read.words).tolist())) / NATS_PER_COSINE
        chosen = towers.query.memory.nats_of(query)
        memory = np.array([chosen.get(point_id(name), 0.0) for name in PRODUCTS]) / NATS_PER_COSINE
        scores = vectors @ towers.query.vectors(learner.encode(query)[None])[0] + words + memory
        runs[query] = {name: float(scores[PRODUCTS.index(name)]) for name in judged}
    assert by_query(sampled(learner, grades), towers) == pytest.approx(by_peer(grades, runs), abs=1e-6)


def test_a_release_that_ranks_judged_products_better_passes(learner: Learner, trained: Towers) -> None:
    """Its value is the mean over queries, and the limit lies below what the text alone reaches."""
    sample = sampled(learner, graded())
    verdict = first_safe(UNTRAINED, trained, learner.sample(), golden=sample, overlap=0.0)
    assert (verdict.towers, verdict.share) == (trained, 1.0)
    check = verdict.checks[-1]
    before, after = (np.array(list(by_query(sample, towers).values())) for towers in (UNTRAINED, trained))
    error = np.std(after - before, ddof=1) / np.sqrt(12)
    assert (check.name, check.passed) == (GOLDEN_NDCG, True)
    assert check.value == pytest.approx(after.mean())
    assert check.limit == pytest.approx(0.99 * before.mean() - error)
    assert check.value > before.mean() + 0.03
    assert verdict.golden == sample.golden
    assert (sample.golden.queries, sample.golden.left_out) == (12, 0)


def test_a_release_that_harms_judged_queries_is_refused(learner: Learner) -> None:
    """Not even an eighth of the way is let out if that harms as well."""
    verdict = first_safe(UNTRAINED, pushed(80.0), learner.sample(), golden=sampled(learner, graded()), overlap=0.0)
    assert verdict.towers is None
    assert [check.name for check in verdict.checks if not check.passed] == [GOLDEN_NDCG]


def test_what_is_harmful_whole_is_let_out_in_part(learner: Learner) -> None:
    """The largest share of the way that the judged queries allow is taken."""
    sample = sampled(learner, graded())
    wanted = pushed(1.0)
    assert not GoldenBar.of(sample, UNTRAINED).check(wanted).passed
    verdict = first_safe(UNTRAINED, wanted, learner.sample(), golden=sample, overlap=0.0)
    assert verdict.towers is not None
    assert verdict.share < 1
    assert verdict.checks[-1].passed


def test_the_bar_is_the_higher_of_untrained_and_in_force(learner: Learner, trained: Towers) -> None:
    """A release must neither be worse than the text alone, nor worse than what is served; what mends that may pass."""
    sample = sampled(learner, graded())
    over_bad = GoldenBar.of(sample, pushed(8.0))
    assert over_bad.before.tolist() == list(by_query(sample, UNTRAINED).values())
    assert not over_bad.check(pushed(80.0)).passed
    assert over_bad.check(pushed(4.0)).value < over_bad.before.mean()
    assert over_bad.check(pushed(4.0)).passed
    over_good = GoldenBar.of(sample, trained)
    assert over_good.before.tolist() == list(by_query(sample, trained).values())
    assert not over_good.check(UNTRAINED).passed
    assert over_good.check(trained).passed


@pytest.mark.parametrize("queries", [2, 5, 30])
def test_harm_to_one_query_holds_nothing_back_and_harm_to_all_does(learner: Learner, queries: int) -> None:
    """With few queries 1 % is noise: the limit leaves one standard error, which a single query never exceeds."""
    grades = {query: {LIKED[number % 5]: 4, OTHERS[number % 20]: 0} for number, query in enumerate(QUERIES[:queries])}
    grades[QUERIES[0]] = {LIKED[9]: 4, OTHERS[29]: 0}
    sample = sampled(learner, grades)
    best = GoldenBar.of(sample, pushed(80.0, LIKED))
    assert best.before.tolist() == [1.0] * queries
    one = best.check(pushed(80.0, (*LIKED[:9], OTHERS[29])))
    assert one.value == pytest.approx(1 - (1 - 1 / np.log2(3)) / queries)
    assert one.passed
    assert not best.check(pushed(80.0)).passed


def test_what_says_nothing_is_left_out_and_counted(learner: Learner) -> None:
    """Products that the catalogue does not know, and queries whose known products all have one grade."""
    grades = graded(3) | {
        "unknown": {"P-404": 4, "P-405": 0},
        "one known": {LIKED[0]: 4, "P-404": 0},
        "all alike": {LIKED[0]: 2, LIKED[1]: 2},
        "all wrong": {LIKED[0]: 0, LIKED[1]: 0},
    }
    grades[QUERIES[0]]["P-406"] = 4
    sample = sampled(learner, grades)
    assert sorted(sample.texts) == sorted(QUERIES[:3])
    assert (sample.golden.queries, sample.golden.left_out) == (3, 4)
    assert sample.golden.judgments == sum(map(len, graded(3).values()))
    assert by_query(sample, UNTRAINED) == by_query(sampled(learner, graded(3)), UNTRAINED)


@pytest.mark.parametrize("grades", [{}, graded(1), {"unknown": {"P-404": 4, "P-405": 0}} | graded(1)])
def test_without_judged_queries_to_compare_there_is_no_check(
    learner: Learner, trained: Towers, grades: dict[str, dict[str, int]]
) -> None:
    """Absent, and not passed: of one query nobody can tell how differently queries are moved."""
    found = plan(learner, trained, judged(grades))
    (value,) = found.values.values()
    assert manifest_of(value).golden is None
    assert GOLDEN_NDCG not in {check.name for check in manifest_of(value).checks}


def plan(learner: Learner, towers: Towers, queries: Mapping[str, GoldenQuery]) -> PlannedRelease:
    """Plan a query release under these golden queries."""
    found = plan_release(
        learner, towers, earlier=Earlier(UNTRAINED, UNTRAINED), with_products=False, encoder=TinyEncoder(DIM),
        now_ms=START_MS, golden=GoldenCheck(lambda: queries), overlap=0.0,
    )  # fmt: skip
    assert found is not None
    return found


def test_a_manifest_says_by_which_judgments_it_was_measured(learner: Learner, trained: Towers) -> None:
    """Equal judgments give equal bytes, in whatever order they came; another grade gives another digest."""
    queries = judged(graded())
    (value,) = plan(learner, trained, queries).values.values()
    turned = {
        key: query.model_copy(update={"judgments": query.judgments[::-1]}) for key, query in reversed(queries.items())
    }
    assert [*plan(learner, trained, turned).values.values()] == [value]
    manifest = manifest_of(value)
    assert manifest.golden is not None
    assert manifest.golden.queries == 12
    assert [check.passed for check in manifest.checks if check.name == GOLDEN_NDCG] == [True]
    other = judged(graded() | {QUERIES[0]: {LIKED[0]: 4, OTHERS[0]: 1}})
    (changed,) = plan(learner, trained, other).values.values()
    other_golden = manifest_of(changed).golden
    assert other_golden is not None
    assert other_golden.sha256 != manifest.golden.sha256


def test_a_refusal_names_the_check(learner: Learner) -> None:
    """Nothing leaves, and the numbers are those that people look for."""
    away = replace(QueryTower.untrained(DIM), common=-50.0 * learner.products.look(LIKED).vectors.mean(axis=0))
    found = plan(learner, Towers(away, UNTRAINED.product), judged(graded()))
    assert found.values == {}
    assert found.refusal is not None
    assert found.refusal.startswith(GOLDEN_NDCG)


def test_queries_are_looked_up_again_only_when_something_changed() -> None:
    """Another catalogue or golden set is seen at once, and gives what a new trainer would find; vectors always are."""
    encoder = TinyEncoder(DIM)
    learner = new_learner(products=FakeProducts(encoder, PRODUCTS[:30]), encoder=encoder)
    queries = judged(graded())
    check = GoldenCheck(lambda: queries)
    first = check.sample(learner)
    assert first is not None
    encoded = len(encoder.encoded)
    again = check.sample(learner)
    assert again is not None
    assert again.asked.matches is first.asked.matches
    assert len(encoder.encoded) == encoded
    learner.products = FakeProducts(encoder)
    grown = check.sample(learner)
    assert grown is not None
    assert grown.golden.judgments > first.golden.judgments
    queries = judged(graded(5))
    fewer = check.sample(learner)
    assert fewer is not None
    assert fewer.golden.queries == 5
    assert by_query(fewer, UNTRAINED) == by_query(sampled(learner, graded(5)), UNTRAINED)


def test_a_trainer_that_was_interrupted_releases_the_same_bytes() -> None:
    """The golden set is read again from its topic: with the same one a crash changes nothing."""
    queries = judged(graded())

    def released(*, restart: bool) -> dict[str, bytes]:
        world = World(200, golden=GoldenCheck(lambda: queries))
        world.run_once(after_s=15)
        if restart:
            world.start()
        world.progress.last_query_release, world.progress.fence = 10, 5
        world.send(200, 300)
        world.run_once(after_s=15)
        return {key: value for key, value in world.models.values.items() if key == "query-11"}

    whole, restarted = released(restart=False), released(restart=True)
    assert whole
    assert manifest_of(whole["query-11"]).golden is not None
    assert whole == restarted

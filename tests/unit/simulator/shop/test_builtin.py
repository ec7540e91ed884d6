"""The built-in world keeps what the demo promises, and its judgments follow what a query says and its purpose wants."""

import json
from collections import Counter

import numpy as np
import pytest

from contracts.catalog import CATALOG_CHANGE
from contracts.wire import validate
from simulator.shop.builtin import FEWEST_ANSWERS, MAX_JUDGED, Judge, builtin_world, grades_by_rank, kind_of_wish
from simulator.shop.catalogue import CatalogueMaker, Made
from simulator.shop.lexicon import lexicon
from simulator.shop.questions import CLASS_SIZES, Intent, QuestionMaker
from simulator.shop.world import WORLD_EPOCH_MS, World


def test_the_same_seed_makes_the_same_world(built_in: World) -> None:
    """A seed decides everything; another seed makes another shop."""
    assert builtin_world(1) == built_in
    assert builtin_world(2) != built_in


def test_every_product_keeps_the_contract(built_in: World) -> None:
    """The catalogue is at least 5,000 product messages that the collector would accept, with ids of their own."""
    for product in built_in.products:
        validate(dict(product), CATALOG_CHANGE)
    assert len(built_in.products) >= 5_000
    assert len(built_in.by_product_id) == len(built_in.products)


def test_the_catalogue_is_a_shops(built_in: World) -> None:
    """Brands, variants, sellers, locales, stock, priority SKUs and recent launches are all there."""
    products = built_in.products
    variants = Counter(product["parent_id"] for product in products)
    fresh = [product for product in products if product["launched_at"] > WORLD_EPOCH_MS - 60 * 86_400_000]
    assert len({product["brand"] for product in products}) >= 60
    assert sum(count > 1 for count in variants.values()) > 500
    assert len({product["seller_id"] for product in products}) >= 20
    assert {product["locale"] for product in products} == {"en-IN", "hi-IN"}
    assert 0.9 < np.mean([product["in_stock"] for product in products]) < 0.98
    assert 0.02 < np.mean([product["priority"] > 0 for product in products]) < 0.1
    assert len(fresh) > 200
    assert all(product["launched_at"] < WORLD_EPOCH_MS for product in products)


def test_variants_differ_in_colour_only_in_their_title(built_in: World) -> None:
    """Products of one parent are the same model: same brand, type and description."""
    groups: dict[str, list[dict[str, object]]] = {}
    for product in built_in.products:
        groups.setdefault(str(product["parent_id"]), []).append(dict(product))
    for group in groups.values():
        assert len({str(product["description"]) for product in group}) == 1
        assert len({str(product["title"]) for product in group}) == len(group)


@pytest.mark.parametrize("query_class", CLASS_SIZES)
def test_every_class_of_query_stands_in_both_splits(built_in: World, query_class: str) -> None:
    """No class is missing from training or from the test."""
    for split in ("train", "test"):
        assert any(query.query_class == query_class and query.split == split for query in built_in.queries)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_splits_are_apart_and_large_enough(seed: int) -> None:
    """At least 600 queries, at least 200 of them kept for the test, and no text stands in both splits."""
    world = builtin_world(seed)
    train, test = ({query.query for query in world.of_split(split)} for split in ("train", "test"))
    assert len(world.queries) >= 600
    assert len(test) >= 200
    assert not train & test
    assert len({query.query_id for query in world.queries}) == len(world.queries)


def test_no_meaning_stands_in_both_splits() -> None:
    """What a test query means was never typed in other words."""
    questions = QuestionMaker(lexicon(), 1, CatalogueMaker(lexicon(), 1).make()).make()
    meanings = {split: {one.intent for one in questions if one.query.split == split} for split in ("train", "test")}
    assert not meanings["train"] & meanings["test"]


def test_every_query_has_an_answer_and_few_enough_judgments(built_in: World) -> None:
    """Each query has a best product, and the judgments stay a small file."""
    sizes = [len(built_in.judgments[query.query_id]) for query in built_in.queries]
    assert min(sizes) >= FEWEST_ANSWERS
    assert max(sizes) <= MAX_JUDGED
    assert sum(sizes) <= 400_000
    for judged in built_in.judgments.values():
        assert max(judgment.grade for judgment in judged.values()) == 4
        assert all(1 <= judgment.grade <= 4 and 0 < judgment.click_probability() <= 0.9 for judgment in judged.values())


def test_judgments_name_products_of_the_catalogue(built_in: World) -> None:
    """No judgment points outside the catalogue."""
    judged = {product_id for judgments in built_in.judgments.values() for product_id in judgments}
    assert judged <= set(built_in.by_product_id)


def test_attraction_grows_with_the_grade(built_in: World) -> None:
    """Better products are clicked more often when looked at."""
    by_grade: dict[int, list[float]] = {}
    for judgments in built_in.judgments.values():
        for judgment in judgments.values():
            by_grade.setdefault(judgment.grade, []).append(judgment.click_probability())
    means = [float(np.mean(by_grade[grade])) for grade in (1, 2, 3, 4)]
    assert means == sorted(means)
    assert means[3] > 5 * means[0]


def test_accessories_never_answer_a_query(built_in: World) -> None:
    """Who asks for a fridge does not want its stand, however alike the texts are."""
    for judgments in built_in.judgments.values():
        for product_id in judgments:
            assert built_in.by_product_id[product_id]["attributes"]["type"] != "Accessory"


def test_the_hidden_numbers_stay_hidden() -> None:
    """Brand quality, traits and worth stand in no product message."""
    made = CatalogueMaker(lexicon(), 1).make()
    for one in made[:500]:
        assert not {"quality", "traits", "worth", "value", "appeal", "assured"} & set(one.message)
        assert one.accessory or str(one.appeal) not in json.dumps(one.message)
        if 0 < one.quality < 1:
            assert str(one.quality) not in json.dumps(one.message)


def test_good_brands_are_preferred_in_unseen_queries_too(built_in: World) -> None:
    """The brands that train queries prefer are those that test queries prefer: the law is the world's."""
    gains: dict[str, dict[str, list[int]]] = {"train": {}, "test": {}}
    for query in built_in.queries:
        for product_id, judgment in built_in.judgments[query.query_id].items():
            brand = str(built_in.by_product_id[product_id]["brand"])
            gains[query.split].setdefault(brand, []).append(2**judgment.grade - 1)
    brands = sorted(set(gains["train"]) & set(gains["test"]))
    train, test = ([float(np.mean(gains[split][brand])) for brand in brands] for split in ("train", "test"))
    assert np.corrcoef(train, test)[0, 1] > 0.7


@pytest.fixture(scope="module")
def made() -> tuple[Made, ...]:
    """Return the catalogue of seed 1 with its hidden facts."""
    return CatalogueMaker(lexicon(), 1).make()


@pytest.fixture(scope="module")
def judge(made: tuple[Made, ...]) -> Judge:
    """Return the judge of that catalogue."""
    return Judge(lexicon(), made)


def _best(judge: Judge, made: tuple[Made, ...], intent: Intent) -> list[Made]:
    """Return the products that an intent values most."""
    by_id = {one.message["product_id"]: one for one in made}
    return [by_id[product_id] for product_id, judgment in judge.judge(intent).items() if judgment.grade == 4]


def test_a_strict_wish_admits_nothing_else(judge: Judge, made: tuple[Made, ...]) -> None:
    """After "only" every product of grade 1 or more meets the constraint."""
    by_id = {one.message["product_id"]: one for one in made}
    judged = judge.judge(Intent(("refrigerator",), type_name="Double Door", strict=True))
    assert judged
    assert {by_id[product_id].type_name for product_id in judged} == {"Double Door"}


def test_a_loose_wish_ranks_the_rest_lower(judge: Judge, made: tuple[Made, ...]) -> None:
    """Without "only" other types may answer, but none is exactly right."""
    by_id = {one.message["product_id"]: one for one in made}
    judged = judge.judge(Intent(("refrigerator",), type_name="Double Door"))
    assert {by_id[product_id].type_name for product_id in judged} > {"Double Door"}
    assert {one.type_name for one in _best(judge, made, Intent(("refrigerator",), "Double Door"))} == {"Double Door"}


@pytest.mark.parametrize(
    ("family", "use", "trait"),
    [
        ("washing_machine", "hard_water", "hard_water"),
        ("headphones", "light_sleeper", "quiet"),
        ("laptop", "gamer", "gaming"),
    ],
)
def test_a_purpose_wants_its_traits_in_every_family(
    judge: Judge, made: tuple[Made, ...], family: str, use: str, trait: str
) -> None:
    """The best products for a purpose have more of its trait than the family on average."""
    number = [one.key for one in lexicon().families].index(family)
    column = lexicon().traits.index(trait)
    average = np.mean([one.traits[column] for one in made if one.family == number and not one.accessory])
    assert np.mean([one.traits[column] for one in _best(judge, made, Intent((family,), uses=(use,)))]) > average + 0.3


def test_quality_decides_where_the_query_says_little(judge: Judge, made: tuple[Made, ...]) -> None:
    """For a bare family name the best products come from better brands."""
    number = [one.key for one in lexicon().families].index("television")
    average = np.mean([one.quality for one in made if one.family == number])
    assert np.mean([one.quality for one in _best(judge, made, Intent(("television",)))]) > average + 0.2


def test_new_launch_and_assured_wishes_are_heard(judge: Judge, made: tuple[Made, ...]) -> None:
    """Who asks for the latest gets young products, who asks for assured ones gets priority SKUs."""
    latest = _best(judge, made, Intent(("smartphone",), new=True))
    assured = _best(judge, made, Intent(("smartphone",), assured=True))
    phones = [one for one in made if one.type_name == "5G"]
    assert np.mean([one.age_days for one in latest]) < 0.5 * np.mean([one.age_days for one in phones])
    assert np.mean([one.assured for one in assured]) > 3 * np.mean([one.assured for one in phones])


def test_a_price_cap_puts_dearer_products_below_grade_four(judge: Judge, made: tuple[Made, ...]) -> None:
    """What costs more than was said is never exactly right."""
    best = _best(judge, made, Intent(("laptop",), cheap=True, price_cap=40_000.0))
    assert best
    assert max(one.price for one in best) <= 40_000.0


def test_a_wish_without_candidates_has_no_judgments(judge: Judge) -> None:
    """Nothing answers a brand that the family does not have."""
    assert judge.judge(Intent(("laptop",), brand="Annapoorna", strict=True)) == {}


def test_a_model_number_means_that_model(judge: Judge, made: tuple[Made, ...]) -> None:
    """Who types one wants it in any colour; the brand's others are poor substitutes, and other brands none."""
    model = next(one for one in made if one.number)
    family = lexicon().families[model.family]
    judged = judge.judge(Intent((family.key,), number=model.number, brand=model.brand))
    by_id = {str(one.message["product_id"]): one for one in made}
    assert {by_id[one].number for one, judgment in judged.items() if judgment.grade == 4} == {model.number}
    assert {judgment.grade for one, judgment in judged.items() if by_id[one].number != model.number} == {1}
    assert {by_id[one].brand for one in judged} == {model.brand}


def test_a_model_number_is_one_models_and_stands_in_its_titles(made: tuple[Made, ...]) -> None:
    """No two models share one, and every colour's title shows it."""
    parents: dict[str, set[str]] = {}
    for one in made:
        if not one.accessory:
            parents.setdefault(one.number, set()).add(one.message["parent_id"])
            assert f" {one.number} " in one.message["title"]
    assert all(len(found) == 1 for found in parents.values())


def test_no_word_tells_a_models_appeal(made: tuple[Made, ...]) -> None:
    """Its words predict it no better than chance: brands and tiers do not differ, prices do not follow it."""
    models = {one.number: one for one in made if not one.accessory}.values()
    appeal = np.array([one.appeal for one in models])
    for told in ([one.quality for one in models], [one.price for one in models], [one.age_days for one in models]):
        assert abs(np.corrcoef(appeal, told)[0, 1]) < 0.06
    assert appeal.std() == pytest.approx(12**-0.5, abs=0.02)


def test_appeal_decides_between_products_that_read_alike(judge: Judge, made: tuple[Made, ...]) -> None:
    """Among all answers to a bare family name the better half by grade has more of it."""
    number = [one.key for one in lexicon().families].index("television")
    average = np.mean([one.appeal for one in made if one.family == number and not one.accessory])
    assert np.mean([one.appeal for one in _best(judge, made, Intent(("television",)))]) > average + 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_popularity_has_a_head(seed: int) -> None:
    """The ten first queries are typed in a fifth to a third of all searches, no single one in more than a tenth."""
    shares = np.sort([query.popularity for query in builtin_world(seed).of_split("train")])[::-1]
    shares /= shares.sum()
    assert 0.2 < shares[:10].sum() < 0.34
    assert shares[0] < 0.1


def test_grades_fall_with_the_rank() -> None:
    """Bands are filled from the top and every product gets a grade."""
    grades = grades_by_rank(np.linspace(1, 0, 60), relevant=50)
    rounded = [int(np.floor(grade + 0.5)) for grade in grades]
    assert len(grades) == 60
    assert grades == sorted(grades, reverse=True)
    assert [rounded.count(grade) for grade in (4, 3, 2, 1)] == [10, 15, 17, 18]


@pytest.mark.parametrize(
    ("intent", "expected"),
    [
        (Intent(("laptop",)), "general"),
        (Intent(("laptop",), uses=("gamer",)), "uses"),
        (Intent(("laptop",), cheap=True), "cheap"),
        (Intent(("laptop",), new=True, cheap=True), "new"),
        (Intent(line="Nova"), "line"),
        (Intent(("laptop",), assured=True), "assured"),
    ],
)
def test_each_intent_has_one_kind_of_wish(intent: Intent, expected: str) -> None:
    """The strongest word of a query decides what is weighed."""
    assert kind_of_wish(intent) == expected

"""The hidden utility follows what a query says and what its purpose wants."""

import numpy as np
import pytest

from simulator.shop.catalogue import CatalogueMaker, Made
from simulator.shop.lexicon import lexicon
from simulator.shop.questions import Intent
from simulator.shop.utility import Judge, grades_by_rank, kind_of_wish


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

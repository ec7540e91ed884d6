"""Worlds whose law is known: what shoppers want is likeness and the law, typed and untyped queries are apart."""

from typing import Any

import numpy as np
import pytest

from contracts.errors import UsageError
from simulator import made_worlds
from simulator.shop.world import World
from tests.support.tiny_encoder import TinyEncoder

ADJECTIVES = ("quiet", "small", "tall", "red", "fast", "cheap", "double", "smart", "light", "heavy")
THINGS = ("fridge", "oven", "kettle", "phone", "laptop", "camera", "radio", "fan", "lamp", "mixer")
WORDS = tuple(f"{one}{number}" for one in ADJECTIVES for number in range(3))


@pytest.fixture(scope="module")
def source() -> World:
    """Return a world of enough different titles, some of them twice."""
    titles = [f"{one} {two} {thing}" for one in WORDS for two in WORDS[:9] for thing in THINGS if one != two]
    products: list[dict[str, Any]] = [
        {"type": "product", "schema_version": 1, "product_id": f"P-{number}", "version": 1, "title": title}
        | {"brand": "Aa", "price": 3.0}
        for number, title in enumerate([*titles, *titles[:50]])
    ]
    return World(tuple(products), (), {})


def made(law: str, source: World, *, seed: int = 1) -> World:
    """Make a world with the tiny encoder."""
    return made_worlds.make(law, source, TinyEncoder(), seed=seed, cache=None, tell=lambda *_: None)


@pytest.mark.parametrize("law", sorted(made_worlds.LAWS))
def test_world(law: str, source: World) -> None:
    """Each title comes once, alone; no query is both typed and for the test; each has as many right answers as said."""
    world = made(law, source)
    titles = [product["title"] for product in world.products]
    assert len(titles) == len(set(titles))
    assert all("brand" not in product for product in world.products)
    typed, untyped = ({query.query for query in world.of_split(split)} for split in ("train", "test"))
    assert (len(typed), len(untyped), typed & untyped) == (made_worlds.TYPED, made_worlds.NEVER_TYPED, set())
    grades = [list(world.grades(query.query_id).values()) for query in world.queries]
    assert all(found.count(4) == 10 and len(found) == 90 for found in grades)


def test_seed(source: World) -> None:
    """A seed gives the same world each time, another one another world."""
    assert made("words", source) == made("words", source)
    assert made("words", source).judgments != made("words", source, seed=2).judgments


def test_text_says_all(source: World) -> None:
    """Without a law the right answers are those that are most like the query, but for whims."""
    world = made("none", source)
    texts = [str(product["title"]) for product in world.products]
    encoder = TinyEncoder()
    products = encoder.encode(texts)
    place = {str(product["product_id"]): row for row, product in enumerate(world.products)}
    above = []
    for query in world.queries[:40]:
        likeness = products @ encoder.encode([query.query])[0]
        right = [place[one] for one, grade in world.grades(query.query_id).items() if grade == 4]
        above.append(likeness[right].mean() - likeness.mean())
    assert np.mean(above) > 0.2


def test_quality_is_the_product(source: World) -> None:
    """Where products have a worth of their own, the same ones are right for many more queries than by text alone."""
    often = {}
    for law in ("none", "quality"):
        world = made(law, source)
        right = [one for query in world.queries for one, grade in world.grades(query.query_id).items() if grade >= 3]
        counts = np.unique(right, return_counts=True)[1]
        often[law] = counts.max() / len(world.queries)
    assert often["quality"] > 1.5 * often["none"]


def test_rotation_moves_answers(source: World) -> None:
    """A turned taste shares some right answers with the text alone, and not most of them."""
    plain, turned = made("none", source), made("rotation", source)
    shared = [
        len(plain.grades(query.query_id).keys() & turned.grades(query.query_id).keys()) / 90 for query in plain.queries
    ]
    assert 0.02 < float(np.mean(shared)) < 0.6


def test_refusals(source: World) -> None:
    """An unknown law, and titles that give too few queries, are refused with what to do instead."""
    with pytest.raises(UsageError, match="no law magic") as unknown:
        made("magic", source)
    assert "rotation" in str(unknown.value.fix)
    with pytest.raises(UsageError, match="queries of the 670 needed"):
        made("none", World(source.products[:30], (), {}))

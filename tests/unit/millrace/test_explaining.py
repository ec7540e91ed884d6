"""What is said of a product's quality and of a score: the parts add up, and nothing else is counted."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from contracts.pairs import PreferencePair
from indexer.search.arrangement import DAY_MS, Boosts
from indexer.search.retrieval import Hit
from millrace.explaining import Indexed, explain_report, explain_table, product_report, product_table
from tests.support.pairs import preference_pair
from towers.features import FeatureSpace, key_of, keys_of
from towers.memory import QueryMemory
from towers.model import NATS_PER_COSINE, ProductTower, QueryTower, product_vectors

DIM = 4
NOW_MS = 1_795_196_000_000
RNG = np.random.default_rng(5)
VECTOR = np.array([0.6, 0.8, 0.0, 0.0], dtype=np.float32)
PAYLOAD = {
    "product_id": "P-1",
    "version": 3,
    "deleted": 0,
    "title": "Quiet [bold]fridge",
    "brand": "Kelto",
    "price": 9.0,
}


def product_tower(*, own: float = 0.5, brand: float = 2.0, cap: float = 5.0) -> ProductTower:
    """Return a tower that knows a brand and a product."""
    space = FeatureSpace(keys_of(["b:kelto"]), np.ones(1, np.float32))
    values = [np.array([value], np.float32) for value in (brand, own, 0.25)]
    return ProductTower(space, values[0], keys_of(["P-1"]), values[1], values[2], unseen_width=1.0, cap=cap)


def indexed(quality: float = 2.5, payload: dict[str, Any] | None = None) -> Indexed:
    """Return the product as the index holds it."""
    vector = product_vectors(VECTOR[None, :], np.array([quality]))[0]
    return Indexed("P-1", payload or {**PAYLOAD, "product_release": 4}, vector)


def explained(*, pairs: list[PreferencePair] | None = None, boosts: Mapping[str, float] = {}) -> dict[str, Any]:
    """Return the report on a query that has a memory."""
    taste = RNG.standard_normal((DIM, DIM)).astype(np.float32)
    mean = RNG.standard_normal(DIM).astype(np.float32)
    tower = QueryTower(taste, mean / 2, mean, QueryMemory.of([(key_of("quiet fridge"), {"P-1": 1.25})]))
    query = np.array([0.0, 1.0, 0.0, 0.0], dtype=np.float32)
    return explain_report(
        "Quiet fridge!",
        query,
        indexed(),
        words=1.5,
        boosts=boosts,
        query_tower=tower,
        product_tower=product_tower(),
        pairs=pairs or [],
    )


def test_the_terms_add_up_to_the_score_that_the_store_gives() -> None:
    """Text, taste, quality and memory in nats are the parts of the score; what words add is beside it."""
    report = explained()
    assert sum(report["terms"].values()) == pytest.approx(10 * report["score"])
    assert report["terms"]["text"] == pytest.approx(8.0)
    assert report["terms"]["memory"] == pytest.approx(1.25)
    assert report["terms"]["quality"] == pytest.approx(2.5)
    assert report["terms"]["words"] == 1.5
    assert report["quality_parts"] == pytest.approx({"b:kelto": 2.0, "own": 0.5})


def test_boosts_are_terms_of_the_score_that_search_gives() -> None:
    """What a shop adds to a new or preferred product is named, and the terms sum to the score of the answer."""
    boosts = Boosts(launch_nats=1.0, launch_days=10.0, priority_nats=2.0)
    payload = {**PAYLOAD, "launched_at": NOW_MS - 5 * DAY_MS, "priority": 0.25}
    report = explained(boosts=boosts.of(payload, NOW_MS))
    *own, launch, priority = report["terms"].values()
    (served,) = boosts.ranked([Hit(sum(own) / NATS_PER_COSINE, payload)], NOW_MS)
    assert list(report["terms"]) == ["text", "taste", "quality", "memory", "words", "launch", "priority"]
    assert (launch, priority) == (0.5, 0.5)
    assert report["score"] == pytest.approx(served.score)


def test_the_pairs_of_this_query_and_product_are_shown_heaviest_first() -> None:
    """However the query was typed; pairs of other queries or products are not counted."""
    pairs = [
        preference_pair("s-1", query="quiet fridge", chosen="P-1", rejected="P-2", weight=0.5),
        preference_pair("s-2", query="QUIET  fridge", chosen="P-3", rejected="P-1", weight=0.75),
        preference_pair("s-3", query="loud fridge", chosen="P-1", rejected="P-2", weight=1.0),
        preference_pair("s-4", query="quiet fridge", chosen="P-2", rejected="P-3", weight=1.0),
    ]
    found = explained(pairs=pairs)["pairs"]
    assert found["found"] == 2
    assert [(pair["search_id"], pair["weight"]) for pair in found["heaviest"]] == [("s-2", 0.75), ("s-1", 0.5)]


def test_pairs_of_the_same_products_are_one_row() -> None:
    """Repeated, they would hide the others: the row says how many there are, and what they weigh together."""
    pairs = [
        preference_pair(f"s-{n}", query="quiet fridge", chosen="P-1", rejected="P-2", weight=0.5) for n in range(7)
    ]
    pairs.append(preference_pair("s-9", query="quiet fridge", chosen="P-3", rejected="P-1", weight=0.75))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(explain_table(explained(pairs=pairs)))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "pair: " in line
    ]
    assert rows == [["pair: P-1 over P-2", "weight 3.500 in 7 pairs"], ["pair: P-3 over P-1", "weight 0.750"]]


def test_a_products_quality_is_shown_with_its_parts_and_what_changed() -> None:
    """The parts of the release in force, and each one's difference from the release before."""
    report = product_report(indexed(), product_tower(), product_tower(own=0.75, brand=2.0))
    assert report["quality"] == report["stored_quality"] == pytest.approx(2.5)
    assert list(report["parts"]) == ["b:kelto", "own"]
    assert report["changes"] == pytest.approx({"own": -0.25})
    assert (report["width"], report["stored_product_release"]) == (0.25, 4)


def test_the_cap_is_shown_where_it_binds() -> None:
    """Parts may add up to more than the quality that counts."""
    report = product_report(indexed(1.0), product_tower(cap=1.0), None)
    assert report["quality"] == 1.0 < sum(report["parts"].values())
    assert report["changes"] == {}


@pytest.mark.parametrize("shown", ["product", "explain"])
def test_the_shops_texts_are_never_markup(shown: str) -> None:
    """A title with brackets comes out as it was written."""
    table = (
        product_table(product_report(indexed(), product_tower(), None))
        if shown == "product"
        else explain_table(explained())
    )
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(table)
    assert "Quiet [bold]fridge" in captured.get()

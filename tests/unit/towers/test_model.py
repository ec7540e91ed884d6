"""The two towers: one dot product gives the score, and what is not known adds nothing."""

import numpy as np
import pytest

from towers.features import FeatureSpace, key_of, keys_of
from towers.memory import QueryMemory
from towers.model import NATS_PER_COSINE, ProductTower, QueryTower, product_vectors

DIM = 4
RNG = np.random.default_rng(1)


def unit(rows: int) -> np.ndarray:
    """Return random unit rows."""
    drawn = RNG.standard_normal((rows, DIM))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


TEXT_NATS = 6.5
"""What a unit of cosine is worth in the towers of these tests."""


def query_tower(*remembered: str) -> QueryTower:
    """Return a tower of random weights that remembers some queries."""
    taste, common, mean = (RNG.standard_normal(shape).astype(np.float32) for shape in ((DIM, DIM), DIM, DIM))
    memory = QueryMemory.of([(key, {"P-1": 1.5, "P-2": -0.5}) for key in keys_of(remembered).tolist()])
    return QueryTower(taste, common, mean, memory, text=TEXT_NATS)


def product_tower(*, cap: float = 5.0) -> ProductTower:
    """Return a tower that knows a feature and a product."""
    space = FeatureSpace(keys_of(["b:kelto"]), np.array([1.0], np.float32))
    own = np.array([0.5], np.float32)
    return ProductTower(space, np.array([2.0], np.float32), keys_of(["P-1"]), own, own / 2, unseen_width=1.0, cap=cap)


def test_the_dot_product_is_the_score_of_the_model() -> None:
    """(text + taste + common + quality) in nats, a tenth of it; memory rides in no vector."""
    tower, queries, products, quality = query_tower("quiet fridge"), unit(2), unit(3), np.array([0.3, -1.0, 0.0])
    found = tower.vectors(queries) @ product_vectors(products, quality).T * NATS_PER_COSINE
    learned = (queries - tower.mean_query) @ tower.taste + tower.common
    np.testing.assert_allclose(found, (TEXT_NATS * queries + learned) @ products.T + quality, atol=1e-4)


def test_the_terms_of_a_score_sum_to_it() -> None:
    """Text, taste and quality are ten times the dot product; what search adds is beside them."""
    tower, row = query_tower("quiet fridge"), unit(1)[0]
    product = product_vectors(unit(2)[1:], np.array([1.5]))[0]
    terms = tower.terms(row, product, {"memory": 1.0, "words": 2.0, "launch": 0.5})
    assert list(terms) == ["text", "taste", "quality", "memory", "words", "launch"]
    assert terms["quality"] == pytest.approx(1.5)
    assert terms["text"] == pytest.approx(TEXT_NATS * float(row @ product[:-1]), abs=1e-5)
    score = NATS_PER_COSINE * float(tower.vectors(row[None])[0] @ product)
    assert sum(terms.values()) == pytest.approx(score + 3.5, abs=1e-4)


def test_untrained_towers_rank_as_the_text_does() -> None:
    """Release 0 adds nothing on either side."""
    queries, products = unit(2), unit(3)
    quality = ProductTower.untrained().quality(["a", "b", "c"], [keys_of(["b:kelto"])] * 3)
    found = QueryTower.untrained(DIM).vectors(queries) @ product_vectors(products, quality).T
    np.testing.assert_allclose(found, queries @ products.T, atol=1e-6)


def test_a_product_without_clicks_starts_with_the_quality_of_its_words() -> None:
    """A known feature counts for every product that has it, own quality for one product alone."""
    brand, other = keys_of(["b:kelto"]), keys_of(["b:never seen"])
    quality = product_tower().quality(["P-1", "P-2", "P-3"], [brand, brand, other])
    assert quality == pytest.approx([2.5, 2.0, 0.0])
    assert product_tower().width(["P-1", "P-2"]) == pytest.approx([0.25, 1.0])


def test_the_parts_of_a_quality_are_named_and_add_up() -> None:
    """Its own part and one for each feature that counts; the rest of its features say nothing."""
    tower, names = product_tower(), {"b:kelto", "t:fridge"}
    assert tower.parts("P-1", names) == pytest.approx({"own": 0.5, "b:kelto": 2.0})
    assert tower.parts("P-2", names) == pytest.approx({"own": 0.0, "b:kelto": 2.0})
    assert sum(tower.parts("P-1", names).values()) == pytest.approx(tower.quality(["P-1"], [keys_of(names)])[0])


def test_quality_is_capped_either_way() -> None:
    """However many clicks a product had, it does not outweigh what the query says."""
    assert product_tower(cap=1.5).quality(["P-1"], [keys_of(["b:kelto"])]) == pytest.approx([1.5])


@pytest.mark.parametrize("tower", [query_tower("a", "b"), QueryTower.untrained(DIM), product_tower()])
def test_a_tower_returns_from_its_tensors(tower: QueryTower | ProductTower) -> None:
    """What a release carries is the whole tower."""
    again = type(tower).from_tensors(tower.tensors())
    for name, tensor in tower.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], tensor)


def test_keys_do_not_change() -> None:
    """Releases name features, products and queries by them, so they are the same in every version."""
    assert key_of("t:fridge") == 1288984666434518112

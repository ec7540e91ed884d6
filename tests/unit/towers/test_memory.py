"""What a release remembers of single queries: found by what was typed, by point, and on the way between releases."""

import numpy as np
import pytest

from contracts.catalog import point_id
from towers.features import key_of
from towers.memory import MOST_PRODUCTS, QueryMemory

MEMORY = QueryMemory.of([(key_of("quiet fridge"), {"P-2": 0.5, "P-1": -1.5}), (key_of("red shoe"), {"P-3": 2.0})])


def test_a_query_is_found_as_it_is_typed() -> None:
    """Case, spaces and signs make no other query; what is not remembered adds nothing."""
    assert MEMORY.nats_of(" Quiet  FRIDGE!") == {point_id("P-1"): -1.5, point_id("P-2"): 0.5}
    assert MEMORY.nats_of("red shoe") == {point_id("P-3"): 2.0}
    assert MEMORY.nats_of("loud fridge") == MEMORY.nats_of("") == QueryMemory.nothing().nats_of("red shoe") == {}


def test_the_order_in_which_it_is_made_changes_no_byte() -> None:
    """Queries stand by their keys, whoever named them first."""
    one, other = (
        QueryMemory.of(two) for two in ([(7, {"a": 1.0}), (3, {"b": 2.0})], [(3, {"b": 2.0}), (7, {"a": 1.0})])
    )
    for name, tensor in one.tensors().items():
        assert tensor.tobytes() == other.tensors()[name].tobytes()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_way_is_a_share_of_what_every_product_gains(share: float) -> None:
    """Products that only one of both remembers count with their part; nothing is lost or counted twice."""
    later = QueryMemory.of([(key_of("quiet fridge"), {"P-1": 0.5, "P-4": 1.0}), (key_of("new"), {"P-3": 4.0})])
    between = MEMORY.towards(later, share=share)
    for query in ("quiet fridge", "red shoe", "new"):
        before, after = MEMORY.nats_of(query), later.nats_of(query)
        expected = {
            point: (1 - share) * before.get(point, 0.0) + share * after.get(point, 0.0) for point in before | after
        }
        expected = {point: nats for point, nats in expected.items() if nats}
        assert between.nats_of(query) == pytest.approx(expected, abs=1e-3)
    assert np.all(between.queries[1:] > between.queries[:-1])


def test_on_a_long_way_in_shares_it_forgets() -> None:
    """Whatever comes and goes, a query keeps its most moved products, and a query that left is gone after a while."""
    memory = QueryMemory.nothing()
    for step in range(60):
        later = QueryMemory.of([(step // 3, {f"P-{step}-{n}": 1.0 + n for n in range(MOST_PRODUCTS)})])
        memory = memory.towards(later, share=0.5)
    assert 0 < len(memory) < 10
    assert memory.counts.max() <= MOST_PRODUCTS
    assert np.abs(memory.nats).min() > 0


def test_nothing_and_nothing_is_nothing() -> None:
    """Releases that remember nobody have an empty memory between them."""
    assert len(QueryMemory.nothing().towards(QueryMemory.nothing(), share=0.5)) == 0


def test_a_release_of_a_former_form_remembers_nothing() -> None:
    """Its memory was a vector of each query, which search does not ask by any more."""
    former: dict[str, np.ndarray] = {"memory_queries": np.array([3], np.uint64), "memory": np.ones((1, 4), np.float16)}
    assert len(QueryMemory.from_tensors(former)) == 0
    assert len(QueryMemory.from_tensors(MEMORY.tensors())) == 2

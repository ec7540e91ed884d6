"""Sparse vectors of the embedded store: what is refused, and that they survive a restart."""

from pathlib import Path
from typing import Any

import pytest

from deploy.qdrant_edge.collection import Collection
from deploy.qdrant_edge.store import Store
from tests.unit.deploy.qdrant_edge.conftest import refused

SPEC = {"vectors": {"product": {"size": 2, "distance": "Dot"}}, "sparse_vectors": {"words": {"modifier": "idf"}}}


def sparse(*indices: int) -> dict[str, Any]:
    """A sparse vector of ones."""
    return {"indices": list(indices), "values": [1.0] * len(indices)}


@pytest.fixture
def hybrid(store: Store) -> Collection:
    """A collection of two points with both kinds of vectors."""
    store.create("hybrid", SPEC)
    made = store.collection("hybrid")
    points = [{"id": number, "vector": {"product": [number, 0], "words": sparse(number, 7)}} for number in (1, 2)]
    made.write("upsert", {"points": points})
    return made


@pytest.mark.parametrize(
    ("vector", "status", "names"),
    [
        ({"words": {"indices": [1, 1], "values": [1, 2]}}, 422, "unique"),
        ({"words": {"indices": [1], "values": [1, 2]}}, 422, "length"),
        ({"words": {"indices": [2**32], "values": [1]}}, 400, "indices"),
        ({"words": {"indices": [-1], "values": [1]}}, 400, "indices"),
        ({"words": {"indices": [True], "values": [1]}}, 400, "indices"),
        ({"words": {"indices": [1.0], "values": [1]}}, 400, "indices"),
        ({"words": {"indices": [1], "values": [None]}}, 400, "numbers"),
        ({"words": {"indices": [1], "values": [1e39]}}, 400, "finite"),
        ({"words": {"indices": [1]}}, 400, "values"),
        ({"words": {"indices": [1], "values": [1], "size": 3}}, 400, "nothing else"),
        ({"words": {"indices": 1, "values": [1]}}, 400, "list"),
        ({"words": [1.0]}, 400, "sparse and regular"),
        ({"product": sparse(1)}, 400, "sparse and regular"),
        ({"other": sparse(1)}, 400, "other"),
        (sparse(1), 400, "Not existing vector name"),
    ],
)
def test_what_is_no_sparse_vector_is_refused(
    hybrid: Collection, vector: dict[str, Any], status: int, names: str
) -> None:
    """Edge itself would take most of these and answer wrongly after."""
    with refused(status, match=names):
        hybrid.write("upsert", {"points": [{"id": 9, "vector": vector}]})
    assert hybrid.count({}) == {"count": 2}


@pytest.mark.parametrize("query", [{"indices": [1, 1], "values": [1, 2]}, {"indices": [1], "values": [1, 2]}])
def test_what_is_no_sparse_query_is_refused(hybrid: Collection, query: dict[str, Any]) -> None:
    """A query is judged as a stored vector is, also inside a prefetch and a batch."""
    body = {"query": query, "using": "words"}
    with refused(422):
        hybrid.query(body)
    with refused(422):
        hybrid.query({"query": [1, 0], "using": "product", "prefetch": body})
    with refused(422):
        hybrid.query_batch({"searches": [{"query": [1, 0], "using": "product"}, body]})


def test_an_example_is_searched_by_its_sparse_vector(hybrid: Collection) -> None:
    """A point is found by what it shares with the example, which is not among its own results."""
    assert [hit["id"] for hit in hybrid.query({"query": 1, "using": "words"})["points"]] == [2]


def test_sparse_vectors_survive_a_restart(tmp_path: Path) -> None:
    """They are read back and searched as before."""
    store = Store(tmp_path / "qdrant")
    store.create("hybrid", SPEC)
    store.collection("hybrid").write("upsert", {"points": [{"id": 1, "vector": {"words": sparse(9, 3)}}]})
    store.close()
    again = Store(tmp_path / "qdrant")
    assert again.collection("hybrid").get("1")["vector"] == {"words": sparse(3, 9)}
    assert [
        hit["id"] for hit in again.collection("hybrid").query({"query": sparse(9), "using": "words"})["points"]
    ] == [1]
    again.close()

"""What every vector store must do alike with points that are written again, and with deletions that are forgotten."""

import pytest

from indexer.store import ProductStore
from tests.conformance.test_vector_store import live, tombstone, vector

pytestmark = pytest.mark.qdrant


def test_what_is_written_again_replaces_its_equal_and_nothing_newer(store: ProductStore, collection: str) -> None:
    """A damaged point of one version is written over; a newer version or product release stays."""
    stored = [live("A", 5, 1), live("B", 6, 1), live("C", 5, 2), tombstone("D", 5, 1), live("E", 5, 1)]
    store.write(collection, stored)
    mended = [live(product_id, 5, 1, angle=1.0, title="mended") for product_id in "ABCDE"]
    store.write(collection, mended, again=frozenset("ABCD"))
    found = store.retrieve(collection, list("ABCDE"))
    assert [found[name].payload.get("title") for name in "ABCDE"] == ["mended", "v6", "v5", None, "v5"]
    assert found["A"].vector == pytest.approx(vector(1.0))
    store.write(collection, [mended[4]], again=frozenset("E"))
    assert store.retrieve(collection, ["E"])["E"].payload["title"] == "mended"


def test_a_tombstone_is_forgotten_and_nothing_that_came_after_it(store: ProductStore, collection: str) -> None:
    """A product that has come back stays, and so does a later deletion."""
    gone = [tombstone(product_id, 2) for product_id in "ABC"]
    store.write(collection, gone)
    store.write(collection, [live("B", 3), tombstone("C", 3)])
    store.forget(collection, gone)
    assert store.versions(collection).keys() == {"B", "C"}

"""What every vector store must do alike with points that are written again because theirs may be damaged."""

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

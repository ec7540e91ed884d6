"""Quality in the vector store: dot products as they are, points rewritten in place, collections that do not fit."""

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from contracts.catalog import PointVersion, point_id
from contracts.errors import InvariantError
from indexer.points import ProductPoint
from indexer.qdrant import VECTOR_NAME
from indexer.store import ProductStore, StoredPoint
from tests.conformance.conftest import DIM

pytestmark = pytest.mark.qdrant


def test_a_score_is_the_dot_product_of_vectors_as_they_are(
    store: ProductStore, client: QdrantClient, collection: str
) -> None:
    """Nothing is normalised, on either side: a quality may outweigh the text, and a score may be below 0."""
    drawn = np.random.default_rng(7).normal(0.0, 2.0, (101, DIM)).astype(np.float32)
    query, products = drawn[0], drawn[1:]
    store.write(collection, [ProductPoint(f"P-{n}", 1, 1, row.tolist()) for n, row in enumerate(products)])
    answer = client.query_points(collection, query=query.tolist(), using=VECTOR_NAME, limit=100, with_vectors=True)
    expected = products @ query
    best = np.argsort(-expected, kind="stable")
    assert [point.id for point in answer.points] == [point_id(f"P-{place}") for place in best]
    assert [point.score for point in answer.points] == pytest.approx(expected[best].tolist(), abs=1e-4)
    stored = [point.vector[VECTOR_NAME] for point in answer.points if isinstance(point.vector, dict)]
    np.testing.assert_array_equal(np.array(stored, dtype=np.float32), products[best])


def test_a_quality_is_rewritten_in_place(store: ProductStore, collection: str) -> None:
    """A newer product release of the same version replaces vector and payload; an older one does not."""
    for release, nats in ((1, 0.5), (3, 2.0), (2, 9.0)):
        rated = ProductPoint("P-1", 4, release, [1.0, *[0.0] * (DIM - 2), nats / 10], {"quality": nats})
        store.write(collection, [rated])
    store.write(collection, [ProductPoint("P-2", 1, 1, None)])
    assert store.stored(collection) == {
        "P-1": StoredPoint(PointVersion(4, 3), 2.0),
        "P-2": StoredPoint(PointVersion(1, 1, deleted=True), 0.0),
    }
    kept = store.retrieve(collection, ["P-1"])["P-1"].vector
    assert kept is not None
    assert kept[-1] == pytest.approx(0.2)


def test_ensure_refuses_another_width_distance_or_base(
    store: ProductStore, client: QdrantClient, collection: str
) -> None:
    """A collection that cannot hold our vectors is never taken for the wanted one."""
    with pytest.raises(InvariantError, match=f"holds Dot of width {DIM}, not Dot of width {DIM + 1}"):
        store.ensure_collection(collection, DIM + 1)
    earlier, base = f"{collection}-cosine", f"{collection}-base"
    params = {VECTOR_NAME: models.VectorParams(size=DIM, distance=models.Distance.COSINE)}
    client.create_collection(earlier, vectors_config=params)
    store.ensure_collection(base, DIM, metadata={"base_version": "one/t1"})
    with pytest.raises(InvariantError, match=f"holds Cosine of width {DIM}, not Dot"):
        store.ensure_collection(earlier, DIM)
    with pytest.raises(InvariantError, match="holds vectors of one/t1, not of two/t1"):
        store.ensure_collection(base, DIM, metadata={"base_version": "two/t1"})
    for name in (earlier, base):
        store.drop(name)

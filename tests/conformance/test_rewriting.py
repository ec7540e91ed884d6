"""What search promises while products are rewritten: each is found at once, and the nearest are found in any case."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from indexer.search.retrieval import DENSE_PARAMS
from tests.conformance.conftest import Backend
from tests.support.poll import eventually

pytestmark = pytest.mark.qdrant

PRODUCTS = 3_000
DIM = 32
BATCH = 100
K = 10
Catalogue = tuple[QdrantClient, str]


def drawn(seed: int, count: int) -> np.ndarray:
    """Vectors as products have them: a direction of length 1 near one of many centres, and a small quality."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(60, DIM))
    rows = centres[random.integers(0, len(centres), count)] + random.normal(size=(count, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.hstack([rows, random.normal(0, 0.03, (count, 1))]).astype(np.float32)


QUERIES = np.hstack([drawn(2, 40)[:, :DIM], np.ones((40, 1), np.float32)])


def upsert(client: QdrantClient, name: str, numbers: range, vectors: np.ndarray) -> None:
    """Write products, and wait for them."""
    points = [models.PointStruct(id=number, vector={"product": vectors[number].tolist()}) for number in numbers]
    client.upsert(name, points, wait=True)


@pytest.fixture
def catalogue(backend: Backend) -> Iterator[Catalogue]:
    """A collection large enough for a graph by its own settings; where there are graphs, it has one."""
    client, name = backend.client, f"conformance-{uuid.uuid4().hex[:12]}"
    client.create_collection(
        name,
        vectors_config={"product": models.VectorParams(size=DIM + 1, distance=models.Distance.DOT)},
        hnsw_config=models.HnswConfigDiff(full_scan_threshold=10),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=100, default_segment_number=1),
    )
    vectors = drawn(3, PRODUCTS)
    for begin in range(0, PRODUCTS, 500):
        upsert(client, name, range(begin, begin + 500), vectors)
    if backend.url:

        def is_indexed() -> bool:
            """Whether most products are led to, and the rest is not worth it."""
            state = client.get_collection(name)
            return state.status == models.CollectionStatus.GREEN and (state.indexed_vectors_count or 0) > PRODUCTS / 2

        eventually(is_indexed, timeout_s=60, what="the graph is built")
    yield client, name
    client.delete_collection(name)


def test_recall_holds_while_a_fifth_is_rewritten(catalogue: Catalogue) -> None:
    """Of the exact ten best at least .97 are found, at every share; what was just written is found at once."""
    client, name = catalogue
    vectors, after = drawn(3, PRODUCTS), drawn(4, PRODUCTS)
    for begin in range(0, PRODUCTS // 5, BATCH):
        upsert(client, name, range(begin, begin + BATCH), after)
        vectors[begin : begin + BATCH] = after[begin : begin + BATCH]
        newest = client.query_points(name, query=_pointing_at(vectors[begin]), using="product", limit=3).points
        assert begin in {point.id for point in newest}
        assert _recall(client, name, vectors) >= 0.97


def _pointing_at(vector: np.ndarray) -> list[float]:
    """A query in the direction of a product."""
    return [*vector[:DIM].tolist(), 1.0]


def _recall(client: QdrantClient, name: str, vectors: np.ndarray) -> float:
    """Mean share of the exact ten best that the store finds."""
    requests = [
        models.QueryRequest(query=query.tolist(), using="product", limit=K, params=DENSE_PARAMS) for query in QUERIES
    ]
    found = [{point.id for point in answer.points} for answer in client.query_batch_points(name, requests)]
    best = [set(np.argsort(-(vectors @ query))[:K].tolist()) for query in QUERIES]
    return sum(len(one & other) for one, other in zip(found, best, strict=True)) / (K * len(QUERIES))

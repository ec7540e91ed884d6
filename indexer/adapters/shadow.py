"""Searches against a collection that is not in force yet: does it answer at all?"""

import numpy as np
from qdrant_client import QdrantClient, models

from indexer.adapters.qdrant import VECTOR_NAME
from indexer.adapters.qdrant_errors import qdrant_errors


class ShadowSearch:
    """Asks a collection as search does.

    Args:
        client: of the configured vector store.
    """

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def answered(self, collection: str, vectors: np.ndarray) -> int:
        """Return how many of the query vectors (N, D) found something."""
        requests = [
            models.QueryRequest(query=vector.tolist(), using=VECTOR_NAME, limit=1, with_payload=False)
            for vector in vectors
        ]
        with qdrant_errors(f"ask {collection}"):
            answers = self._client.query_batch_points(collection, requests)
        return sum(bool(answer.points) for answer in answers)

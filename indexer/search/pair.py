"""The pair that search answers with: a query head and the collection whose vectors it was trained for.

A query vector and a product vector meet only if their releases match, so the two are one immutable value: a request
takes it once and uses it to its end, whatever is swapped in meanwhile.
"""

from dataclasses import dataclass

import numpy as np

from contracts.releases import Serving
from towers.release_files import Release


@dataclass(frozen=True, slots=True, eq=False)
class QueryTransform:
    """A query head as two matrices: what a request needs of it, without torch.

    Args:
        down: (rank, D).
        up: (D, rank).
    """

    down: np.ndarray
    up: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Map base vectors (N, D) to query vectors (N, D) of unit length; the same as the head's `forward`."""
        moved = rows + (rows @ self.down.T) @ self.up.T
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(moved / np.maximum(norms, 1e-12), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One query head and one collection that belong together.

    Args:
        query_release: of the head.
        product_release: of the vectors in the collection.
        collection: its name in the vector store.
        transform: the head.
        click_times: clicks that the release learned from, for the freshness of its first answer; epoch ms.
    """

    query_release: int
    product_release: int
    collection: str
    transform: QueryTransform
    click_times: tuple[int, ...] = ()

    def is_of(self, serving: Serving) -> bool:
        """Tell whether this is the pair that a record names."""
        return (self.query_release, self.product_release, self.collection) == (
            serving.query_release,
            serving.product_release,
            serving.collection,
        )


def pair_of(serving: Serving, release: Release, *, observed: bool) -> Pair:
    """Return the pair of a record on `models` and its query release.

    Args:
        serving: names the pair.
        release: the query release, verified.
        observed: whether its first answer tells how fresh the way from click to search is; the answers of a process
            that has just started tell only how long it was away.
    """
    return Pair(
        query_release=serving.query_release,
        product_release=serving.product_release,
        collection=serving.collection,
        transform=QueryTransform(release.tensors["down"], release.tensors["up"]),
        click_times=release.manifest.click_times if observed else (),
    )

"""The pair that answers requests: a query head and the collection of the product release it was trained for.

A request takes the pair once and uses it to its end, so that a switch in between cannot mix two spaces.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class ServingPair:
    """An immutable query head and the collection it searches.

    Args:
        query_release: of the head.
        product_release: of the vectors in the collection.
        collection: name in the vector store.
        down: weights (rank, dim) of the head; None for release 0, the identity.
        up: weights (dim, rank) of the head; None for release 0.
        click_times: epoch ms of clicks that this release was the first to learn from.
    """

    query_release: int
    product_release: int
    collection: str
    down: np.ndarray | None = None
    up: np.ndarray | None = None
    click_times: tuple[int, ...] = ()

    def transform(self, base: np.ndarray) -> np.ndarray:
        """Return query vectors (N, dim), unit float32, for base vectors (N, dim): unit(q + up(down(q))).

        The same function as `towers.heads.QueryHead`, without torch in the path of a request; the probe texts of each
        release prove that both agree.
        """
        if self.down is None or self.up is None:
            return base
        moved = base + (base @ self.down.T) @ self.up.T
        unit: np.ndarray = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return unit.astype(np.float32, copy=False)

"""What the preference model replaced, kept as its peer: low-rank heads, one AdamW step a micro-batch, each pair once.

Source: Rafailov et al. 2023 (DPO) with a low-rank head as in LoRA; docs/papers.md, "The preference model".
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from trainer.preference.evidence import Shown
from trainer.preference.model import Catalogue, Weights

BATCH: Final = 128
"""Pairs of a micro-batch."""
RANK: Final = 64
RATE: Final = 1e-3
"""Of AdamW."""


class OnePass:
    """A low-rank head on the query side and a quality per product, learned from each list once, in its order.

    Args:
        query_vectors: base vectors of queries, (Q, D).
        product_vectors: base vectors of products, (P, D).
        seed: of the first weights.
        weighed: whether pairs weigh by the ratio of looks, which undoes position bias.
    """

    def __init__(
        self, query_vectors: np.ndarray, product_vectors: np.ndarray, *, seed: int = 0, weighed: bool = True
    ) -> None:
        self._weighed = weighed
        self._queries, self._products = (torch.from_numpy(rows) for rows in (query_vectors, product_vectors))
        dim = query_vectors.shape[1]
        torch.set_num_threads(1)  # the steps are small
        first = torch.randn(dim, RANK, generator=torch.Generator().manual_seed(seed)) / dim**0.5
        self._down, self._up = torch.nn.Parameter(first), torch.nn.Parameter(torch.zeros(RANK, dim))
        self._quality = torch.nn.Parameter(torch.zeros(len(product_vectors)))
        self._optimizer = torch.optim.AdamW([self._down, self._up, self._quality], lr=RATE)
        self._waiting: list[tuple[int, int, int, float]] = []

    def add(self, query: int, shown: Sequence[Shown]) -> None:
        """Take a list: each clicked product against each other one; full micro-batches are trained on and forgotten."""
        ratio = self._ratio if self._weighed else lambda *_: 1.0
        self._waiting += [
            (query, chosen.product, other.product, chosen.click * ratio(chosen, other))
            for chosen in shown if chosen.click for other in shown if not other.click
        ]  # fmt: skip
        while len(self._waiting) >= BATCH:
            self._step(np.array(self._waiting[:BATCH]).T)
            del self._waiting[:BATCH]

    def _step(self, pairs: np.ndarray) -> None:
        query, chosen, rejected = torch.from_numpy(pairs[:3].astype(np.int64))
        weights = torch.from_numpy(pairs[3].astype(np.float32))
        learned = self._queries[query] @ self._down @ self._up
        margin = (learned * (self._products[chosen] - self._products[rejected])).sum(dim=1)
        margin = margin + self._quality[chosen] - self._quality[rejected]
        loss = (weights * torch.nn.functional.softplus(-margin)).mean()
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()

    @staticmethod
    def _ratio(chosen: Shown, other: Shown) -> float:
        return min(1.0, other.showing / chosen.showing)

    def weights(self, catalogue: Catalogue) -> Weights:
        """What was learned, as weights of the preference model: the same score, of which fewer parts are learned."""
        quality = self._quality.detach().numpy().copy()
        taste = (self._down @ self._up).detach().numpy()
        untrained = Weights.untrained(catalogue)
        return replace(untrained, taste=taste, products=np.arange(len(quality)), own=quality)

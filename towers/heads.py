"""The trained part of each tower: small residual heads over a frozen base encoder.

Both start as the identity (their last layer is zero), so an untrained Millrace ranks exactly as its base model does.
The query head is linear and low-rank: it changes with every release and costs no index work. The product head is a
residual MLP: a linear one would be a query transform up to a scalar per product (docs/papers.md, "The heads").
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

INITIAL_SEED: Final = 20_250_301
"""Every trainer starts from the same weights, so that two runs over the same pairs agree."""

APPLY_ROWS: Final = 8192
"""Rows per block of `apply_head`: bounds the memory of the hidden layer, not the size of the catalogue."""


class _Residual(nn.Module):
    first: ClassVar[str]
    """Name of the weights whose shape is (width, D)."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Self:
        """Return the head that holds these weights."""
        width, dim = tensors[cls.first].shape
        head = cls(dim, width)
        with torch.no_grad():
            for name, weights in head.named_parameters():
                weights.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))
        return head


class QueryHead(_Residual):
    """q' = unit(q + up(down(q))) over base vectors of width `dim`, with `up` zero at the start."""

    first = "down"

    def __init__(self, dim: int, rank: int = 64) -> None:
        super().__init__()
        self.down = nn.Parameter(_gaussian(rank, dim))  # (rank, D)
        self.up = nn.Parameter(torch.zeros(dim, rank))  # (D, rank)

    @override
    def forward(self, vectors: Tensor) -> Tensor:
        """Map unit rows (B, D) to unit rows (B, D)."""
        return nn.functional.normalize(vectors + (vectors @ self.down.T) @ self.up.T, dim=-1)


class ProductHead(_Residual):
    """p' = unit(p + output(gelu(hidden(p)))) over base vectors of width `dim`, with `output` zero at the start."""

    first = "hidden_weight"

    def __init__(self, dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.hidden_weight = nn.Parameter(_gaussian(hidden, dim))  # (H, D)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))  # (H,)
        self.output_weight = nn.Parameter(torch.zeros(dim, hidden))  # (D, H)

    @override
    def forward(self, vectors: Tensor) -> Tensor:
        """Map unit rows (B, D) to unit rows (B, D)."""
        hidden = nn.functional.gelu(vectors @ self.hidden_weight.T + self.hidden_bias)
        return nn.functional.normalize(vectors + hidden @ self.output_weight.T, dim=-1)


Head = QueryHead | ProductHead
AnyHead = TypeVar("AnyHead", QueryHead, ProductHead)


class Towers(NamedTuple):
    """A query head and a product head that belong together."""

    query: QueryHead
    product: ProductHead


def apply_head(head: Head, vectors: np.ndarray) -> np.ndarray:
    """Give the head's vectors (N, D) float32 for base vectors (N, D), without a gradient."""
    rows = np.require(vectors, dtype=np.float32, requirements=["C", "W"])
    with torch.inference_mode():
        blocks = [head(torch.from_numpy(rows[at : at + APPLY_ROWS])).numpy() for at in range(0, len(rows), APPLY_ROWS)]
    return np.concatenate(blocks) if blocks else np.empty_like(rows)


def head_tensors(head: Head) -> dict[str, np.ndarray]:
    """Copy a head's weights, by name."""
    return {name: weights.detach().cpu().numpy().copy() for name, weights in head.named_parameters()}


def copied(head: AnyHead) -> AnyHead:
    """Make a head of the same weights that training does not touch."""
    return type(head).from_tensors(head_tensors(head))


def mixed(before: AnyHead, after: AnyHead, *, share: float) -> AnyHead:
    """Make a head that went a share of the way from one head's weights to another's; the other itself if it is 1."""
    if share == 1.0 or before is after:
        return after
    old, new = head_tensors(before), head_tensors(after)
    return type(before).from_tensors({name: old[name] + share * (new[name] - old[name]) for name in old})


def _gaussian(rows: int, columns: int) -> Tensor:
    """Draw seeded weights (rows, columns) whose product with a unit vector has entries of about 1 / sqrt(rows)."""
    generator = torch.Generator().manual_seed(INITIAL_SEED)
    return torch.randn(rows, columns, generator=generator) / math.sqrt(rows)

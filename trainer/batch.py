"""From preference pairs to the tensors of one step.

Everything random or remembered comes in as an argument, so that the same arguments give the same tensors to the bit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contracts.pairs import PreferencePair
from trainer.losses import trusted_negatives


class Batch(NamedTuple):
    """One micro-batch. Q queries with A more for the anchor, P products of pairs, U uniform ones, B pairs, R rows.

    Vectors are those of the base encoder, of width D; whoever takes the step applies the heads. Only products of pairs
    count against a row: they were shown, if only for another query. What nobody was shown could not be clicked.
    """

    queries: Tensor
    """(Q + A, D): the distinct queries of the pairs, then recent ones for the anchor."""
    products: Tensor
    """(P + U, D): the distinct products of the pairs, then random ones of the catalogue, for the anchor alone."""
    uniform: int
    """U, how many of the products, at the end, were drawn from the whole catalogue."""
    pair_query: Tensor
    """Index into `queries`, (B,)."""
    pair_chosen: Tensor
    """Index into `products`, (B,)."""
    pair_rejected: Tensor
    """Index into `products`, (B,)."""
    pair_weight: Tensor
    """(B,)."""
    row_query: Tensor
    """One row per distinct (query, chosen): index into `queries`, (R,)."""
    row_positive: Tensor
    """Index into `products`, (R,)."""
    row_weight: Tensor
    """Share of the row in the contrastive term: the weights of its pairs, divided by B, (R,)."""
    negatives: Tensor
    """Which products of pairs count against each row, (R, P) bool."""
    log_q: Tensor
    """Log of the chance that a product is in the pairs of a step, (P,)."""

    @property
    def paired(self) -> int:
        """P, how many of the products, at the beginning, are in pairs."""
        return len(self.products) - self.uniform


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What a step needs besides its pairs.

    Args:
        uniform_ids: products drawn from the whole catalogue.
        anchor_queries: vectors of recent queries, (A, D).
        positives: query -> products that pleased it before.
        rates: chance per step of being in a micro-batch, for product ids, (n,).
    """

    uniform_ids: Sequence[str]
    anchor_queries: np.ndarray
    positives: Mapping[str, Sequence[str]]
    rates: Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class MaskSettings:
    """When a candidate is not trusted as a negative.

    Args:
        guide_ratio: rho, share of the positive's reference score above which a candidate may be relevant itself.
        duplicate_cosine: base cosine from which two products count as the same.
    """

    guide_ratio: float = 0.85
    duplicate_cosine: float = 0.95


def assemble(
    pairs: Sequence[PreferencePair],
    context: BatchContext,
    *,
    query_vectors: Callable[[Sequence[str]], np.ndarray],
    product_vectors: Callable[[Sequence[str]], np.ndarray],
    masks: MaskSettings,
) -> Batch:
    """Make the tensors of one step.

    Args:
        pairs: at least one; every product is known to `product_vectors`.
        context: what the step needs besides.
        query_vectors: base vectors (n, D) of texts.
        product_vectors: base vectors (n, D) of product ids.
        masks: thresholds of the negatives.
    """
    texts = _distinct(pair.query for pair in pairs)
    paired = _distinct(side.product_id for pair in pairs for side in (pair.chosen, pair.rejected))
    uniform = [product_id for product_id in context.uniform_ids if product_id not in paired]
    queries = torch.from_numpy(np.concatenate([query_vectors(list(texts)), context.anchor_queries]))
    products = torch.from_numpy(product_vectors([*paired, *uniform]))
    shown = products[: len(paired)]
    rows = _rows(pairs)
    row_query = torch.tensor([texts[query] for query, _ in rows])
    row_positive = torch.tensor([paired[chosen] for _, chosen in rows])
    return Batch(
        queries=queries,
        products=products,
        uniform=len(uniform),
        pair_query=torch.tensor([texts[pair.query] for pair in pairs]),
        pair_chosen=torch.tensor([paired[pair.chosen.product_id] for pair in pairs]),
        pair_rejected=torch.tensor([paired[pair.rejected.product_id] for pair in pairs]),
        pair_weight=torch.tensor([pair.weight for pair in pairs]),
        row_query=row_query,
        row_positive=row_positive,
        row_weight=torch.tensor(list(rows.values())) / len(pairs),
        negatives=trusted_negatives(
            queries[row_query] @ shown.T,
            (queries[row_query] * shown[row_positive]).sum(dim=1),
            similarities=shown[row_positive] @ shown.T,
            known_positives=_left_out(pairs, list(rows), candidates=paired, remembered=context.positives),
            guide_ratio=masks.guide_ratio,
            duplicate_cosine=masks.duplicate_cosine,
        ),
        log_q=_log_q(context.rates(list(paired))),
    )


def _distinct(keys: Iterable[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for key in keys:
        places.setdefault(key, len(places))
    return places


def _rows(pairs: Sequence[PreferencePair]) -> dict[tuple[str, str], float]:
    rows: dict[tuple[str, str], float] = defaultdict(float)
    for pair in pairs:
        rows[pair.query, pair.chosen.product_id] += pair.weight
    return rows


def _left_out(
    pairs: Sequence[PreferencePair],
    rows: Sequence[tuple[str, str]],
    *,
    candidates: Mapping[str, int],
    remembered: Mapping[str, Sequence[str]],
) -> Tensor:
    """Tell which candidates please a row's query, or were shown for it and are the pair term's affair, (R, P)."""
    own: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        own[pair.query] |= {candidates[pair.chosen.product_id], candidates[pair.rejected.product_id]}
    for query in own:
        own[query] |= {candidates[product] for product in remembered.get(query, ()) if product in candidates}
    mask = torch.zeros(len(rows), len(candidates), dtype=torch.bool)
    for row, (query, _) in enumerate(rows):
        mask[row, sorted(own[query])] = True
    return mask


def _log_q(rates: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(np.clip(rates, 1e-6, 1.0)).astype(np.float32))

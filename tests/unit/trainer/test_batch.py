"""From pairs to tensors: indices, weights, masks and frequencies."""

from collections.abc import Sequence

import numpy as np
import torch

from contracts.pairs import PreferencePair
from tests.support.pairs import preference_pair
from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, PRODUCTS, FakeProducts
from trainer.batch import Batch, BatchContext, MaskSettings, assemble

OPEN = MaskSettings(guide_ratio=10.0, duplicate_cosine=1.5)
"""Masks nothing by score or similarity."""


def batch_of(
    pairs: Sequence[PreferencePair],
    *,
    uniform: Sequence[str] = (),
    positives: dict[str, list[str]] | None = None,
    rate: float = 0.2,
    masks: MaskSettings = OPEN,
) -> Batch:
    """Return the tensors of pairs over the small catalogue."""
    encoder = TinyEncoder(DIM)
    around = BatchContext(
        uniform_ids=uniform,
        anchor_queries=np.empty((0, DIM), dtype=np.float32),
        positives=positives or {},
        rates=lambda ids: np.full(len(ids), rate, dtype=np.float32),
    )
    return assemble(
        pairs, around, query_vectors=encoder.encode, product_vectors=FakeProducts(encoder).vectors, masks=masks
    )


def test_each_query_and_product_stands_once_and_indices_lead_to_it() -> None:
    """Repeated texts cost nothing, and every pair still finds its own three vectors."""
    first, second = PRODUCTS[0], PRODUCTS[1]
    pairs = [
        preference_pair("a", query="fridge", chosen=first, rejected=second),
        preference_pair("b", query="laptop", chosen=second, rejected=first),
        preference_pair("c", query="fridge", chosen=first, rejected=second),
    ]
    batch = batch_of(pairs)
    encoder = TinyEncoder(DIM)
    assert batch.queries.shape == (2, DIM)
    assert batch.products.shape == (2, DIM)
    for pair, query, chosen, rejected in zip(
        pairs, batch.pair_query, batch.pair_chosen, batch.pair_rejected, strict=True
    ):
        np.testing.assert_array_equal(batch.queries[query], encoder.encode([pair.query])[0])
        np.testing.assert_array_equal(batch.products[chosen], encoder.encode([pair.chosen.product_id])[0])
        np.testing.assert_array_equal(batch.products[rejected], encoder.encode([pair.rejected.product_id])[0])


def test_rows_sum_the_weights_of_their_pairs_over_the_batch_size() -> None:
    """The contrastive term counts a (query, chosen) as much as its pairs, and is a mean over pairs as the DPO term."""
    pairs = [
        preference_pair("a", chosen=PRODUCTS[0], rejected=PRODUCTS[1], weight=0.5),
        preference_pair("a", chosen=PRODUCTS[0], rejected=PRODUCTS[2], weight=1.5),
        preference_pair("b", chosen=PRODUCTS[3], rejected=PRODUCTS[2], weight=3.0),
    ]
    assert torch.allclose(batch_of(pairs).row_weight, torch.tensor([2.0, 3.0]) / 3)


def test_what_was_shown_or_liked_for_a_query_is_no_negative_of_it() -> None:
    """Chosen, rejected and remembered products of a query are left out; those of another query count."""
    pairs = [
        preference_pair("a", query="fridge", chosen=PRODUCTS[0], rejected=PRODUCTS[1]),
        preference_pair("b", query="laptop", chosen=PRODUCTS[2], rejected=PRODUCTS[3]),
    ]
    batch = batch_of(pairs, positives={"fridge": [PRODUCTS[3], "unknown"]})
    assert batch.negatives.tolist() == [[False, False, True, False], [True, True, False, False]]


def test_a_product_that_nobody_was_shown_counts_against_no_row() -> None:
    """Products drawn from the catalogue serve the anchor alone: where nobody looked, no click is no refusal."""
    pairs = [
        preference_pair("a", query="fridge", chosen=PRODUCTS[0], rejected=PRODUCTS[1]),
        preference_pair("b", query="laptop", chosen=PRODUCTS[2], rejected=PRODUCTS[3]),
    ]
    alone, drawn = batch_of(pairs), batch_of(pairs, uniform=PRODUCTS[4:12])
    assert (alone.paired, alone.uniform) == (4, 0)
    assert (drawn.paired, drawn.uniform) == (4, 8)
    assert drawn.negatives.tolist() == alone.negatives.tolist()
    assert drawn.log_q.tolist() == alone.log_q.tolist()


def test_uniform_products_that_stand_in_pairs_are_not_taken_twice() -> None:
    """A product stands once; `uniform` counts those that came from the draw alone, at the end."""
    batch = batch_of([preference_pair(chosen=PRODUCTS[0], rejected=PRODUCTS[1])], uniform=[PRODUCTS[1], PRODUCTS[2]])
    assert batch.uniform == 1
    assert len(batch.products) == 3


def test_log_q_is_the_chance_of_standing_in_the_pairs_of_a_step() -> None:
    """Products of pairs alone are negatives, so theirs is the only chance that matters."""
    batch = batch_of([preference_pair(chosen=PRODUCTS[0], rejected=PRODUCTS[1])], uniform=PRODUCTS[2:6], rate=0.2)
    assert torch.allclose(batch.log_q, torch.full((2,), float(np.log(0.2))))


def test_near_duplicates_and_suspiciously_close_candidates_are_masked() -> None:
    """With the default thresholds a twin of the chosen product is no negative of it."""
    pairs = [preference_pair(query="zzz", chosen=PRODUCTS[0], rejected=PRODUCTS[1])]
    pairs += [preference_pair(query="other", chosen=PRODUCTS[2], rejected=product) for product in PRODUCTS[3:]]
    open_mask = batch_of(pairs)
    closed = batch_of(pairs, masks=MaskSettings(guide_ratio=10.0, duplicate_cosine=0.3))
    assert closed.negatives.sum() < open_mask.negatives.sum()

"""Towers in training learn what pairs say, leave what they must, and come back from tensors bit for bit."""

import numpy as np
import pytest
import torch

from tests.support.tiny_encoder import TinyEncoder
from tests.support.trainer import DIM, PRODUCTS, FakeProducts, pair_number
from towers.heads import ProductHead, QueryHead, Towers, head_tensors
from trainer.batch import Batch, BatchContext, MaskSettings, assemble
from trainer.losses import dpo_loss, multi_positive_loss
from trainer.training import LossSettings, TowersInTraining


def batch_of(first: int, last: int) -> Batch:
    """Return the tensors of some pairs with random products around them."""
    encoder = TinyEncoder(DIM)
    around = BatchContext(
        uniform_ids=PRODUCTS[20:32],
        anchor_queries=encoder.encode(["laptop", "oven"]),
        positives={},
        rates=lambda ids: np.full(len(ids), 0.1, dtype=np.float32),
    )
    return assemble(
        [pair_number(number) for number in range(first, last)],
        around,
        query_vectors=encoder.encode,
        product_vectors=FakeProducts(encoder).vectors,
        masks=MaskSettings(),
    )


def untrained(*, joint: bool = False, settings: LossSettings | None = None) -> TowersInTraining:
    """Return towers before their first step."""
    heads = Towers(QueryHead(DIM), ProductHead(DIM))
    return TowersInTraining(heads, settings=settings or LossSettings(), joint=joint)


@pytest.mark.parametrize("joint", [False, True])
def test_steps_lower_the_loss_and_raise_the_margin(joint: bool) -> None:
    """Training on the same preferences again and again is learned whether or not the product head is trained."""
    towers, batch = untrained(joint=joint), batch_of(0, 32)
    reports = [towers.step(batch) for _ in range(30)]
    assert reports[-1].dpo < reports[0].dpo
    assert reports[-1].margin_gain > reports[0].margin_gain == pytest.approx(0.0, abs=1e-6)


def test_the_first_report_is_prequential() -> None:
    """The loss is measured before the weights move: the first DPO term is log 2 times the mean weight."""
    batch = batch_of(0, 16)
    expected = float(batch.pair_weight.mean()) * np.log(2)
    assert untrained().step(batch).dpo == pytest.approx(expected, rel=1e-5)


def test_a_frozen_product_head_is_never_touched() -> None:
    """A release of the query head alone must fit the index as it is."""
    towers = untrained()
    before = head_tensors(towers.product_head)
    towers.step(batch_of(0, 16))
    for name, weights in head_tensors(towers.product_head).items():
        np.testing.assert_array_equal(weights, before[name])


def test_joint_training_moves_both_heads() -> None:
    """The candidate's product head moves with its query head."""
    towers = untrained(joint=True)
    towers.step(batch_of(0, 16))
    assert head_tensors(towers.product_head)["output_weight"].any()
    assert head_tensors(towers.query_head)["up"].any()


@pytest.mark.parametrize("joint", [False, True])
def test_training_goes_on_from_its_tensors_bit_for_bit(joint: bool) -> None:
    """Weights and the optimiser's memory are all there is: interrupted equals uninterrupted."""
    settings = LossSettings()
    straight = untrained(joint=joint)
    straight.step(batch_of(0, 16))
    resumed = TowersInTraining.from_tensors(straight.tensors(), settings=settings, joint=joint)
    for towers in (straight, resumed):
        towers.step(batch_of(16, 40))
        towers.step(batch_of(40, 50))
    for name, tensor in straight.tensors().items():
        np.testing.assert_array_equal(resumed.tensors()[name], tensor, err_msg=name)


def test_tensors_are_copies() -> None:
    """What was checkpointed does not change with the next step."""
    towers = untrained()
    towers.step(batch_of(0, 16))
    saved = towers.tensors()
    before = {name: tensor.copy() for name, tensor in saved.items()}
    towers.step(batch_of(16, 32))
    for name, tensor in saved.items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    """One poisoned vector must not poison the weights; the report shows it."""
    towers, batch = untrained(), batch_of(0, 8)
    before = head_tensors(towers.query_head)
    report = towers.step(batch._replace(products=torch.full_like(batch.products, float("nan"))))
    assert not np.isfinite(report.gradient_norm)
    for name, weights in head_tensors(towers.query_head).items():
        np.testing.assert_array_equal(weights, before[name])


def test_the_contrastive_term_pulls_at_most_as_hard_as_the_pairs_at_the_start() -> None:
    """Per unit of cosine and weight a pair begins with b / 2, a contrastive row with at most lam_mp / tau."""
    settings = LossSettings()
    margin, score = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    dpo_loss(margin, torch.zeros(1), weights=torch.ones(1), b=settings.b).backward()  # type: ignore[no-untyped-call] # torch ships none
    logits = torch.stack([score[0], torch.tensor(100.0)]).unsqueeze(0) / settings.tau
    negatives = torch.tensor([[False, True]])
    contrast = multi_positive_loss(logits, torch.tensor([0]), negatives=negatives, weights=torch.ones(1))
    (settings.lam_mp * contrast).backward()  # type: ignore[no-untyped-call] # torch ships none
    assert margin.grad is not None
    assert score.grad is not None
    assert score.grad.item() == pytest.approx(margin.grad.item())


def test_without_the_other_terms_only_pairs_teach() -> None:
    """The factors of the contrastive term and the anchor do what they say."""
    pairs_only = LossSettings(lam_mp=0.0, lam_kl=0.0)
    batch = batch_of(0, 16)
    silent = batch._replace(pair_weight=torch.zeros_like(batch.pair_weight))
    towers = untrained(settings=pairs_only)
    report = towers.step(silent)
    assert report.gradient_norm == 0.0
    assert report.multi_positive > 0

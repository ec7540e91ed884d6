"""Towers in training: a query head and a product head that belong together, and the optimiser of what is trained.

Every micro-batch is one step of each: of the pair of heads in force (its product head frozen), of the candidate for the
next product release (both trained), and during a roll-out of the query head that will serve with its product release.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor

from towers.heads import Head, ProductHead, QueryHead, Towers, copied, head_tensors
from trainer.batch import Batch
from trainer.losses import dpo_loss, kl_anchor, multi_positive_loss

ADAM_BUFFERS: Final = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Constants of the loss; docs/papers.md, "The loss", says what each does.

    Args:
        b: nats of preference per unit of cosine.
        tau: temperature of the softmax terms.
        lam_mp: share of the contrastive term; b * tau / 2 lets it pull at most as hard as the pairs do at the start.
        lam_kl: share of the anchor to the reference.
        learning_rate: AdamW's; what mattered most in every simulation.
        gradient_norm: longest gradient of a step.
    """

    b: float = 10.0
    tau: float = 0.05
    lam_mp: float = 0.25
    lam_kl: float = 0.1
    learning_rate: float = 1e-3
    gradient_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step measured, all of it before the weights moved (prequential).

    Args:
        dpo: weighted DPO term.
        multi_positive: contrastive term, before its factor.
        kl: anchor term, before its factor.
        gradient_norm: length of the gradient before it was clipped.
        margin_gain: mean of (policy - reference) over the weighted pairs; falls when squeezing sets in.
    """

    dpo: float
    multi_positive: float
    kl: float
    gradient_norm: float
    margin_gain: float


class TowersInTraining:
    """Both heads and the optimiser of what is trained in them.

    Args:
        towers: where training begins; copied.
        settings: of the loss.
        joint: whether the product head is trained too, or frozen.
    """

    def __init__(self, towers: Towers, *, settings: LossSettings, joint: bool = False) -> None:
        self.query_head = copied(towers.query)
        self.product_head = copied(towers.product)
        self.joint = joint
        self._settings = settings
        self.product_head.requires_grad_(requires_grad=joint)
        trained: tuple[Head, ...] = (self.query_head, self.product_head) if joint else (self.query_head,)
        self._parameters = [weights for head in trained for weights in head.parameters()]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, foreach=False)

    @property
    def towers(self) -> Towers:
        """Both heads as they are now; further steps change them."""
        return Towers(self.query_head, self.product_head)

    def step(self, batch: Batch) -> StepReport:
        """Learn from one micro-batch, once."""
        dpo, multi_positive, kl, gain = self._terms(batch)
        loss = dpo + self._settings.lam_mp * multi_positive + self._settings.lam_kl * kl
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch ships this without an annotation
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.gradient_norm, foreach=False)
        if torch.isfinite(norm):
            self._optimiser.step()
        return StepReport(dpo.item(), multi_positive.item(), kl.item(), norm.item(), gain.item())

    def _terms(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the three terms and the mean gain of margin over the reference."""
        with torch.set_grad_enabled(self.joint):
            products = self.product_head(batch.products)  # (P + U, D)
        scores = self.query_head(batch.queries) @ products.T  # (Q + A, P + U)
        reference = batch.queries @ batch.products.T  # (Q + A, P + U)
        margins, reference_margins = _margins(scores, batch), _margins(reference, batch)
        return (
            dpo_loss(margins, reference_margins, weights=batch.pair_weight, b=self._settings.b),
            multi_positive_loss(
                scores[batch.row_query, : batch.paired] / self._settings.tau - batch.log_q,
                batch.row_positive,
                negatives=batch.negatives,
                weights=batch.row_weight,
            ),
            kl_anchor(scores[:, batch.paired :], reference[:, batch.paired :], tau=self._settings.tau),
            (batch.pair_weight * (margins - reference_margins)).detach().sum()
            / batch.pair_weight.sum().clamp_min(1e-9),
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """Copy weights and optimiser state, by name."""
        tensors = {f"query.{name}": tensor for name, tensor in head_tensors(self.query_head).items()}
        tensors |= {f"product.{name}": tensor for name, tensor in head_tensors(self.product_head).items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": state[name].numpy().copy() for name in ADAM_BUFFERS}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], *, settings: LossSettings, joint: bool = False) -> Self:
        """Make what `tensors` described, optimiser included."""
        query = QueryHead.from_tensors(under(tensors, "query."))
        product = ProductHead.from_tensors(under(tensors, "product."))
        training = cls(Towers(query, product), settings=settings, joint=joint)
        state = {
            index: {name: torch.from_numpy(tensors[f"adam.{index}.{name}"].copy()) for name in ADAM_BUFFERS}
            for index in range(len(training._parameters))
            if f"adam.{index}.step" in tensors
        }
        training._optimiser.load_state_dict({**training._optimiser.state_dict(), "state": state})
        return training


def _margins(scores: Tensor, batch: Batch) -> Tensor:
    """s(q, chosen) - s(q, rejected) of every pair, (B,)."""
    return scores[batch.pair_query, batch.pair_chosen] - scores[batch.pair_query, batch.pair_rejected]


def under(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Select the tensors whose names begin with a prefix, and drop it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

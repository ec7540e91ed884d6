"""The terms of the loss, as pure functions of scores, weights and masks.

L = L_DPO + lam_MP L_MP + lam_KL L_KL (docs/papers.md, "The loss"). Notation: B pairs, R rows of (query, chosen
product), C candidate products, Q queries, N products of the catalogue; scores s are cosines in [-1, 1].

Departures from the literature: the log-ratio of DPO (Rafailov et al. 2023, eq. 7) is a difference of cosines, so that
beta and the softmax temperature appear only as b = beta / tau; positives of one query do not compete with one another
in the contrastive term (SupCon "out" does let them).
"""

from typing import Final

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

EXCLUDED: Final = -1e9
"""In place of minus infinity in a logit: its softmax is 0 and, unlike infinity, its gradient is never NaN."""


def dpo_loss(policy_margins: Tensor, reference_margins: Tensor, *, weights: Tensor, b: float) -> Tensor:
    """The weighted DPO loss on cosine margins: mean of w * -log sigma(b * (policy - reference)).

    Divided by the number of pairs, not by the sum of weights: only the ratio of the weights of (i, j) and (j, i)
    carries meaning, and a normalisation within a few lists would destroy it (docs/papers.md, "The weight of a pair").

    Args:
        policy_margins: s(q, chosen) - s(q, rejected) of the trained heads, (B,).
        reference_margins: the same of the reference, (B,).
        weights: at least 0, (B,).
        b: nats of preference per unit of cosine.

    Returns:
        A scalar; 0 if there is no pair.

    Source: docs/papers.md, "The loss".

    >>> import torch
    >>> margins = torch.tensor([0.25])
    >>> round(dpo_loss(margins, margins, weights=torch.ones(1), b=10.0).item(), 6)
    0.693147
    """
    terms = -logsigmoid(b * (policy_margins - reference_margins))  # (B,)
    return (weights * terms).sum() / max(1, len(weights))


def multi_positive_loss(logits: Tensor, positives: Tensor, *, negatives: Tensor, weights: Tensor) -> Tensor:
    """The weighted contrastive loss: sum of w * -log(e^l_p / (e^l_p + sum of e^l_n over the negatives)).

    Args:
        logits: s / tau - log Q per row and candidate, (R, C).
        positives: index of each row's own product among the candidates, (R,).
        negatives: True if a candidate counts against the row, (R, C).
        weights: at least 0, (R,); the caller decides what they sum to.

    Returns:
        A scalar; 0 if no row has a negative.

    Source: docs/papers.md, "The loss"; log Q as in Yi et al. 2019.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 5.0]])
    >>> one = multi_positive_loss(logits, torch.tensor([0]), negatives=torch.tensor([[False, True, False]]),
    ...                           weights=torch.ones(1))
    >>> round(one.item(), 6)  # log(1 + exp(1 - 2))
    0.313262
    """
    own = logits.gather(1, positives.unsqueeze(1)).squeeze(1)  # (R,)
    against = logits.masked_fill(~negatives, EXCLUDED).logsumexp(dim=1)  # (R,)
    return (weights * softplus(against - own)).sum()


def kl_anchor(policy_scores: Tensor, reference_scores: Tensor, *, tau: float) -> Tensor:
    """KL(softmax(reference / tau) || softmax(policy / tau)), averaged over queries.

    Pairs say nothing about products that nobody was shown; the anchor holds those where the reference had them.

    Args:
        policy_scores: cosines with random products, (Q, N).
        reference_scores: the same of the reference, (Q, N).
        tau: softmax temperature.

    Returns:
        A scalar; 0 if there is no query or no product.

    Source: docs/papers.md, "The anchor".

    >>> import torch
    >>> scores = torch.tensor([[0.5, 0.1]])
    >>> kl_anchor(scores, scores, tau=0.05).item()
    0.0
    """
    if reference_scores.numel() == 0:
        return policy_scores.sum() * 0.0
    reference = (reference_scores / tau).log_softmax(dim=1)
    policy = (policy_scores / tau).log_softmax(dim=1)
    return (reference.exp() * (reference - policy)).sum(dim=1).mean()


def trusted_negatives(
    reference_scores: Tensor,
    own_scores: Tensor,
    *,
    similarities: Tensor,
    known_positives: Tensor,
    guide_ratio: float,
    duplicate_cosine: float,
) -> Tensor:
    """Tell which candidates may count against each row: neither liked before, nor a twin, nor suspiciously close.

    Only for products that were shown to other queries: on those that were shown to this one and passed over, the guide
    would remove exactly the pairs that contradict it (docs/papers.md, "The loss").

    Args:
        reference_scores: cosines of each row's query with the candidates under the reference, (R, C).
        own_scores: the same of each row's query and its own product, (R,).
        similarities: base cosines of each row's product with the candidates, (R, C).
        known_positives: True if a candidate is known to please the row's query, or is left to another term, (R, C).
        guide_ratio: share of the positive's reference score above which a candidate is not trusted; rho.
        duplicate_cosine: base cosine from which two products count as the same.

    Returns:
        True if trusted, (R, C).

    Source: GISTEmbed and NV-Retriever in relative form; docs/papers.md, "The loss".
    """
    limits = own_scores - (1 - guide_ratio) * own_scores.abs()  # (R,)
    return (reference_scores <= limits.unsqueeze(1)) & (similarities < duplicate_cosine) & ~known_positives

"""Examination: how much likelier a shopper looks at one position than at another.

Until propensities are estimated from the shop's own lists, the prior stands for them: theta_k = 1 / k, version 0.
"""

from typing import Final

PRIOR_VERSION: Final = 0
"""The version that pairs carry whose weights come from the prior alone."""


def examination(position: int) -> float:
    """Return the relative chance that a shopper examines a position, 1 at the top.

    >>> examination(1), examination(4)
    (1.0, 0.25)
    """
    return 1 / position


def examination_ratio(chosen_position: int, rejected_position: int) -> float:
    """Return the weight that undoes position bias: min(1, theta_rejected / theta_chosen).

    It has the same fixed point as 1 / theta_chosen, is bounded by 1 and needs no clipping. It is 1 for a product that
    was chosen from below and less the further down the passed-over product stood.

    Source: docs/papers.md, "The weight of a pair".

    >>> examination_ratio(4, 1), examination_ratio(1, 4)
    (1.0, 0.25)
    """
    return min(1.0, examination(rejected_position) / examination(chosen_position))

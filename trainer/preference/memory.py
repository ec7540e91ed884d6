"""What shoppers of a repeated query chose, beyond what the model says of its products.

Each product of a query has an effect of its own on how often it is chosen: a factor that is 1 before anything is known
and that clicks move. Of lists its prior is worth the same for every product: all of them were found fit to be shown.
Of clicks without lists it is shared among the catalogue as the model shares them, so that what the model rules out can
still be chosen: the predictive rule of a Dirichlet process whose base measure is the model.

Tastes change faster for single products than for words and brands: what was chosen lately has a second say, with
everything, lately included, as its prior.

Source: docs/papers.md, "The memory of a query".
"""

from typing import Final

import numpy as np

from towers.features import matched
from towers.memory import MOST_NATS, MOST_PRODUCTS
from trainer.preference.evidence import Cells
from trainer.preference.losses import expected_clicks
from trainer.preference.model import Memory

LISTED_CLICKS: Final = 10.0
"""What the model's opinion of a listed product is worth."""
PRIOR_CLICKS: Final = 30.0
"""What its opinion of the whole catalogue is worth, where there are no lists."""
RECENT_PRIOR_CLICKS: Final = 5.0
"""The same of everything that was chosen, where something was chosen lately."""
RECENT_SHARE: Final = 1 / 16
"""Of the half-life of evidence: that of what counts as lately."""
LEAST_NATS: Final = 0.05
"""What moves a product less is not remembered."""
LEAST_SHARE: Final = 1e-12


def lifts(cells: Cells, scores: np.ndarray, *, prior_clicks: float = PRIOR_CLICKS) -> np.ndarray:
    """By how much the clicks of each cell lift its product for its query, in nats, (N,).

    The posterior mean of a Poisson rate relative to what was expected, under a gamma prior of mean 1. Of a grid, which
    is a whole catalogue, what was not chosen is 0 and the rest beside that.

    Args:
        cells: the evidence, N cells.
        scores: what the model says of each, in nats, (N,).
        prior_clicks: what its opinion of a whole catalogue is worth.
    """
    expected = expected_clicks(scores, cells)
    if not cells.width:
        return np.log((cells.clicks + LISTED_CLICKS) / (expected + LISTED_CLICKS))
    clicks = cells.spread(np.maximum(cells.query_clicks, np.finfo(float).tiny))
    expected = np.maximum(expected, LEAST_SHARE * clicks)
    prior = prior_clicks * expected / clicks
    found = np.log((cells.clicks + prior) / (expected + prior)) - np.log(prior_clicks / (clicks + prior_clicks))
    return np.asarray(found)


def remember(cells: Cells, scores: np.ndarray, recent: Cells | None = None) -> Memory:
    """What is remembered of each query.

    Args:
        cells: all evidence, N cells.
        scores: what the model says of each, in nats, (N,).
        recent: the same of lately; None if evidence has no times. What is not among all evidence does not count: the
            table of all evidence has less room for what is new.
    """
    if not len(cells):
        return {}
    found = lifts(cells, scores)
    if recent is not None and len(recent):
        keys, wanted = ((one.spread(one.queries) << 32) | one.products for one in (cells, recent))
        known, places = matched(wanted, keys)
        if len(known) < len(recent):
            recent = recent.of_cells(np.isin(np.arange(len(recent)), known))
        found[places] += lifts(recent, (scores + found)[places], prior_clicks=RECENT_PRIOR_CLICKS)
    found = np.clip(found, -MOST_NATS, MOST_NATS)
    moved = np.exp(scores - cells.spread(cells.highest(scores))) * np.abs(np.expm1(found))
    moved[np.abs(found) < LEAST_NATS] = 0.0
    candidates = np.flatnonzero(moved > 0)
    query_of = cells.spread(np.arange(len(cells.queries)))[candidates]
    order = np.lexsort((-moved[candidates], query_of))
    place = np.arange(len(order)) - np.searchsorted(query_of, query_of)  # among its query's: both orders are by query
    kept = np.sort(order[place < MOST_PRODUCTS])
    if not len(kept):
        return {}
    queries, starts = np.unique(query_of[kept], return_index=True)
    parts = (np.split(values[candidates[kept]], starts[1:]) for values in (cells.products, found))
    return dict(zip(cells.queries[queries].tolist(), zip(*parts, strict=True), strict=True))

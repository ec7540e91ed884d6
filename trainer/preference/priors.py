"""The prior's widths, learned: whatever predicts the clicks of left-out queries best.

Films want the quality of a product held ten times tighter than a shop does; a prior that is too loose ends below the
untrained model. So a part of the queries is left out, the others are solved, and each width moves by a factor of 3
while the left-out queries gain. It begins tight: few lists cannot loosen it. A part of the model from which they do
not surely gain is held at 0. Of the rest a share is released that grows with the certainty that it predicts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from scipy.special import expit, rel_entr

from trainer.preference.evidence import FORGOTTEN, Cells
from trainer.preference.losses import LossName, expected_clicks
from trainer.preference.model import HELD, Catalogue, Prior, Weights
from trainer.preference.solve import Problem

FOLDS: Final = 5
SEARCH_FOLDS: Final = 2
"""Folds that are left out in turn while widths move; each costs a solve for each width tried."""
FEW_QUERIES: Final = 300
"""With fewer queries that were clicked all folds are, for each has little to tell."""
ORDER: Final = (("lexical",), ("words",), ("own",), ("taste", "common"))
"""Widths that move together. The rates first: where words mislead, whatever else may move would make up for it.

What all queries prefer is what the tastes say of the mean query; looser than they are, it shines on what is shown and
ruins the rest (docs/experiments.md).
"""
MIX, BESIDE_MIX = ORDER[0], tuple(name for names in ORDER[1:] for name in names)
LOOSEST: Final = Prior(taste=2.0, common=10.0, own=1.0, words=0.3, lexical=0.3)
"""Left-out queries are asked about what was shown to them; what is looser than this shines there and ruins the rest."""
LOOSEST_OF_ALL: Final = LOOSEST._replace(taste=0.2)
"""Where they are asked about every product, as by clicks without lists: there is no rest."""
FACTOR: Final = 3.0
MAX_MOVES: Final = 3
"""Times that one width moves at most in one search."""
PARTS: Final = (("words",), ("own",), ("taste", "common"), ("lexical",))
"""What is held at 0 together; the rates of words, last, at what they are worth untrained."""
PART_ERRORS: Final = 1.0
"""Standard errors by which left-out queries must gain from a part beside the others."""
TIGHTER_ERRORS: Final = 1.0
"""Standard errors by which they must gain from a tighter width: what is shown to them differs less than the rest."""
LEAST_GAIN: Final = 2e-4
"""Nats per click by which a width must be better."""
ITERATIONS: Final = 15
SEARCH_DIRECTIONS: Final = 128
"""Fewer than are solved at the end: which width is better shows in them too."""
MOST_CELLS: Final = 100_000
"""Widths are learned of queries that have so many cells together: a trainer that learns them releases nothing else."""
MIN_QUERIES: Final = 20
"""With fewer queries that were clicked, leaving some out tells nothing."""
KNOWN_CLICKS: Final = 10.0
"""Clicks by which half of a query's say is reached: what a new query gains is asked of many queries, not of a few."""
LEAST_RELEASED: Final = 0.001
"""Nats per click; who gains less has little to win and can still lose."""
NO_ERRORS, ALL_ERRORS = 0.5, 2.0
"""Standard errors of the gain at which nothing is released yet, and at which all is.

Widths that predict left-out queries best hold what is noise near 0 already, and a release brings other products into
the lists, from which more is learned than from the same ones again (docs/experiments.md).
"""
_FOLDS_MIX, _SAMPLE_MIX = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


class Gain(NamedTuple):
    """By how much left-out queries are predicted better, in nats per click, and its standard error over queries."""

    mean: float
    error: float

    @property
    def share(self) -> float:
        """How much of what gains it shoppers should see, from 0 to 1."""
        if self.mean <= LEAST_RELEASED:
            return 0.0
        beyond = self.mean - NO_ERRORS * self.error
        return float(np.clip(beyond / ((ALL_ERRORS - NO_ERRORS) * self.error), 0.0, 1.0)) if self.error else 1.0


@dataclass(frozen=True, slots=True)
class Learned:
    """Widths, and what they are worth on left-out queries.

    What words count by default may be so wrong that its mending hides whether anything else predicts: each is judged
    by itself.

    Args:
        prior: the widths.
        gain: of everything beside the untrained ranking.
        mix: of what words count, alone.
        rest: of everything else, beside that.
        odds: log odds that the rest is true, see `odds_of`.
        found: the widths from which the next search begins: what is held is not known, but need not be found again.
    """

    prior: Prior
    gain: Gain
    mix: Gain
    rest: Gain
    odds: float = 0.0
    found: Prior = field(default_factory=Prior)

    @property
    def rest_share(self) -> float:
        """How much of everything beside the mix shoppers should see, from 0 to 1.

        Where it gains, the chance that it is true; and all together must surely gain. Tastes that were loosened must
        gain surely themselves, for they bring products first that no list has shown.
        """
        by_odds = self.rest.mean > LEAST_RELEASED and self.prior.taste >= Prior().taste
        return min(max(self.rest.share, float(expit(self.odds)) if by_odds else 0.0), self.gain.share)

    @property
    def helps(self) -> bool:
        """Whether shoppers should see anything of it."""
        return max(self.mix.share, self.rest_share) > 0


def fold_of(keys: np.ndarray) -> np.ndarray:
    """Which fold a query belongs to, always the same one, (Q,).

    Args:
        keys: what names the queries, whatever the order in which they were first typed, (Q,) of integers.
    """
    return (_mixed(keys, _FOLDS_MIX) % np.uint64(FOLDS)).astype(np.int64)


def names_of(queries: np.ndarray, query_keys: np.ndarray | None) -> np.ndarray:
    """What names each query, (Q,): its key, or its number where there are no keys."""
    return queries if query_keys is None else query_keys[queries]


def sampled(cells: Cells, keys: np.ndarray, *, most: int = MOST_CELLS) -> Cells:
    """The cells of as many queries as have so many together, drawn by what names them: as evidence grows, few change.

    All of a grid: it is solved by products of matrices, and each query has as many cells as there are products.

    Args:
        cells: the evidence, of Q queries.
        keys: what names the queries, (Q,) of integers.
        most: cells.
    """
    if len(cells) <= most or cells.width:
        return cells
    order = np.argsort(_mixed(keys, _SAMPLE_MIX), kind="stable")
    sizes = cells.sums(np.ones(len(cells)))
    return cells.of_queries(np.isin(np.arange(len(order)), order[np.cumsum(sizes[order]) <= most]))


def _mixed(keys: np.ndarray, factor: int) -> np.ndarray:
    """Integers that look drawn, (Q,) of uint64 below 2^32."""
    with np.errstate(over="ignore"):
        return np.asarray((keys.astype(np.uint64) + np.uint64(1)) * np.uint64(factor) >> np.uint64(32))


def learn_prior(
    cells: Cells,
    query_vectors: np.ndarray,
    catalogue: Catalogue,
    *,
    start: Prior,
    loss: LossName = "softmax",
    query_keys: np.ndarray | None = None,
) -> Learned | None:
    """Move the widths as far as left-out queries gain by it; None if there are too few queries.

    Args:
        cells: the evidence.
        query_vectors: base vectors by query number.
        catalogue: the products.
        start: widths to begin with: those that the last search found.
        loss: what is solved and predicted.
        query_keys: what names each query besides its number, (all queries,); None if numbers do not depend on the
            order in which queries arrived.
    """
    cells = sampled(cells, names_of(cells.queries, query_keys))
    folds = fold_of(names_of(cells.queries, query_keys))
    if len(cells.queries) < MIN_QUERIES:
        return None
    present = np.unique(folds).tolist()
    chosen = present if len(cells.queries) < FEW_QUERIES else present[:SEARCH_FOLDS]
    left_out = {fold: _LeftOut(cells, folds == fold, query_vectors, catalogue, loss) for fold in present}

    def surprise(prior: Prior) -> np.ndarray:
        return np.concatenate([left_out[fold].surprise(prior) for fold in chosen])

    has_matches = catalogue.matches is not None
    says = np.concatenate([left_out[fold].says for fold in chosen])
    best, prior = surprise(start), start
    loosest = LOOSEST_OF_ALL if cells.width else loosest_by(len(cells.queries))
    for names in ORDER if has_matches else ORDER[1:]:
        for factor in (1 / FACTOR, FACTOR):
            moves = 0
            while moves < MAX_MOVES:
                moved = {name: getattr(prior, name) * factor for name in names}
                within = {name: to for name, to in moved.items() if factor > 1 or to >= getattr(loosest, name)}
                tried = prior._replace(**within)
                if tried == prior:
                    break
                found = surprise(tried)
                gain, error = gain_of(best, found, says)
                if gain <= (max(LEAST_GAIN, TIGHTER_ERRORS * error) if factor > 1 else LEAST_GAIN):
                    break
                best, prior, moves = found, tried, moves + 1
            if moves:
                break
    parts = PARTS if has_matches else PARTS[:-1]
    return _without_idle_parts(prior, parts, list(left_out.values()))


def loosest_by(queries: int) -> Prior:
    """The loosest widths by the lists of so many queries; words are wide in proportion to these, up to `FEW_QUERIES`.

    What few lists say of a word holds for products that they never showed, and many words add up.

    >>> loosest_by(300).words, round(loosest_by(100).words, 3)
    (0.3, 2.7)
    """
    return LOOSEST._replace(words=LOOSEST.words * max(1.0, FEW_QUERIES / queries) ** 2)


def _without_idle_parts(prior: Prior, parts: Sequence[tuple[str, ...]], left_out: Sequence["_LeftOut"]) -> Learned:
    """Hold, one after the other, the part that is worth least beside the others, until each is worth something.

    What is worth something only if it is tighter gets so: its width was the best one in the mean, not the surest.
    """
    says = np.concatenate([one.says for one in left_out])

    def surprise(prior: Prior) -> np.ndarray:
        return np.concatenate([one.surprise(prior) for one in left_out])

    searched, found, parts = prior, surprise(prior), list(parts)
    while len(parts) > 1:
        without = {part: prior._replace(**dict.fromkeys(part, HELD)) for part in parts}
        surprises = {part: surprise(tried) for part, tried in without.items()}
        worth = {part: gain_of(surprises[part], found, says) for part in parts}
        least = min(parts, key=lambda part: worth[part][0] - PART_ERRORS * worth[part][1])
        if _is_sure(worth[least]):
            break
        parts.remove(least)
        for steps in range(1, MAX_MOVES):
            tighter = prior._replace(**{name: getattr(prior, name) * FACTOR**steps for name in least})
            predicted = surprise(tighter)
            if _is_sure(gain_of(surprises[least], predicted, says)):
                prior, found = tighter, predicted
                break
        else:
            prior, found = without[least], surprises[least]
    untrained = np.concatenate([one.untrained for one in left_out])
    mix_alone = prior._replace(**dict.fromkeys(BESIDE_MIX, HELD))
    mixed = surprise(mix_alone)
    gain, mix, rest = gain_of(untrained, found, says), gain_of(untrained, mixed, says), gain_of(mixed, found, says)
    expected = sum(rel_entr(one.clicks(prior), one.clicks(mix_alone)).sum() for one in left_out) / says.sum()
    return Learned(prior, gain, mix, rest, odds_of(rest, float(expected)), prior.unheld(searched))


def _is_sure(gain: Gain) -> bool:
    return gain.mean > PART_ERRORS * gain.error


def gain_of(before: np.ndarray, after: np.ndarray, says: np.ndarray) -> Gain:
    """Nats per click by which queries are predicted better, and the standard error.

    Args:
        before: the surprise of each query, by its say, (Q,).
        after: the same of what is compared, (Q,).
        says: of the queries, (Q,).
    """
    total = says.sum()
    mean = float((before - after).sum() / total)
    return Gain(mean, float(np.sqrt(((before - after - mean * says) ** 2).sum()) / total))


def odds_of(gain: Gain, expected: float) -> float:
    """Log odds that weights are true, against that nothing of them is: near 0 while left-out queries cannot tell.

    If they are true, left-out queries gain about what the weights expect, which is the Kullback-Leibler divergence of
    what they say from what is said without them; if not, they lose as much. The gain is normal about either.

    Args:
        gain: of the weights.
        expected: by themselves, in nats per click.

    >>> [round(odds_of(Gain(0.01, 0.01), expected), 1) for expected in (0.001, 0.02)]
    [0.2, 4.0]
    """
    if not gain.error:
        return math.copysign(math.inf, gain.mean) if gain.mean else 0.0
    return 2 * gain.mean * expected / gain.error**2


class _LeftOut:
    """Some queries, predicted by what is solved on the others."""

    def __init__(
        self, cells: Cells, chosen: np.ndarray, query_vectors: np.ndarray, catalogue: Catalogue, loss: LossName
    ) -> None:
        solved = cells.of_queries(~chosen)
        self._solved = Problem(solved, query_vectors, catalogue, loss=loss, directions=SEARCH_DIRECTIONS)
        self._unseen = Problem(cells.of_queries(chosen), query_vectors, catalogue)
        self._warm: Weights | None = None
        clicks = self._unseen.cells.query_clicks
        self.says = clicks / (1 + clicks / KNOWN_CLICKS)
        self._per_click = self.says / np.maximum(clicks, FORGOTTEN)
        self.untrained = self._unseen.surprise(Weights.untrained(catalogue)) * self._per_click

    def surprise(self, prior: Prior) -> np.ndarray:
        """Of each query, by its say."""
        return np.asarray(self._unseen.surprise(self._weights(prior)) * self._per_click)

    def clicks(self, prior: Prior) -> np.ndarray:
        """Of each cell the clicks to expect, of those that are its query's say, (N,)."""
        cells = self._unseen.cells
        expected = expected_clicks(self._unseen.scores_by(self._weights(prior)), cells)
        return np.asarray(expected * cells.spread(self._per_click))

    def _weights(self, prior: Prior) -> Weights:
        weights = self._solved.solve(prior, start=self._warm, max_iterations=ITERATIONS).weights
        self._warm = self._warm or weights
        return weights

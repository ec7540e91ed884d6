"""From evidence to weights: from time to time learn the prior, solve, and hold back what does not predict.

Evidence and catalogue are the caller's and are given to each call; the catalogue may have grown since the last one.
When the prior is learned depends on the lists alone, not on how often the model is solved: one log gives one result.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from trainer.preference.debiasing import FULL, NAIVE, STRENGTHS, Debias, Judgement, judge
from trainer.preference.evidence import Cells
from trainer.preference.losses import LossName
from trainer.preference.memory import remember
from trainer.preference.model import DEFAULT_RATES, HELD, Catalogue, Prior, Weights
from trainer.preference.priors import BESIDE_MIX, MIX, ORDER, Gain, Learned, learn_prior
from trainer.preference.rules import NO_RULES
from trainer.preference.solve import MAX_ITERATIONS, Problem

PRIOR_LISTS: Final = 250
"""Lists after which the prior is learned for the first time."""
PRIOR_GROWTH: Final = 1.3
"""By which factor the lists have to grow until it is learned anew."""


class Fit(NamedTuple):
    """What was solved, from which the next solve begins, and what of it may be released, memories aside.

    Args:
        cells: that were solved, N of them.
        nats: what is released says of each, (N,).
        weights: from which the next solve begins.
        released: what of them may be released.
        iterations: that it took.
        converged: whether the budget sufficed.
    """

    cells: Cells
    nats: np.ndarray
    weights: Weights
    released: Weights
    iterations: int
    converged: bool

    def remembering(self, recent: Cells | None = None, *, among: np.ndarray | None = None) -> Weights:
        """What may be released, with what is remembered of single queries.

        A memory moves no other query, so nothing has to be shown to predict.

        Args:
            recent: the evidence of lately; None if evidence has no times.
            among: which cells may be remembered, (cells,) of bool; all if None.
        """
        cells, nats = self.cells, self.nats
        if among is not None:
            cells, nats = cells.of_cells(among), nats[among]
        return replace(self.released, memory=remember(cells, nats, recent))


class PreferenceLearner:
    """The prior in force, whether it helps, and when it is learned next.

    Args:
        loss: what is solved.
        debias: whether showings are weighed by their examination.
        max_iterations: budget of one solve.
    """

    def __init__(
        self, *, loss: LossName = "softmax", debias: Debias = "auto", max_iterations: int = MAX_ITERATIONS
    ) -> None:
        self._loss: LossName = loss
        self._debias: Debias = debias
        self._max_iterations = max_iterations
        self._next_prior = float(PRIOR_LISTS)
        self.learned: Learned | None = None
        """The prior in force and what it predicts; None while there is too little evidence."""
        self.judgement: Judgement | None = None
        """Of the weighing of showings; None while no neighbours were exchanged."""

    @property
    def strength(self) -> float:
        """How strongly showings are weighed (`EvidenceTable.cells`)."""
        if self._debias == "auto":
            return FULL if self.judgement is None else self.judgement.strength
        return FULL if self._debias == "on" else NAIVE

    def prior_due(self, lists: float) -> bool:
        """Whether the prior is to be learned now that so many lists were counted; lists do not fade."""
        return lists >= self._next_prior

    def learn_prior(
        self,
        cells: Cells,
        query_vectors: np.ndarray,
        catalogue: Catalogue,
        lists: float,
        *,
        query_keys: np.ndarray | None = None,
    ) -> None:
        """Learn the prior anew, beginning with the one in force.

        Args:
            cells: the evidence.
            query_vectors: base vectors of the queries; evidence names their rows, (all queries, D).
            catalogue: the products; evidence names their rows.
            lists: how many were counted.
            query_keys: what names each query besides its number, (all queries,); None if numbers do not depend on the
                order in which queries arrived.
        """
        if len(cells.sought):
            cells = cells.of_all_queries()
            cells = cells.of_queries(cells.query_clicks > 0)
        self.learned = learn_prior(
            cells, query_vectors, catalogue, start=self._found, loss=self._loss, query_keys=query_keys
        )
        self._next_prior = lists * PRIOR_GROWTH

    def learn(
        self,
        weighed: Callable[[float], Cells],
        exchanges: np.ndarray,
        query_vectors: np.ndarray,
        catalogue: Catalogue,
        lists: float,
        *,
        query_keys: np.ndarray | None = None,
    ) -> None:
        """Learn the prior, then judge the weighing of showings; if it changes, learn the prior under the new one.

        Args:
            weighed: the evidence by how strongly showings are weighed.
            exchanges: neighbours in random order, (N, 5), see `trainer.preference.debiasing`.
            query_vectors: base vectors of the queries, (all queries, D).
            catalogue: the products.
            lists: how many were counted.
            query_keys: as for `learn_prior`.
        """
        evidence = {strength: weighed(strength).of_all_queries() for strength in STRENGTHS}
        exchanges = exchanges[~np.isin(exchanges[:, 1:3], evidence[FULL].sought).any(axis=1)]
        before = self.strength
        self.learn_prior(evidence[before], query_vectors, catalogue, lists, query_keys=query_keys)
        if self.learned is None:
            return
        self.judgement = judge(
            exchanges, evidence, query_vectors, catalogue,
            prior=self._prior, loss=self._loss, query_keys=query_keys,
        )  # fmt: skip
        if self.strength != before:
            self.learn_prior(evidence[self.strength], query_vectors, catalogue, lists, query_keys=query_keys)

    def solve(
        self,
        cells: Cells,
        query_vectors: np.ndarray,
        catalogue: Catalogue,
        *,
        rules: Cells = NO_RULES,
        start: Weights | None = None,
    ) -> Fit:
        """Solve the evidence under the prior in force, and hold back what does not predict left-out queries.

        What rules say moves the weights, no prior and no share that is released, and no query gains a memory by it.
        Of a product that is sought it is the other way round: it is remembered, and moves no other query.

        Args:
            cells: the evidence.
            query_vectors: base vectors of the queries, (all queries, D).
            catalogue: the products.
            rules: pairs of rules (`trainer.preference.rules`).
            start: where to begin, as was solved before; at 0 if None.
        """
        problem = Problem(cells.of_all_queries(), query_vectors, catalogue, loss=self._loss, rules=rules)
        rest, mix = self._shares
        idle = (() if rest else BESIDE_MIX) + (() if mix else MIX)
        prior = self._prior._replace(**dict.fromkeys(idle, HELD))
        found = problem.solve(prior, start=start, uncertainty=True, max_iterations=self._max_iterations)
        released = found.weights.scaled(rest, mix=mix)
        nats = problem.nats(released, rest * found.preferred)[: len(cells)]
        return Fit(cells, nats, found.weights, released, found.iterations, found.converged)

    def debiasing(self) -> dict[str, float]:
        """How strongly showings are weighed, and what exchanged neighbours say of it."""
        judged = self.judgement
        if judged is None:
            return {"strength": self.strength}
        return {
            "strength": self.strength, "exchanges": judged.exchanges, "loss": judged.loss, "naive": judged.naive,
            "gain": judged.over_naive.mean, "error": judged.over_naive.error,
        }  # fmt: skip

    def state(self) -> dict[str, np.ndarray]:
        """What was learned of the prior, and when it is learned next."""
        state = {"next_prior": np.array(self._next_prior)}
        if (judged := self.judgement) is not None:
            numbers = judged.exchanges, judged.queries, judged.loss, judged.naive, *judged.over_naive, *judged.over_half
            state["judgement"] = np.array(numbers, dtype=np.float64)
        if self.learned is not None:
            learned = self.learned
            gains = *learned.gain, *learned.mix, *learned.rest, learned.odds
            state["learned"] = np.array((*learned.prior, *gains, *learned.found), dtype=np.float64)
            state["learned_under"] = self._learned_under()
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], **options: Any) -> "PreferenceLearner":
        """Go on with the prior of another one; one of another form is learned anew.

        Args:
            state: of the other one.
            options: as that one was made with.
        """
        learner = cls(**options)
        if "judgement" in state:
            count, queries, loss, naive, *gains = state["judgement"].tolist()
            learner.judgement = Judgement(int(count), int(queries), loss, naive, Gain(*gains[:2]), Gain(*gains[2:]))
        learner._next_prior = float(state["next_prior"])
        widths, numbers = len(Prior()), state.get("learned", np.zeros(0)).tolist()
        is_ours = np.array_equal(state.get("learned_under", ()), learner._learned_under())
        if len(numbers) == 2 * widths + 7 and is_ours:
            gain, mix, rest = (Gain(*numbers[at : at + 2]) for at in range(widths, widths + 6, 2))
            odds, found = numbers[widths + 6], Prior(*numbers[-widths:])
            learner.learned = Learned(Prior(*numbers[:widths]), gain, mix, rest, odds, found)
        elif numbers:
            learner._next_prior = 0.0
        return learner

    def _learned_under(self) -> np.ndarray:
        """What a prior is learned for: which rates there are, which widths move apart, and how showings are weighed."""
        return np.array((len(DEFAULT_RATES), len(ORDER), self.strength), dtype=np.float64)

    @property
    def _shares(self) -> tuple[float, float]:
        """Of everything beside the mix, of which all must gain too; and of the mix."""
        learned = self.learned
        return (0.0, 0.0) if learned is None else (learned.rest_share, learned.mix.share)

    @property
    def _prior(self) -> Prior:
        return Prior() if self.learned is None else self.learned.prior

    @property
    def _found(self) -> Prior:
        return Prior() if self.learned is None else self.learned.found

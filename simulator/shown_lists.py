"""The lists of a closed loop: who searches for what, what is shown, and what is clicked; one list after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import Field

from contracts.outcomes import examination
from contracts.telemetry import FILTERS_ON, Filter
from indexer.search.exploration import swapped
from simulator.shop.click_models import TRUST, ClickModel, Habits, browse
from simulator.shop.shoppers import Action, Shoppers
from simulator.shop.trouble import TROUBLES, USUAL, Step, Trouble, Visits
from simulator.shop.world import Query, World
from trainer.preference.losses import LossName

SHOWN: Final = 10
BEGIN_MS: Final = 1_795_000_000_000
BETWEEN_VISITS_MS: Final = 30_000
READ_MS: Final = 3_000
"""From the last thing that a shop's shopper did with a list to the next query."""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """One run.

    Args:
        lists: how many are shown.
        seed: of queries, shoppers and noise.
        redeploy: lists after which the model is solved and put in force.
        shoppers: `simple` ones click on what they looked at by attraction; `shop` ones are the shop simulator's.
        bias: whether simple shoppers look less at lower positions.
        click_model: how they read a list; `cascade` and `trust` are those of `simulator.shop.click_models`.
        ranker: whose lists they see: those of the model in force (`own`), or always those of the untrained model
            (`base`), of that one spoiled by noise (`weak`), or of one that knows half of what they like (`strong`).
        swaps: share of lists whose neighbours are exchanged at random, as search does.
        weights: `ratio` undoes position bias by 1/position, `one` does not, `auto` is what exchanged neighbours prove.
        twin: whether the same lists are also solved without weights, or with them if there are none in force.
        explore: standard deviation of noise on the scores of shown lists, in nats; with draws, in deviations of each
            product's own quality.
        explore_by: `noise` is alike for all products; `draws` of their qualities move only what is uncertain.
        learner: `preference`; `one-pass` for the heads that it replaced (`simulator.one_pass`); `none` for the
            untrained model.
        loss: what is solved.
        filters: of the pairs stage, those that are on (`MILLRACE_FILTERS`).
        look_ahead: seconds that the pairs stage waits for what follows a list (`MILLRACE_LOOK_AHEAD_S`).
        trouble: who comes beside simple shoppers (`simulator.shop.trouble`).
        troubled: their share of lists.
    """

    lists: Annotated[int, Field(ge=1)] = 12_000
    seed: Annotated[int, Field(ge=0)] = 1
    redeploy: Annotated[int, Field(ge=1)] = 500
    shoppers: Literal["simple", "shop"] = "simple"
    bias: Literal["position", "none"] = "position"
    click_model: ClickModel = "position"
    ranker: Literal["own", "base", "weak", "strong"] = "own"
    swaps: Annotated[float, Field(ge=0, le=1)] = 0.0
    weights: Literal["ratio", "one", "auto"] = "ratio"
    twin: bool = False
    explore: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    explore_by: Literal["noise", "draws"] = "noise"
    learner: Literal["preference", "one-pass", "none"] = "preference"
    loss: LossName = "softmax"
    filters: tuple[Filter, ...] = FILTERS_ON
    look_ahead: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    trouble: Trouble = "none"
    troubled: Annotated[float, Field(ge=0, le=1)] = 0.3


Ranking = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""By query: the rows of the products that rank first, best first, and their scores in nats."""
Noise = Callable[[np.ndarray], np.ndarray]
"""Rows of products -> what is added to their scores in one list."""


class Listed(NamedTuple):
    """One list.

    Args:
        number: of the query.
        at_ms: when it was asked for.
        session: whose it is.
        client: likewise.
        slots: as a joined search has them.
        swap_seed: by which neighbours were exchanged; None if none were.
        lost: what exploration cost, in mean attraction.
        is_usual: whether those who make trouble had no part in it.
    """

    number: int
    at_ms: int
    session: str
    client: str
    slots: list[dict[str, Any]]
    swap_seed: int | None
    lost: float
    is_usual: bool = True


class ShownLists:
    """Shows lists to the shoppers of one run.

    Args:
        world: where they shop.
        options: of the run.
        products: id and parent's id of each product, by row.
        numbers: of the queries by their ids.
    """

    def __init__(
        self,
        world: World,
        options: SimulateOptions,
        *,
        products: Sequence[tuple[str, str | None]],
        numbers: Mapping[str, int],
    ) -> None:
        self._world, self._options, self._products, self._numbers = world, options, products, numbers
        typed = world.of_split("train")
        self.queries = np.array([numbers[query.query_id] for query in typed], dtype=np.int64)
        self._query_of = {numbers[query.query_id]: query for query in typed}
        self.rng = np.random.default_rng(options.seed)
        popularity = np.array([query.popularity for query in typed])
        self._popularity = popularity / popularity.sum() if popularity.sum() > 0 else None
        self._looks = np.array([examination(position) for position in range(1, SHOWN + 1)])
        if options.bias == "none":
            self._looks = np.full(SHOWN, self._looks.mean())
        self._habits = Habits(options.click_model, trust=TRUST[options.click_model])
        self._shoppers = Shoppers(world, options.seed)
        self._visit, self._step = self._shoppers.visit(0), 0
        self._typed: Query | None = self._visit.first
        self._kind: Visits = USUAL
        self._steps: list[Step] = []
        self._lists = self._troubled = self._visits = 0
        self._now_ms = BEGIN_MS
        self._before: tuple[int, np.ndarray] = (0, np.empty(0, dtype=np.int64))
        """Query and clicked rows of the list before."""
        self._odd = np.random.default_rng(options.seed + 1).random(len(products))
        """What one person likes whom nobody is like."""
        self.target: int | None = None
        """The product that robots push."""

    def next(self, ranking: Ranking, noise: Noise) -> Listed:
        """Show the next list."""
        self._lists += 1
        if self._options.shoppers == "shop":
            return self._of_shopper(ranking, noise)
        if not self._steps:
            self._begin_visit()
        step, is_usual = self._steps.pop(0), self._kind is USUAL
        self._troubled += not is_usual
        self._now_ms += step.after_ms
        number = self._query(step, ranking)
        rows, swap_seed, lost = self._shown(number, ranking, noise)
        clicked = rows[np.flatnonzero(self._clicks(step, number, rows))]
        self._before = number, clicked
        slots = self._slots(rows)
        for slot, row in zip(slots, rows, strict=True):
            slot["clicked"] = bool(np.isin(row, clicked))
        client = "one" if self._kind.is_one_client else f"c{self._visits}"
        return Listed(number, self._now_ms, f"s{self._visits}", client, slots, swap_seed, lost, is_usual)

    def attractions(self, number: int, rows: np.ndarray) -> np.ndarray:
        """How much products attract whoever types a query and looks at them."""
        query_id = self._query_of[number].query_id
        judged = [self._world.judgment(query_id, self._products[row][0]) for row in rows]
        return np.array([judgment.click_probability() for judgment in judged])

    def _begin_visit(self) -> None:
        trouble = TROUBLES.get(self._options.trouble)
        is_due = trouble is not None and self._troubled < self._options.troubled * self._lists
        self._kind = trouble if trouble is not None and is_due else USUAL
        self._steps = list(self._kind.steps)
        self._visits += 1
        self._now_ms += BETWEEN_VISITS_MS

    def _query(self, step: Step, ranking: Ranking) -> int:
        if step.typed == "same":
            return self._before[0]
        if step.typed == "target":
            if self.target is None:
                self.target = int(ranking[int(self.queries[0])][0][:SHOWN][-1])
            finding = [number for number in self.queries.tolist() if self.target in ranking[number][0][:SHOWN]]
            return int(self.rng.choice(finding or self.queries))
        return int(self.rng.choice(self.queries, p=self._popularity))

    def _clicks(self, step: Step, number: int, rows: np.ndarray) -> np.ndarray:
        """Whether each product is clicked."""
        looks = self._looks[: len(rows)]
        if step.manner == "all":
            return np.ones(len(rows), dtype=bool)
        if step.manner == "nothing":
            return np.zeros(len(rows), dtype=bool)
        if step.manner in {"target", "same"}:
            return np.isin(rows, np.array(self.target) if step.manner == "target" else self._before[1])
        clicked = self._clicked(self._odd[rows] if step.manner == "odd" else self.attractions(number, rows), looks)
        if step.manner == "one_variant":
            parents = [self._products[row][1] for row in rows]
            taken = [parent for parent, one in zip(parents, clicked, strict=True) if one]
            firsts = [parents.index(parent) for parent in taken if parent is not None]
            clicked &= np.array([parent is None or place in firsts for place, parent in enumerate(parents)])
        return clicked

    def _clicked(self, attractions: np.ndarray, looks: np.ndarray) -> np.ndarray:
        """What a simple shopper clicks."""
        if self._options.click_model == "position":
            return np.asarray(self.rng.random(len(looks)) < attractions * looks)
        _, clicked = browse(attractions.tolist(), self.rng.random((len(looks), 3)).tolist(), habits=self._habits)
        return np.isin(np.arange(len(looks)), clicked)

    def _of_shopper(self, ranking: Ranking, noise: Noise) -> Listed:
        """The next list of the shop simulator's shoppers."""
        if self._typed is None:
            self._visit, self._step = self._shoppers.visit(self._visit.number + 1), 0
            self._typed = self._visit.first
            self._now_ms += BETWEEN_VISITS_MS
        query, visit, at_ms = self._typed, self._visit, self._now_ms
        number = self._numbers[query.query_id]
        rows, swap_seed, lost = self._shown(number, ranking, noise)
        returned = [self._products[row][0] for row in rows]
        reaction = self._shoppers.react(visit, self._step, query=query, returned=returned)
        self._typed, self._step = reaction.follow_up, self._step + 1
        self._now_ms += max((action.at_ms for action in reaction.actions), default=0) + READ_MS
        slots = self._slots(rows)
        for action in reaction.actions:
            slots[action.position - 1] |= _outcome(action, at_ms)
        return Listed(number, at_ms, visit.session_id, visit.client_id, slots, swap_seed, lost)

    def _slots(self, rows: np.ndarray) -> list[dict[str, Any]]:
        shown = [self._products[row] for row in rows]
        return [{"product_id": one, "position": k, "parent_id": of} for k, (one, of) in enumerate(shown, start=1)]

    def _shown(self, number: int, ranking: Ranking, noise: Noise) -> tuple[np.ndarray, int | None, float]:
        """The rows that are shown, by which seed neighbours were exchanged, and what exploration cost."""
        rows, scores = ranking[number]
        if self._options.swaps and self.rng.random() < self._options.swaps:
            seed = int(self.rng.integers(2**31))
            return np.array(swapped([rows[:SHOWN].tolist()], seed)[0]), seed, 0.0
        if not self._options.explore:
            return rows[:SHOWN], None, 0.0
        noisy = scores + noise(rows)
        shown = rows[np.argsort(-noisy, kind="stable")[:SHOWN]]
        lost = self.attractions(number, rows[:SHOWN]).mean() - self.attractions(number, shown).mean()
        return shown, None, float(lost)


def _outcome(action: Action, at_ms: int) -> dict[str, Any]:
    """What an action says of its slot; views are left to shops that send them."""
    if action.kind == "click":
        return {"clicked": True, "click_time": at_ms + action.at_ms}
    if action.kind == "dwell":
        return {"dwell_ms": action.dwell_ms}
    return {f"{action.kind}_quantity": 1} if action.kind in {"cart", "purchase"} else {}

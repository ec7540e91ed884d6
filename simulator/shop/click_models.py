"""How the shoppers of one shop look at a list and click: three click models of the literature, drawn by a seed.

The steepness of looks and the model itself are unknown to whoever learns from the clicks, as in life.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal, get_args

import numpy as np

from simulator.shop.world import Judgment, World

ClickModel = Literal["position", "cascade", "trust"]
"""`position`: looks at slot k with probability k^-eta, whatever else is there. `cascade`: reads from the top and stops,
mostly after a click. `trust`: as `position`, and clicks more on what ranks first because it ranks first."""
CLICK_MODELS: Final[tuple[ClickModel, ...]] = get_args(ClickModel)
ETAS: Final = (0.6, 1.4)
"""Between these lies the steepness of a seed."""
TRUST: Final[Mapping[ClickModel, float]] = {"position": 0.04, "cascade": 0.04, "trust": 0.2}
MOST_CLICKED: Final = 0.95
"""P(click | looked) is never more."""
REFERENCE: Final = 0.5
"""Clicks a list are asked for on lists that attract half as much as the best possible."""
MOST_EAGER: Final = 1e3


@dataclass(frozen=True, slots=True)
class Habits:
    """What the shoppers of one shop have in common.

    Args:
        click_model: which of the three they follow.
        eta: steepness of looks; a cascade without clicks reaches slot 10 as rarely as the others look at it.
        trust: extra P(click | looked) at the top, falling with 1/k.
        noise: P(click by mistake | looked).
        satisfied: P(stop | click) in a cascade.
        eagerness: factor on every P(click | looked).
    """

    click_model: ClickModel = "position"
    eta: float = 1.0
    trust: float = 0.04
    noise: float = 0.01
    satisfied: float = 0.6
    eagerness: float = 1.0

    @classmethod
    def of_seed(
        cls,
        seed: int,
        *,
        click_model: ClickModel | None = None,
        eta: float | None = None,
        trust: float | None = None,
    ) -> "Habits":
        """Draw what is not given."""
        rng = Random(f"habits:{seed}")
        drawn, steepness = rng.choice(CLICK_MODELS), round(rng.uniform(*ETAS), 3)
        model = click_model or drawn
        return cls(model, steepness if eta is None else eta, TRUST[model] if trust is None else trust)

    def looks(self, position: int) -> float:
        """P(look) of who looks at slots one by one.

        >>> Habits().looks(4)
        0.25
        """
        return float(position**-self.eta)

    def goes_on(self, clicked: np.ndarray) -> np.ndarray:
        """P(next slot | read this one) in a cascade, (Q,), by whether this one was clicked (or how probably)."""
        without = 10 ** (-self.eta / 9)
        return np.asarray(clicked * (1 - self.satisfied) + (1 - clicked) * without)

    def click_probabilities(self, attractions: np.ndarray) -> np.ndarray:
        """P(click | looked) of slots, (..., K): the attraction, or trust in the ranking, or a mistake.

        >>> Habits(trust=0.0, noise=0.0).click_probabilities(np.array([0.5, 0.0])).tolist()
        [0.5, 0.0]
        """
        positions = np.arange(1, attractions.shape[-1] + 1)
        wanted = 1 - (1 - attractions) * (1 - self.trust / positions) * (1 - self.noise)
        return np.asarray(np.minimum(MOST_CLICKED, self.eagerness * wanted))

    def expected_clicks(self, attractions: np.ndarray) -> np.ndarray:
        """The expected clicks of lists, (Q,), whose slots attract so, (Q, K)."""
        probabilities = self.click_probabilities(attractions)
        if self.click_model != "cascade":
            looks = np.array([self.looks(position) for position in range(1, attractions.shape[1] + 1)])
            return np.asarray(probabilities @ looks)
        clicks, reached = np.zeros(len(attractions)), np.ones(len(attractions))
        for clicked in probabilities.T:
            clicks += reached * clicked
            reached = reached * self.goes_on(clicked)
        return clicks

    def clicking(self, clicks: float, world: World, *, length: int) -> "Habits":
        """The same shoppers, so eager that a list gets so many clicks while search is half as good as it could be."""
        attractions, shares = _reference_lists(world, length)
        low, high = 0.0, MOST_EAGER
        for _ in range(50):
            middle = (low + high) / 2
            enough = shares @ replace(self, eagerness=middle).expected_clicks(attractions) >= clicks
            low, high = (low, middle) if enough else (middle, high)
        return replace(self, eagerness=round(high, 4))


def _reference_lists(world: World, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What the slots of half-good lists attract, (Q, K), and how often each query is typed, (Q,)."""
    queries = world.of_split("train")
    attractions = np.zeros((len(queries), length))
    for row, query in enumerate(queries):
        judged = world.judgments.get(query.query_id, {}).values()
        best = sorted((judgment.click_probability() for judgment in judged), reverse=True)[:length]
        attractions[row, : len(best)] = REFERENCE * np.array(best)
    popularity = np.array([query.popularity for query in queries]) + 1e-12
    return attractions, popularity / popularity.sum()


def browse(
    attractions: Sequence[float], draws: Sequence[Sequence[float]], *, habits: Habits
) -> tuple[list[int], list[int]]:
    """Decide which slots of a list are looked at and which are clicked; both are 0-based.

    Args:
        attractions: P(click | looked) of each slot's product.
        draws: uniform in [0, 1), at least three for each slot: looks, clicks, goes on.
        habits: how they look and click.

    >>> browse([1.0, 0.0], [(0.9, 0.5, 0.5), (0.1, 0.5, 0.5)], habits=Habits())
    ([0, 1], [0])
    """
    looked, clicked = [], []
    probabilities = habits.click_probabilities(np.array(attractions))
    cascade = habits.click_model == "cascade"
    for slot, probability in enumerate(probabilities):
        look, click, go_on = draws[slot][:3]
        if not cascade and look >= habits.looks(slot + 1):
            continue
        looked.append(slot)
        if click < probability:
            clicked.append(slot)
        if cascade and go_on >= habits.goes_on(np.array(float(slot in clicked))):
            break
    return looked, clicked


def with_clicks(world: World, clicks: float) -> World:
    """The same world, its products so attractive that lists get so many clicks from who looks at slot k with 1/k."""
    factor = Habits(trust=0.0, noise=0.0).clicking(clicks, world, length=10).eagerness
    judgments = {
        query_id: {
            one: Judgment(judged.grade, min(MOST_CLICKED, factor * judged.click_probability()))
            for one, judged in found.items()
        }
        for query_id, found in world.judgments.items()
    }
    return replace(world, judgments=judgments)

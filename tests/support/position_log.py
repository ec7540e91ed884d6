"""Joined searches of shoppers who look by position, in a shop whose live ranking feeds on its own clicks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contracts.outcomes import first_swapped
from contracts.structs import Exploration, JoinedSearch, JoinedSlot, Ranking
from tests.support.search_events import T0

GAP_MS = 1_000
"""Between two lists."""
REDEPLOYED_EVERY = 500


@dataclass
class PositionShop:
    """A shop whose shoppers look at position k with chance theta_k and click by what products are worth.

    Args:
        thetas: the chance of a look, relative to the first position.
        seed: of everything.
        swapped: share of lists whose neighbours are exchanged.
        anchored: share of lists of the frozen anchor ranking with jitter.
        trust: what is added to the chance of a click, by position, for ranking there.
        queries: how many are typed; the first ones most often.
        products: how many each query finds.
    """

    thetas: Sequence[float]
    seed: int = 1
    swapped: float = 0.05
    anchored: float = 0.1
    trust: Sequence[float] = ()
    queries: int = 300
    products: int = 30
    shown: Any = field(init=False)
    clicked: Any = field(init=False)
    """Of the live ranking, by position: what raw click-through is made of."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.worth = self.rng.beta(1.0, 2.5, (self.queries, self.products))
        self.base = np.log(self.worth + 0.02) + self.rng.normal(0, 1.2, self.worth.shape)
        self.shown, self.clicked = np.zeros(len(self.thetas)), np.zeros(len(self.thetas))
        self._shows, self._clicks = np.full(self.worth.shape, 4.0), np.ones(self.worth.shape)
        weights = 1 / np.arange(1, self.queries + 1)
        self._popularity = weights / weights.sum()

    def lists(self, number: int) -> Iterator[JoinedSearch]:
        """Yield lists in order of time."""
        return (_list(*served) for served in self._served(number))

    def explored(self, number: int) -> Iterator[JoinedSearch]:
        """Yield those lists of so many that were explored."""
        return (_list(*one) for one in self._served(number) if one[-1].exploration.policy != "none")

    def _served(self, number: int) -> Iterator[tuple[int, int, list[int], list[bool], Ranking]]:
        """Yield number, query, products, clicks and ranking of lists."""
        live = self._live()
        typed = self.rng.choice(self.queries, number, p=self._popularity).tolist()
        ways, seeds = self.rng.random(number).tolist(), self.rng.integers(1, 2**31, number).tolist()
        for index, (query, way, seed) in enumerate(zip(typed, ways, seeds, strict=True)):
            if index % REDEPLOYED_EVERY == 0:
                live = self._live()
            if way < self.anchored:
                order = self._jittered(query)
                ranking = _ranking("anchor", "jitter", seed, 0)
            elif way < self.anchored + self.swapped:
                order = self._exchanged(live[query], seed)
                ranking = _ranking("live", "swap", seed, index // REDEPLOYED_EVERY)
            else:
                order, ranking = live[query], _ranking("live", "none", 0, index // REDEPLOYED_EVERY)
            order = order[: len(self.thetas)]
            yield index, query, order.tolist(), self._clicks_on(query, order).tolist(), ranking

    def raw_thetas(self) -> Any:
        """Click-through by position over all lists, relative to the first."""
        rates = self.clicked / self.shown
        return rates / rates[0]

    def _live(self) -> Any:
        """Rank each query's products by their click-through so far."""
        return np.argsort(-(self._clicks / self._shows), axis=1, kind="stable")

    def _jittered(self, query: int) -> Any:
        """Rank a query's products by frozen scores with noise as large as the median gap of the best."""
        scores = self.base[query]
        gap = np.median(np.diff(np.sort(scores)[::-1][:15]))
        return np.argsort(-(scores + self.rng.normal(0, abs(gap), scores.shape)))

    def _exchanged(self, order: Any, seed: int) -> Any:
        """Exchange neighbours with chance 1/2 where the seed says."""
        order = order.copy()
        for place in range(first_swapped(seed) - 1, len(self.thetas) - 1, 2):
            if self.rng.random() < 0.5:
                order[place], order[place + 1] = order[place + 1], order[place]
        return order

    def _clicks_on(self, query: int, order: Any) -> Any:
        """Draw clicks on a list, and note them."""
        worth = self.worth[query, order]
        if len(self.trust):
            worth = np.minimum(1, worth + np.asarray(self.trust))
        clicks = self.rng.random(len(order)) < np.asarray(self.thetas) * worth
        self._shows[query, order] += 1
        self._clicks[query, order] += clicks
        self.shown += 1
        self.clicked += clicks
        return clicks


def _list(index: int, query: int, order: list[int], clicks: list[bool], ranking: Ranking) -> JoinedSearch:
    """Make a joined search of what was served and clicked."""
    slots = tuple(
        JoinedSlot(product_id=f"P-{query}-{product}", position=position, clicked=clicked)
        for position, (product, clicked) in enumerate(zip(order, clicks, strict=True), start=1)
    )
    shown_ms = T0 + index * GAP_MS
    return JoinedSearch(
        search_id=f"s{index}",
        search_time=shown_ms,
        closed_at=shown_ms + 60_000,
        query=f"query {query}",
        surface="search",
        device="mobile",
        ranking=ranking,
        slots=slots,
    )


def _ranking(arm: str, policy: str, seed: int, release: int) -> Ranking:
    """Say who ranked a list, and how it was perturbed."""
    return Ranking(query_release=release, product_release=0, arm=arm, exploration=Exploration(policy=policy, seed=seed))

"""How shoppers decide: from a returned list to what they look at, click, read, buy, and type next.

Pure: the same seed, visit and returned list give the same actions, whatever else happens. Each slot has draws of its
own, so a product that moves changes only what happens where it was and where it went. How steeply looks fall, by which
click model, and what each group of shoppers likes is drawn by the seed: nobody who learns from the clicks knows it.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from statistics import NormalDist
from typing import Final, Literal

from simulator.shop.click_models import ClickModel, Habits, browse
from simulator.shop.world import Query, World

Kind = Literal["view", "click", "dwell", "cart", "purchase"]

COMPRESSED_LOOK_MS: Final = 1_600
"""In compressed time all clicks fall before this; dwell reports follow within 350 ms."""
COMPRESSED_CART_MS: Final = 3_200
DWELL_MEDIAN_MS: Final = (8_000, 11_000, 16_000, 22_000, 30_000)
"""By grade. With the spreads below a third of the clicks on grade 0 bounce (5 s), and half of those on grade 4 are not
long (30 s): dwell tells something, on average."""
DWELL_SPREAD: Final = 1.1
"""Standard deviation of the log of a dwell, for one person."""
TEMPO_SPREAD: Final = 0.5
"""The same between persons: some read everything, some nothing."""
SHORTEST_DWELL_MS, LONGEST_DWELL_MS = 300, 1_800_000
CART_RATE: Final = (0.0, 0.005, 0.02, 0.08, 0.18)
"""P(cart | click), by grade."""
PURCHASE_RATE: Final = 0.4
MAX_SEARCHES: Final = 3
RESULTS: Final = 10
"""Length of the lists asked for."""
GROUPS: Final = 4
TASTE_SPREAD: Final = 0.5
"""Standard deviation of the log of a group's liking for a brand."""


@dataclass(frozen=True, slots=True)
class ShopperOptions:
    """How shoppers behave in one run."""

    compressed: bool = False
    """Clicks and dwell reports within 2 s of the impression; `dwell_ms` keeps the uncompressed value."""
    clicks: float | None = None
    """Clicks a list, about, while search is half as good as it could be; None: as the world's attraction has it."""
    click_model: ClickModel | None = None
    """None: drawn by the seed."""
    eta: float | None = None
    """Looks fall to slot k as k^-eta; None: drawn by the seed."""
    trust: float | None = None
    """Extra P(click | looked) at the top, falling with 1/k; None: what the click model has."""
    cascade_satisfied: float = 0.6
    """P(stop | click)."""
    noise: float = 0.01
    """P(click by mistake | looked)."""
    abandon: float = 0.08
    """P(leave at once, having seen only the first slots)."""
    reformulate: float = 0.35
    """P(ask in other words | no click)."""
    again: float = 0.2
    """P(search for something else | a click)."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One shopper's stay in the shop."""

    number: int
    session_id: str
    client_id: str
    group: int
    """Who share a taste."""
    tempo: float
    """Log of how much longer than others they read."""
    device: str
    first: Query


@dataclass(frozen=True, slots=True)
class Action:
    """Something a shopper did with a list; times count from the impression."""

    kind: Kind
    position: int
    product_id: str
    at_ms: int
    dwell_ms: int = 0
    visible: tuple[tuple[int, str, int], ...] = ()
    """Of a view: (position, product_id, visible_ms)."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a shopper makes of one list, and what they type next (None: they leave)."""

    actions: tuple[Action, ...]
    follow_up: Query | None


class Shoppers:
    """The shoppers of one run."""

    def __init__(self, world: World, seed: int, *, options: ShopperOptions | None = None) -> None:
        self._world = world
        self._seed = seed
        self._options = options or ShopperOptions()
        self._queries = world.of_split("train")
        self._popularity = list(accumulate(query.popularity for query in self._queries))
        self._similar = _SimilarQueries(self._queries)
        self._likings: dict[str, tuple[float, ...]] = {}
        self.habits = self._habits()

    def _habits(self) -> Habits:
        options = self._options
        drawn = Habits.of_seed(self._seed, click_model=options.click_model, eta=options.eta, trust=options.trust)
        drawn = replace(drawn, noise=options.noise, satisfied=options.cascade_satisfied)
        if options.clicks is None:
            return drawn
        staying = max(1 - options.abandon, 1e-3)
        return drawn.clicking(options.clicks / staying, self._world, length=RESULTS)

    def visit(self, number: int) -> Visit:
        """Say who comes as the visitor of a number, and what they type first."""
        rng = Random(f"visit:{self._seed}:{number}")
        draws = [rng.random() for _ in range(4)]
        regular = draws[0] < 0.15 and number > 0
        client = int(draws[1] * number) if regular else number
        person = Random(f"person:{self._seed}:{client}")
        return Visit(
            number=number,
            session_id=f"s{self._seed}-{number}",
            client_id=f"c{self._seed}-{client}",
            group=person.randrange(GROUPS),
            tempo=person.gauss(0, TEMPO_SPREAD),
            device="mobile" if draws[3] < 0.7 else "desktop",
            first=self._popular(rng),
        )

    def react(self, visit: Visit, step: int, *, query: Query, returned: Sequence[str]) -> Reaction:
        """Say what the shopper does with a returned list.

        Args:
            visit: who.
            step: 0 for the first search of the visit.
            query: what was typed.
            returned: product ids in the order shown; only these can be clicked.
        """
        rng = Random(f"list:{self._seed}:{visit.number}:{step}")
        draws = [tuple(rng.random() for _ in range(9)) for _ in range(max(len(returned), RESULTS))]
        mood, next_draw = rng.random(), rng.random()
        if mood < self._options.abandon or not returned:
            return Reaction(self._view(min(3, len(returned)), returned, at_ms=400), None)
        attractions = [self._attraction(visit.group, query, product_id) for product_id in returned]
        looked, clicked = browse(attractions, draws, habits=self.habits)
        actions = self._behaviour(visit, query, returned, looked, clicked, draws)
        for _ in range(3 * len(actions)):  # a seed has the visits that it had in former versions, which drew these, too
            rng.random()
        return Reaction(actions, self._follow_up(step, query, bool(clicked), next_draw, rng))

    def _attraction(self, group: int, query: Query, product_id: str) -> float:
        """What attracts all, seen with the taste of a group: over the groups a brand is liked as much as any other."""
        shared = self._world.judgment(query.query_id, product_id).click_probability()
        brand = str(self._world.by_product_id.get(product_id, {}).get("brand") or product_id)
        if brand not in self._likings:
            drawn = [
                math.exp(Random(f"taste:{self._seed}:{one}:{brand}").gauss(0, TASTE_SPREAD)) for one in range(GROUPS)
            ]
            self._likings[brand] = tuple(GROUPS * liking / sum(drawn) for liking in drawn)
        return min(1.0, shared * self._likings[brand][group])

    def _behaviour(
        self,
        visit: Visit,
        query: Query,
        returned: Sequence[str],
        looked: Sequence[int],
        clicked: Sequence[int],
        draws: Sequence[tuple[float, ...]],
    ) -> tuple[Action, ...]:
        """The view, then each click with its dwell, cart and purchase, in order of time."""
        seen = min(len(returned), max([3, *(slot + 1 for slot in looked)]))
        compressed = self._options.compressed
        actions, now_ms = list(self._view(seen, returned, at_ms=250 if compressed else 1_200 * seen)), 0
        for order, slot in enumerate(clicked):
            product_id, draw = returned[slot], draws[slot]
            grade = self._world.judgment(query.query_id, product_id).grade
            dwell_ms = dwell(grade, draw[3], tempo=visit.tempo)
            if compressed:
                at_ms = 300 + int((COMPRESSED_LOOK_MS - 300) * (order + draw[4]) / len(clicked))
                dwell_at = at_ms + 50 + int(250 * draw[5])
            else:
                at_ms = max(now_ms, 1_200 * (slot + 1)) + int(1_500 * draw[4])
                dwell_at = now_ms = at_ms + dwell_ms
            actions.append(Action("click", slot + 1, product_id, at_ms))
            actions.append(Action("dwell", slot + 1, product_id, dwell_at, dwell_ms=dwell_ms))
            actions.extend(self._buying(slot + 1, product_id, after_ms=dwell_at, draw=draw, grade=grade))
        return tuple(sorted(actions, key=lambda action: action.at_ms))

    def _buying(
        self, position: int, product_id: str, *, after_ms: int, draw: tuple[float, ...], grade: int
    ) -> list[Action]:
        """What follows a click; cart and purchase come well after the click's own window."""
        if draw[6] >= CART_RATE[grade]:
            return []
        if self._options.compressed:
            cart_ms = COMPRESSED_CART_MS + int(1_000 * draw[7])
            bought_ms = cart_ms + 300 + int(1_000 * draw[8])
        else:
            cart_ms = after_ms + int(120_000 * draw[7])
            bought_ms = cart_ms + 60_000 + int(1_800_000 * draw[8])
        bought = draw[6] < CART_RATE[grade] * PURCHASE_RATE
        cart = Action("cart", position, product_id, cart_ms)
        return [cart, Action("purchase", position, product_id, bought_ms)] if bought else [cart]

    def _view(self, seen: int, returned: Sequence[str], *, at_ms: int) -> tuple[Action, ...]:
        """The viewport's report of the first slots; none of an empty list."""
        visible = tuple((slot + 1, returned[slot], 900 + 150 * (seen - slot)) for slot in range(seen))
        return (Action("view", 1, returned[0], at_ms, visible=visible),) if visible else ()

    def _follow_up(self, step: int, query: Query, clicked: bool, draw: float, rng: Random) -> Query | None:
        """The next query of the visit: other words after no click, something else after one."""
        if step + 1 >= MAX_SEARCHES:
            return None
        if clicked:
            return self._popular(rng) if draw < self._options.again else None
        return self._similar.to(query, rng) if draw < self._options.reformulate else None

    def _popular(self, rng: Random) -> Query:
        return self._queries[
            min(bisect_right(self._popularity, rng.random() * self._popularity[-1]), len(self._queries) - 1)
        ]


class _SimilarQueries:
    """Finds how else a shopper could have asked: train queries that share words, rare words first."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self._queries = queries
        self._words = [frozenset(query.query.lower().split()) for query in queries]
        holders: dict[str, int] = {}
        for words in self._words:
            for word in words:
                holders[word] = holders.get(word, 0) + 1
        self._rarity: Mapping[str, float] = {
            word: math.log(1 + len(queries) / count) for word, count in holders.items()
        }

    def to(self, query: Query, rng: Random) -> Query | None:
        """Choose one of the three queries nearest in words, None if none shares a word."""
        mine = frozenset(query.query.lower().split())
        shared = [math.fsum(self._rarity.get(word, 0.0) for word in mine & words) for words in self._words]
        near = sorted(range(len(shared)), key=lambda place: -shared[place])[:4]
        others = [self._queries[place] for place in near if shared[place] > 0 and self._queries[place] != query][:3]
        return rng.choice(others) if others else None


def dwell(grade: int, draw: float, *, tempo: float = 0.0) -> int:
    """A reading time in ms, wide around the grade's median.

    >>> dwell(4, 0.5), dwell(0, 0.9) > dwell(4, 0.5)
    (30000, True)
    """
    spread = DWELL_SPREAD * NormalDist().inv_cdf(min(max(draw, 1e-9), 1 - 1e-9))
    wanted = DWELL_MEDIAN_MS[grade] * math.exp(tempo + spread)
    return round(min(max(wanted, SHORTEST_DWELL_MS), LONGEST_DWELL_MS))

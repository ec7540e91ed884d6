"""The built-in world, an electronics and appliance retailer, and the hidden utility by which its shoppers judge.

Relevance is what a query says: family, type, size, brand, feature, price cap. The wish is what a buyer weighs among the
relevant and what no text match shows: fit to the purpose, brand quality, build, value for money, recency, and a
model's own appeal, of which no word tells. Its weights are laws of the world: no term belongs to a single query, so
what is learned from one query holds for others. Who types a model number wants that model.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulator.shop.catalogue import CatalogueMaker, Floats, Made
from simulator.shop.lexicon import Lexicon, lexicon
from simulator.shop.questions import Intent, QuestionMaker
from simulator.shop.world import Judgment, World, attraction_of, load_world

FEWEST_ANSWERS: Final = 5
"""A query that fewer products answer is left out: a search engine has nothing to choose there."""
FLOOR: Final = 0.15
EXACT_FLOOR: Final = 0.9
"""Who typed a model number wants that model, whatever they think of it."""
RELEVANT: Final = 0.25
"""Products of less relevance than this have grade 0."""
MAX_JUDGED: Final = 250
"""Most products judged for one query; the rest of a wide answer has grade 0."""
BANDS: Final = ((4, 0.2, 4, 48), (3, 0.3, 8, 80), (2, 0.34, 12, 100))
"""Grade, share of the relevant, and the fewest and most products that get it; the others have grade 1."""
RECENCY_DAYS: Final = 500.0
APPEAL: Final = 0.2
"""What a model's own appeal weighs in every wish."""
GADGETS: Final = frozenset({"mobile", "audio", "computing"})
"""Who types a bare line name mostly means one of these."""

WISHES: Final[Mapping[str, Mapping[str, float]]] = {
    "general": {"quality": 0.5, "worth": 0.2, "value": 0.15, "recency": 0.15},
    "uses": {"fit": 0.55, "quality": 0.25, "worth": 0.08, "value": 0.06, "recency": 0.06},
    "cheap": {"quality": 0.25, "worth": 0.1, "value": 0.25, "thrift": 0.4},
    "cheap_uses": {"fit": 0.4, "quality": 0.2, "value": 0.15, "thrift": 0.25},
    "new": {"recency": 0.6, "quality": 0.3, "worth": 0.1},
    "assured": {"assured": 0.6, "quality": 0.3, "worth": 0.1},
    "line": {"gadget": 0.35, "quality": 0.4, "recency": 0.15, "worth": 0.1},
}
"""What weighs how much, by the kind of wish."""


def world_of(folder: Path | None, seed: int) -> World:
    """Read the world in a folder, or make the built-in one if none is named.

    Raises:
        UnreadableWorld: the folder is not a world.
    """
    return builtin_world(seed) if folder is None else load_world(folder)


def builtin_world(seed: int) -> World:
    """Make the built-in world of a seed: the same seed gives the same world to the byte.

    The seed decides which brands are good, what is sold and what is asked; the laws of what shoppers want for a
    purpose are the same in every world.
    """
    words = lexicon()
    made = CatalogueMaker(words, seed).make()
    judge, questions = Judge(words, made), QuestionMaker(words, seed, made).make()
    judged = [(question.query, judge.judge(question.intent)) for question in questions]
    answered = [(query, judgments) for query, judgments in judged if len(judgments) >= FEWEST_ANSWERS]
    return World(
        products=tuple(product.message for product in made),
        queries=tuple(query for query, _ in answered),
        judgments={query.query_id: judgments for query, judgments in answered},
        name=f"built-in, seed {seed}",
    )


class Judge:
    """Judges every product for an intent, by utility = relevance x (floor + (1 - floor) x wish).

    Within one query the order of the utilities is cut into grades.
    """

    def __init__(self, words: Lexicon, products: Sequence[Made]) -> None:
        self._words = words
        self._ids = [str(made.message["product_id"]) for made in products]
        self._families = {family.key: number for number, family in enumerate(words.families)}
        self._family = np.array([made.family for made in products])
        self._main = np.array([not made.accessory for made in products])
        self._traits = np.array([made.traits for made in products])
        self._price = np.array([made.price for made in products])
        self._size = np.array([made.size for made in products])
        self._hindi = np.array([made.hindi for made in products])
        self._names = {
            "type_name": np.array([made.type_name for made in products]),
            "brand": np.array([made.brand for made in products]),
            "tier": np.array([made.tier for made in products]),
            "line": np.array([made.line for made in products]),
            "number": np.array([made.number for made in products]),
        }
        self._features = [frozenset(made.features) for made in products]
        gadgets = np.array([words.families[made.family].group in GADGETS for made in products])
        self._terms: dict[str, Floats] = {
            "quality": np.array([made.quality for made in products]),
            "worth": np.array([made.worth for made in products]),
            "value": np.array([made.value for made in products]),
            "recency": np.exp(-np.array([made.age_days for made in products]) / RECENCY_DAYS),
            "assured": np.array([made.assured for made in products]).astype(np.float64),
            "gadget": gadgets.astype(np.float64),
            "appeal": np.array([made.appeal for made in products]),
        }

    def judge(self, intent: Intent) -> dict[str, Judgment]:
        """Judge all products; those of grade 1 or more are returned, best first."""
        relevance = self.relevance(intent)
        candidates = np.flatnonzero(relevance >= RELEVANT)
        if candidates.size == 0:
            return {}
        wish = self._wish(intent, candidates)
        # Rounded, so that equal variants keep the catalogue's order on every machine.
        floor = FLOOR if intent.number is None else EXACT_FLOOR
        utility = np.round(relevance[candidates] * (floor + (1 - floor) * wish), 9)
        order = np.argsort(-utility, kind="stable")[:MAX_JUDGED]
        if intent.number is None:
            grades = grades_by_rank(utility[order], int(np.count_nonzero(relevance >= 0.9)))
        else:
            meant = int(np.count_nonzero(self._names["number"] == intent.number))
            grades = [*_band(4, meant), *_band(1, len(order) - meant)]
        return {
            self._ids[candidates[place]]: Judgment(math.floor(grade + 0.5), attraction_of(grade))
            for place, grade in zip(order, grades, strict=True)
        }

    def relevance(self, intent: Intent) -> Floats:
        """Say in [0, 1] how far each product is what the query says."""
        found = self._main.astype(np.float64)
        if intent.families:
            found *= np.isin(self._family, [self._families[key] for key in intent.families])
        miss = 0.0 if intent.strict else 0.3
        if intent.number is not None:
            found *= np.where(self._names["number"] == intent.number, 1.0, 0.5)
        for name in ("type_name", "brand"):
            wanted = getattr(intent, name)
            if wanted is not None:
                found *= np.where(self._names[name] == wanted, 1.0, miss)
        if intent.line is not None:
            found *= np.where(self._names["line"] == intent.line, 1.0, 0.0)
        if intent.tier is not None:
            found *= np.where(self._names["tier"] == intent.tier, 1.0, 0.5)
        if intent.feature is not None:
            has = np.array([intent.feature in features for features in self._features])
            found *= np.where(has, 1.0, miss)
        return found * self._size_fit(intent) * self._price_fit(intent)

    def _size_fit(self, intent: Intent) -> Floats:
        """1 at the wanted size; a neighbouring size is a weaker answer unless the query is strict."""
        if intent.size is None:
            return np.ones(len(self._ids))
        exact = self._size == intent.size
        if intent.strict:
            return np.where(exact, 1.0, 0.0)
        values = self._words.families[self._families[intent.families[0]]].sizes.values
        distance = np.abs(np.searchsorted(values, self._size) - values.index(intent.size))
        near: Floats = np.where(exact, 1.0, 0.6 * np.exp(-(distance - 1) / 1.2))
        return near

    def _price_fit(self, intent: Intent) -> Floats:
        if intent.price_cap is None:
            return np.ones(len(self._ids))
        over = self._price / intent.price_cap
        fit: Floats = np.where(over <= 1, 1.0, np.where(over <= 1.25, 0.6, 0.3))
        return fit

    def _wish(self, intent: Intent, candidates: NDArray[np.int64]) -> Floats:
        weights = WISHES[kind_of_wish(intent)]
        found = np.zeros(candidates.size)
        for name, weight in weights.items():
            found += (1 - APPEAL) * weight * self._term(name, intent, candidates)
        found += APPEAL * self._terms["appeal"][candidates]
        if intent.hindi:
            found += 0.05 * self._hindi[candidates]
        wish: Floats = np.clip(found, 0.0, 1.0)
        return wish

    def _term(self, name: str, intent: Intent, candidates: NDArray[np.int64]) -> Floats:
        if name == "fit":
            return spread(self._traits[candidates] @ self._purpose(intent.uses))
        if name == "thrift":
            return 1 - spread(np.log(self._price[candidates]))
        return self._terms[name][candidates]

    def _purpose(self, uses: Sequence[str]) -> Floats:
        found = np.zeros(len(self._words.traits))
        for use in uses:
            for trait, weight in self._words.uses[use].traits.items():
                found[self._words.traits.index(trait)] += weight
        return found


def kind_of_wish(intent: Intent) -> str:
    """Name the one of the world's wishes that an intent is.

    >>> kind_of_wish(Intent(("laptop",), uses=("gamer",), cheap=True))
    'cheap_uses'
    """
    if intent.line is not None:
        return "line"
    if intent.assured:
        return "assured"
    if intent.new:
        return "new"
    if intent.cheap:
        return "cheap_uses" if intent.uses else "cheap"
    return "uses" if intent.uses else "general"


def spread(values: Floats) -> Floats:
    """Stretch values over [0, 1]; all become 0.5 if they do not differ.

    >>> spread(np.array([2.0, 4.0, 3.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return np.full(values.shape, 0.5)
    stretched: Floats = (values - low) / (high - low)
    return stretched


def grades_by_rank(utility: Floats, relevant: int) -> list[float]:
    """Cut utilities, best first, into grades with a fraction: 3.8 is nearly a 4 and rounds to it.

    Args:
        utility: descending.
        relevant: how many products say fully what the query says; the bands are shares of it.
    """
    grades: list[float] = []
    for grade, share, fewest, most in BANDS:
        size = min(max(fewest, min(most, round(share * relevant))), len(utility) - len(grades))
        grades.extend(_band(grade, size))
    grades.extend(_band(1, len(utility) - len(grades)))
    return grades


def _band(grade: int, size: int) -> list[float]:
    """Fall from 0.45 above a grade to 0.45 below it."""
    return [grade + 0.45 - 0.9 * place / max(1, size - 1) for place in range(size)]

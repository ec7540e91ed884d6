"""The built-in catalogue: products as the shop sends them, each with the hidden facts that its buyers weigh.

The facts (brand quality, traits, worth of the build, value for money) stay in `Made` and never leave this package;
what of them can be known is in the product's text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from simulator.shop.lexicon import Family, Lexicon
from simulator.shop.models import Model, ModelMaker, describe, describe_accessory, launched_at
from simulator.shop.world import WORLD_EPOCH_MS

MODELS_PER_FAMILY: Final = 84
PRODUCTS_PER_FAMILY: Final = 136
ACCESSORIES_PER_FAMILY: Final = 14
SELLERS: Final = 40
IN_STOCK_SHARE: Final = 0.94

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Made:
    """One product: its message and the hidden facts."""

    message: dict[str, Any]
    family: int
    price: float
    age_days: float
    brand: str
    quality: float
    accessory: bool = False
    type_name: str = ""
    size: float = 0.0
    features: tuple[str, ...] = ()
    traits: tuple[float, ...] = ()
    worth: float = 0.0
    tier: str = ""
    line: str = ""
    value: float = 0.0
    assured: bool = False
    hindi: bool = False


class CatalogueMaker:
    """Makes the catalogue of one seed.

    Args:
        words: the lexicon.
        seed: decides brand qualities and every product.
    """

    def __init__(self, words: Lexicon, seed: int) -> None:
        self._words = words
        self._rng = Random(f"catalogue:{seed}")
        self._models = ModelMaker(words, self._rng)
        self._serial = 0

    def make(self) -> tuple[Made, ...]:
        """Return every product, family by family."""
        return tuple(
            made for number, family in enumerate(self._words.families) for made in self._family(number, family)
        )

    def _family(self, number: int, family: Family) -> Iterator[Made]:
        """Make a family's models in one to several colours each, then its accessories."""
        colours = [1] * MODELS_PER_FAMILY
        for _ in range(PRODUCTS_PER_FAMILY - MODELS_PER_FAMILY):
            colours[self._rng.randrange(MODELS_PER_FAMILY)] += 1
        for count in colours:
            model, parent_id = self._models.model(number, family), self._next_id("V")
            for colour in self._rng.sample(self._words.words["colours"], min(count, len(self._words.words["colours"]))):
                yield self._product(model, parent_id, colour)
        for _ in range(ACCESSORIES_PER_FAMILY):
            yield self._accessory(number, family)

    def _product(self, model: Model, parent_id: str, colour: str) -> Made:
        fair = model.family.price * model.kind.price_factor * (0.6 + 0.8 * model.relative_size)
        tier_factor, richness = self._words.tiers[model.tier]
        ratio = tier_factor * model.build.price * model.brand.price_factor * self._rng.lognormvariate(0, 0.06)
        price = shelf_price(fair * ratio)
        message = self._message(
            describe(model, colour, words=self._words),
            price=price,
            age_days=model.age_days,
            parent_id=parent_id,
            priority=round(self._rng.uniform(0.5, 1.0), 2) if model.assured else 0.0,
            locale="hi-IN" if model.hindi else "en-IN",
        )
        return Made(
            message=message,
            family=model.family_number,
            price=price,
            age_days=model.age_days,
            brand=model.brand.name,
            quality=model.brand.quality,
            type_name=model.kind.name,
            size=model.size,
            features=tuple(feature.name for feature in model.features),
            traits=traits_of(model, self._words),
            worth=model.build.worth,
            tier=model.tier,
            line=model.line,
            value=value_for_money(model.brand.quality, model.build.worth, richness=richness, price_ratio=price / fair),
            assured=model.assured,
            hindi=model.hindi,
        )

    def _accessory(self, number: int, family: Family) -> Made:
        rng = self._rng
        brand, kind = rng.choice(self._models.brands[family.group]), rng.choice(family.accessories)
        colour, age_days = rng.choice(self._words.words["colours"]), rng.uniform(30, 1400)
        price = shelf_price(min(family.price * 0.08, 1500) * rng.uniform(0.5, 1.5))
        text = describe_accessory(family, kind, brand=brand.name, fits=rng.choice(family.types).name, colour=colour)
        message = self._message(text, price=price, age_days=age_days, parent_id=self._next_id("V"))
        return Made(
            message=message,
            family=number,
            price=price,
            age_days=age_days,
            brand=brand.name,
            quality=brand.quality,
            accessory=True,
            traits=(0.0,) * len(self._words.traits),
        )

    def _message(
        self,
        text: dict[str, Any],
        *,
        price: float,
        age_days: float,
        parent_id: str,
        priority: float = 0.0,
        locale: str = "en-IN",
    ) -> dict[str, Any]:
        product_id = self._next_id("P")
        return {
            "type": "product",
            "schema_version": 1,
            "product_id": product_id,
            "version": WORLD_EPOCH_MS,
            **text,
            "price": price,
            "currency": "INR",
            "in_stock": self._rng.random() < IN_STOCK_SHARE,
            "launched_at": launched_at(age_days),
            "priority": priority,
            "parent_id": parent_id,
            "seller_id": f"S-{self._rng.randint(1, SELLERS)}",
            "locale": locale,
            "url": f"https://shop.example/p/{product_id}",
            "image_url": f"https://shop.example/i/{product_id}.jpg",
        }

    def _next_id(self, letter: str) -> str:
        self._serial += 1
        return f"{letter}-{self._serial:05d}"


def traits_of(model: Model, words: Lexicon) -> tuple[float, ...]:
    """Sum what type, size and features are good for; a second source of the same trait counts half."""
    found = dict.fromkeys(words.traits, 0.0)
    for kind in (model.kind, *model.features):
        for trait in kind.traits:
            found[trait] += 1.0 if found[trait] == 0 else 0.5
    found[model.family.sizes.low] += max(0.0, 1 - 2 * model.relative_size)
    found[model.family.sizes.high] += max(0.0, 2 * model.relative_size - 1)
    return tuple(found[trait] for trait in words.traits)


def shelf_price(amount: float) -> float:
    """Return an amount as a shop would print it.

    >>> shelf_price(18234.0), shelf_price(742.0)
    (18290.0, 749.0)
    """
    step = 100 if amount >= 1000 else 50
    return float(max(1, round(amount / step)) * step + (90 if amount >= 1000 else -1))


def value_for_money(quality: float, worth: float, *, richness: float, price_ratio: float) -> float:
    """Return in [0, 1] how much one gets for the price, compared with a fair price of the same type and size.

    >>> good = value_for_money(1.0, 1.0, richness=0.5, price_ratio=0.9)
    >>> good > value_for_money(0.2, 0.2, richness=0.5, price_ratio=1.2)
    True
    """
    return float(np.clip(0.3 + 0.35 * quality + 0.25 * worth + 0.3 * richness - 0.6 * (price_ratio - 0.8), 0, 1))

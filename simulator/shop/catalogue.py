"""The built-in catalogue: brands and models drawn from a seed, and the products as a seller describes them.

A model is what all its colours share. Whatever a buyer values is in a product's words (the brand, a feature, the model
year, the warranty), except its appeal: what pictures, reviews and use tell, and no text. The hidden facts (quality,
traits, worth, value for money, appeal) stay in `Made` and never leave this package.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from simulator.shop.lexicon import Build, Family, Kind, Lexicon
from simulator.shop.world import WORLD_EPOCH_MS

MODELS_PER_FAMILY: Final = 84
PRODUCTS_PER_FAMILY: Final = 136
ACCESSORIES_PER_FAMILY: Final = 14
SELLERS: Final = 40
IN_STOCK_SHARE: Final = 0.94
Floats = NDArray[np.float64]
DAY_MS: Final = 86_400_000
LINES_PER_BRAND: Final = 5
NEW_DAYS: Final = 75
"""Launched no longer ago than this: a new launch."""
NEW_SHARE: Final = 0.12
HINDI_SHARE: Final = 0.08
ASSURED_SHARE: Final = 0.06
TIER_WEIGHTS: Final = (2, 2, 4, 3, 3, 2)


@dataclass(frozen=True, slots=True)
class Brand:
    """A maker: how good its products are, how dear it sells them, and what it calls them."""

    name: str
    quality: float
    price_factor: float
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a family; its colours become products."""

    family: Family
    family_number: int
    brand: Brand
    line: str
    tier: str
    number: str
    """As its maker prints it, e.g. KE-240P."""
    kind: Kind
    size_rank: int
    features: tuple[Kind, ...]
    build: Build
    age_days: float
    hindi: bool
    assured: bool
    intro: str
    closing: str
    appeal: float

    @property
    def size(self) -> float:
        """The number by which it is sold."""
        return self.family.sizes.values[self.size_rank]

    @property
    def relative_size(self) -> float:
        """0 for the family's smallest size, 1 for its largest."""
        return self.size_rank / (len(self.family.sizes.values) - 1)


class ModelMaker:
    """Draws models."""

    def __init__(self, words: Lexicon, rng: Random) -> None:
        self._words = words
        self._rng = rng
        self._numbers: set[str] = set()
        self.brands = {group: self._make_brands(names) for group, names in words.brands.items()}

    def model(self, number: int, family: Family) -> Model:
        """Draw a new model of a family."""
        rng = self._rng
        hindi = rng.random() < HINDI_SHARE
        tier = rng.choices(list(self._words.tiers), weights=TIER_WEIGHTS)[0]
        _, richness = self._words.tiers[tier]
        brand, kind = rng.choice(self.brands[family.group]), rng.choice(family.types)
        size_rank = self._size_rank(family, kind)
        return Model(
            family=family,
            family_number=number,
            brand=brand,
            line=rng.choice(brand.lines),
            tier=tier,
            number=self._number(brand, tier),
            kind=kind,
            size_rank=size_rank,
            features=tuple(rng.sample(family.features, 3 if rng.random() < richness else 2)),
            build=rng.choice(self._words.builds),
            age_days=rng.uniform(3, NEW_DAYS) if rng.random() < NEW_SHARE else rng.uniform(NEW_DAYS, 1400),
            hindi=hindi,
            assured=rng.random() < ASSURED_SHARE,
            intro=rng.choice(self._words.hindi["intro"] if hindi else family.intro),
            closing=rng.choice(self._words.hindi["closing"]) if hindi else "",
            appeal=rng.random(),
        )

    def _number(self, brand: Brand, tier: str) -> str:
        """Draw a model number that no other model has."""
        while True:
            series, digits = self._rng.choice("ABDEFGHKLMNRSTVX"), self._rng.randint(100, 9999)
            number = f"{brand.name[:2].upper()}-{series}{digits}{tier[:1]}"
            if number not in self._numbers:
                self._numbers.add(number)
                return number

    def _make_brands(self, names: tuple[str, ...]) -> tuple[Brand, ...]:
        """Spread qualities evenly over a group's brands in a seeded order: every group has good and bad ones."""
        made = []
        for rank, name in enumerate(self._rng.sample(names, len(names))):
            quality = rank / (len(names) - 1)
            dearness = 0.82 + 0.3 * quality + self._rng.uniform(-0.1, 0.1)
            lines = tuple(self._rng.sample(self._words.words["lines"], LINES_PER_BRAND))
            made.append(Brand(name, quality, dearness, lines))
        return tuple(made)

    def _size_rank(self, family: Family, kind: Kind) -> int:
        """Draw a size; small types tend to small sizes and large types to large ones."""
        first, second = (self._rng.randrange(len(family.sizes.values)) for _ in range(2))
        if family.sizes.low in kind.traits:
            return min(first, second)
        return max(first, second) if family.sizes.high in kind.traits else first


def launched_at(age_days: float) -> int:
    """Return when a product of this age was launched, counted back from the world's present.

    >>> launched_at(1.0) == WORLD_EPOCH_MS - 86_400_000
    True
    """
    return WORLD_EPOCH_MS - int(age_days * DAY_MS)


def describe(model: Model, colour: str, *, words: Lexicon) -> dict[str, Any]:
    """Write the text fields of one colour of a model."""
    return {
        "title": _title(model, colour),
        "description": _description(model, words),
        "category": [*model.family.path],
        "brand": model.brand.name,
        "attributes": {
            "type": model.kind.name,
            model.family.sizes.name: int(model.size) if model.size.is_integer() else model.size,
            "warranty": model.build.attribute,
            "colour": colour,
            "model_year": _year(model),
        },
    }


def describe_accessory(family: Family, kind: Kind, *, brand: str, fits: str, colour: str) -> dict[str, Any]:
    """Write the text fields of an accessory; it names the product that it is for, as accessories do."""
    return {
        "title": f"{brand} {kind.name} for {fits} {family.noun} ({colour})",
        "description": kind.sentence,
        "category": [family.path[0], "Accessories", f"{family.noun} Accessories"],
        "brand": brand,
        "attributes": {"type": "Accessory", "fits": f"{fits} {family.noun}", "colour": colour},
    }


def _title(model: Model, colour: str) -> str:
    family = model.family
    named = " ".join(part for part in (model.brand.name, model.line, model.tier, model.number) if part)
    what = f"{model.size:g} {family.sizes.unit} {model.kind.name} {family.noun}"
    features = ", ".join(feature.name for feature in model.features)
    return f"{named} {what} with {features} ({colour}, {_year(model)} model)"


def _description(model: Model, words: Lexicon) -> str:
    sentences = [model.intro.format(noun=model.family.noun.lower(), brand=model.brand.name)]
    sentences += [feature.sentence for feature in model.features]
    sentences.append(model.build.sentence)
    if model.age_days <= NEW_DAYS:
        sentences.append(words.sentences["launch"][model.size_rank % 2])
    if model.assured:
        sentences.append(words.sentences["priority"][model.size_rank % 2])
    return " ".join(sentence for sentence in [*sentences, model.closing] if sentence)


def _year(model: Model) -> int:
    return datetime.fromtimestamp(launched_at(model.age_days) / 1000, UTC).year


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
    number: str = ""
    value: float = 0.0
    appeal: float = 0.5
    assured: bool = False
    hindi: bool = False


class CatalogueMaker:
    """Makes the catalogue of one seed."""

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
            number=model.number,
            appeal=model.appeal,
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

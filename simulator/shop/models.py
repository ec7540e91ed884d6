"""The built-in shop's brands and models, drawn from a seed, and how a seller describes them.

A model is what all its colours share. Whatever a buyer values is in the words (the brand, a feature, the model year,
the warranty); no number behind the words (quality, traits, worth) is.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from simulator.shop.lexicon import Build, Family, Kind, Lexicon
from simulator.shop.world import WORLD_EPOCH_MS

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
    kind: Kind
    size_rank: int
    features: tuple[Kind, ...]
    build: Build
    age_days: float
    hindi: bool
    assured: bool
    intro: str
    closing: str

    @property
    def size(self) -> float:
        """The number by which it is sold."""
        return self.family.sizes.values[self.size_rank]

    @property
    def relative_size(self) -> float:
        """0 for the family's smallest size, 1 for its largest."""
        return self.size_rank / (len(self.family.sizes.values) - 1)


class ModelMaker:
    """Draws models.

    Args:
        words: the lexicon.
        rng: decides brands and models.
    """

    def __init__(self, words: Lexicon, rng: Random) -> None:
        self._words = words
        self._rng = rng
        self.brands = {group: self._make_brands(names) for group, names in words.brands.items()}

    def model(self, number: int, family: Family) -> Model:
        """Draw a new model of a family."""
        rng = self._rng
        hindi = rng.random() < HINDI_SHARE
        tier = rng.choices(list(self._words.tiers), weights=TIER_WEIGHTS)[0]
        _, richness = self._words.tiers[tier]
        brand, kind = rng.choice(self.brands[family.group]), rng.choice(family.types)
        return Model(
            family=family,
            family_number=number,
            brand=brand,
            line=rng.choice(brand.lines),
            tier=tier,
            kind=kind,
            size_rank=self._size_rank(family, kind),
            features=tuple(rng.sample(family.features, 3 if rng.random() < richness else 2)),
            build=rng.choice(self._words.builds),
            age_days=rng.uniform(3, NEW_DAYS) if rng.random() < NEW_SHARE else rng.uniform(NEW_DAYS, 1400),
            hindi=hindi,
            assured=rng.random() < ASSURED_SHARE,
            intro=rng.choice(self._words.hindi["intro"] if hindi else family.intro),
            closing=rng.choice(self._words.hindi["closing"]) if hindi else "",
        )

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
    named = " ".join(part for part in (model.brand.name, model.line, model.tier) if part)
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

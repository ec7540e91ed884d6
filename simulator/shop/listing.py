"""How the built-in shop describes a product: title, description and attributes, as a seller would write them.

Everything a buyer values stands here as words (the brand, a feature, the model year, the warranty); no number behind
the words (quality, traits, worth) does.
"""

from datetime import UTC, datetime
from typing import Any, Final

from simulator.shop.lexicon import Family, Kind, Lexicon
from simulator.shop.models import NEW_DAYS, Model
from simulator.shop.world import WORLD_EPOCH_MS

DAY_MS: Final = 86_400_000


def launched_at(age_days: float) -> int:
    """Return the launch time of a product of an age in the world's present.

    >>> launched_at(1.0) == WORLD_EPOCH_MS - 86_400_000
    True
    """
    return WORLD_EPOCH_MS - int(age_days * DAY_MS)


def describe(model: Model, colour: str, *, words: Lexicon) -> dict[str, Any]:
    """Return the text fields of one colour of a model."""
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
    """Return the text fields of an accessory; it names the product that it is for, as accessories do."""
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

"""The words of the built-in world, read from the TOML files beside this module.

Families know their types, sizes, features and accessories; the laws say which traits a purpose wants. Every feature,
type and size says by `traits` what it is good for: the words are in the product's text, the traits never are.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

_FAMILY_FILES: Final = ("home", "kitchen", "digital", "sound_care")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type, feature or tier within a family: its words, what it costs and what it is good for."""

    name: str
    price_factor: float = 1.0
    sentence: str = ""
    traits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """The one number by which a family is sold."""

    name: str
    unit: str
    word: str
    values: tuple[float, ...]
    low: str
    """The trait that the smallest has."""
    high: str
    """The trait that the largest has."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of thing the shop sells."""

    key: str
    path: tuple[str, ...]
    group: str
    noun: str
    words: tuple[str, ...]
    vague: tuple[str, ...]
    price: float
    types: tuple[Kind, ...]
    sizes: Sizes
    uses: tuple[str, ...]
    intro: tuple[str, ...]
    features: tuple[Kind, ...]
    accessories: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class UseCase:
    """A purpose: the traits it wants (or does not), and how people type it."""

    key: str
    traits: Mapping[str, float]
    phrases: tuple[str, ...]
    hindi: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Build:
    """How solid a product is, as its warranty sentence tells."""

    sentence: str
    attribute: str
    worth: float
    price: float


@dataclass(frozen=True, slots=True)
class Questions:
    """The ways to ask of one class of query."""

    draws: tuple[str, ...]
    """What is drawn before anything is said, in this order."""
    ways: tuple[str, ...]
    weights: tuple[int, ...]
    """Of the ways; none if they are alike."""
    means: Mapping[str, bool]
    keeps_case: bool
    """Whether capitals are typed as they stand in the words; else nobody bothers."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All words of the built-in world."""

    families: tuple[Family, ...]
    uses: Mapping[str, UseCase]
    traits: tuple[str, ...]
    brands: Mapping[str, tuple[str, ...]]
    tiers: Mapping[str, tuple[float, float]]
    """Name -> (factor on the price, how well it is equipped)."""
    builds: tuple[Build, ...]
    words: Mapping[str, tuple[str, ...]]
    sentences: Mapping[str, tuple[str, ...]]
    hindi: Mapping[str, tuple[str, ...]]
    questions: Mapping[str, Questions]


@cache
def lexicon() -> Lexicon:
    """The words, read once."""
    trade = _table("trade")
    uses = {key: _use_case(key, row) for key, row in _table("laws").items()}
    return Lexicon(
        families=tuple(_family(key, row) for name in _FAMILY_FILES for key, row in _table(name).items()),
        uses=uses,
        traits=tuple(sorted({trait for use in uses.values() for trait in use.traits})),
        brands=_lists(trade["brands"]),
        tiers={name: (price, worth) for name, (price, worth) in trade["tiers"].items()},
        builds=tuple(Build(**row) for row in trade["build"]),
        words=_lists(trade["words"]),
        sentences=_lists(trade["sentences"]),
        hindi=_lists(trade["hindi"]),
        questions={name: _questions(row) for name, row in _table("questions").items()},
    )


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("vocabulary", f"{name}.toml").read_text(encoding="utf-8"))


def _lists(table: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(values) for key, values in table.items()}


def _use_case(key: str, row: Mapping[str, Any]) -> UseCase:
    return UseCase(key=key, traits=row["traits"], phrases=tuple(row["phrases"]), hindi=tuple(row["hindi"]))


def _family(key: str, row: Mapping[str, Any]) -> Family:
    size = row["size"]
    return Family(
        key=key,
        path=tuple(row["path"]),
        group=row["group"],
        noun=row["noun"],
        words=tuple(row["words"]),
        vague=tuple(row["vague"]),
        price=float(row["price"]),
        types=tuple(Kind(name=name, price_factor=price, traits=_traits(text)) for name, price, text in row["types"]),
        sizes=Sizes(**{**size, "values": tuple(float(value) for value in size["values"])}),
        uses=tuple(row["uses"]),
        intro=tuple(row["intro"]),
        features=tuple(Kind(name=name, sentence=said, traits=_traits(text)) for name, said, text in row["features"]),
        accessories=tuple(Kind(name=name, sentence=said) for name, said in row["accessories"]),
    )


def _questions(row: Mapping[str, Any]) -> Questions:
    weights = tuple(weight for _, *weights in row["ways"] for weight in weights)
    return Questions(
        draws=tuple(row["draws"]),
        ways=tuple(way for way, *_ in row["ways"]),
        weights=weights,
        means=row.get("means", {}),
        keeps_case=row.get("keeps_case", False),
    )


def _traits(text: str) -> tuple[str, ...]:
    return tuple(text.split())

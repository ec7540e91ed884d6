"""Filters: what a point holds to be filtered and counted by, and the conditions that ask for it.

Texts are folded on both sides by the rule of the words that are searched for, so that `Siemens`, `SIEMENS` and full
width letters are one brand. A path and an attribute become JSON lists: no label can be mistaken for two.
"""

import math
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from qdrant_client import models

from contracts.base import MAX_LABEL_CHARS
from contracts.catalog import AttributeValue, PointPayload
from contracts.http import Filters, NumberRange, PriceRange
from towers.features import fold, key_of

KEYS: Final = "keys"
"""The field of the payload under which a point's keys are."""
KEYS_VERSION: Final = 1
"""A change of the keys changes every payload."""

PAYLOAD_INDEXES: Final[dict[str, models.PayloadSchemaType]] = {
    f"{KEYS}.brand": models.PayloadSchemaType.KEYWORD,
    f"{KEYS}.seller": models.PayloadSchemaType.KEYWORD,
    f"{KEYS}.category": models.PayloadSchemaType.KEYWORD,
    f"{KEYS}.path": models.PayloadSchemaType.KEYWORD,
    f"{KEYS}.attributes": models.PayloadSchemaType.KEYWORD,
    f"{KEYS}.locale": models.PayloadSchemaType.KEYWORD,
    f"{KEYS}.numbers": models.PayloadSchemaType.INTEGER,
    f"{KEYS}.price": models.PayloadSchemaType.INTEGER,
    "price": models.PayloadSchemaType.FLOAT,
    "quality": models.PayloadSchemaType.FLOAT,
    "rating": models.PayloadSchemaType.FLOAT,
    "launched_at": models.PayloadSchemaType.INTEGER,
    "in_stock": models.PayloadSchemaType.INTEGER,
    "deleted": models.PayloadSchemaType.INTEGER,
}
"""Fields that search filters, counts or sorts by, and no others; made before loading, when it costs least."""

_CACHED: Final = 65_536
"""A catalogue repeats its brands, labels and values."""
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII)
_NAMES: Final = 2**21
_MAX_FLOAT32: Final = 3.4028234663852886e38
_STEPS: Final = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_PRICES: Final = (0.0, *(float(f"{step}e{power}") for power in range(-2, 12) for step in _STEPS))
"""Where price bands begin: six to a power of ten, so that none is wider than its beginning."""


class Key(NamedTuple):
    """What a product is filtered and counted by: the field of the keys, the key, and how the shop writes it."""

    field: str
    key: str | int
    shown: Any


@lru_cache(_CACHED)
def text_key(text: str) -> str:
    """A text as it is compared.

    >>> text_key("  Café  ＡＢ "), text_key("CAFE ab")
    ('cafe ab', 'cafe ab')
    """
    return " ".join(fold(text).split())


@lru_cache(_CACHED)
def path_key(path: tuple[str, ...]) -> str:
    """A category path as it is compared.

    >>> path_key(("Kitchen", "Small > Tools"))
    '["kitchen","small > tools"]'
    """
    return orjson.dumps([text_key(label) for label in path]).decode()


@lru_cache(_CACHED, typed=True)
def attribute_key(name: str, value: AttributeValue) -> str:
    """An attribute with its value as it is compared; 12, 12.0 and `12` are one.

    >>> attribute_key("Colour", "RED"), attribute_key("width", 12.0), attribute_key("new", True)
    ('["colour","red"]', '["width","12"]', '["new","true"]')
    """
    if isinstance(value, bool):
        said = str(value).lower()
    else:
        said = text_key(value) if isinstance(value, str) else f"{value:.15g}"
    return orjson.dumps([text_key(name), said]).decode()


def _asked_keys(name: str, value: AttributeValue) -> Iterator[str]:
    """The keys that an asked value may mean: parameters and commands write every number as a text, in any form.

    >>> list(_asked_keys("width", "12.0")), list(_asked_keys("width", "12 cm"))
    (['["width","12.0"]', '["width","12"]'], ['["width","12 cm"]'])
    """
    yield attribute_key(name, value)
    if isinstance(value, str) and _NUMBER.fullmatch(said := text_key(value)):
        yield attribute_key(name, float(said))


def attribute_prefix(name: str) -> str:
    """What the keys of an attribute begin with, and no others.

    >>> attribute_key("Colour", "red").startswith(attribute_prefix("colour"))
    True
    """
    return orjson.dumps([text_key(name)]).decode()[:-1] + ","


def number_key(name: str, value: float) -> int:
    """A number of an attribute as one integer that rises with the value: one index serves all attributes.

    Above 32 bits is a hash of the name, below them the value as a float32 whose bits are in order. All 53 bits are a
    float64 without loss, as which the store compares them. So a range is exact to seven digits, and two of a hundred
    names share a range once in 400 catalogues.

    >>> number_key("l", -2) < number_key("l", -1.5) < number_key("L", 0) < number_key("l", 3) < number_key("l", 1e300)
    True
    """
    bounded = min(max(value, -_MAX_FLOAT32), _MAX_FLOAT32)
    bits = int.from_bytes(struct.pack(">f", bounded))
    ordered = bits ^ 0xFFFFFFFF if bits >> 31 else bits | 0x80000000
    return _name_bits(name) | ordered


@lru_cache(_CACHED)
def _name_bits(name: str) -> int:
    return key_of(f"n:{text_key(name)}") % _NAMES << 32


def price_band(price: float) -> int:
    """The number of the band that a price falls into.

    >>> [price_band(price) for price in (0, 0.005, 1, 1.49, 1.5, 499)] == [0, 0, 13, 13, 14, 28]
    True
    """
    return bisect_right(_PRICES, price) - 1


def prices_of(first: int, last: int) -> PriceRange:
    """The prices from one band to another.

    >>> prices_of(13, 14), prices_of(0, 0)
    (PriceRange(gte=1.0, lt=2.0, lte=None), PriceRange(gte=None, lt=0.01, lte=None))
    """
    ends = last + 1 < len(_PRICES)
    return PriceRange(gte=_PRICES[first] or None, lt=_PRICES[last + 1] if ends else None)


def keys_of_product(product: PointPayload) -> Iterator[Key]:
    """Yield what a product is filtered and counted by."""
    for field, text in (("brand", product.brand), ("seller", product.seller_id), ("locale", product.locale)):
        if text and (key := text_key(text)):
            yield Key(field, key, text)
    for depth, label in enumerate(product.category, start=1):
        yield Key("category", text_key(label), label)
        path = tuple(product.category[:depth])
        yield Key("path", path_key(path), path)
    for name, value in product.attributes.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Key("numbers", number_key(name, value), value)
        # What is longer than a label is a sentence, for which nobody filters.
        if value is not None and not (isinstance(value, str) and not 0 < len(value) <= MAX_LABEL_CHARS):
            yield Key("attributes", attribute_key(name, value), value)
    if product.price is not None:
        yield Key("price", price_band(product.price), product.price)


def stored_keys(product: PointPayload) -> dict[str, list[str | int]]:
    """The keys of a product by field, as its point holds them.

    >>> stored_keys(PointPayload(brand="Kelto", category=("Kitchen",), attributes={"new": True}))
    {'brand': ['kelto'], 'category': ['kitchen'], 'path': ['["kitchen"]'], 'attributes': ['["new","true"]']}
    """
    stored: dict[str, list[str | int]] = {}
    for one in keys_of_product(product):
        stored.setdefault(one.field, []).append(one.key)
    return stored


def to_filter(filters: Filters) -> models.Filter | None:
    """Return the conditions as Qdrant has them, None if there are none."""
    must = list(_conditions(filters))
    return models.Filter(must=must) if must else None


def to_live_filter(filters: Filters, *more: models.Condition) -> models.Filter:
    """Return the conditions for what asks for no vector: deleted products have none, and are left out by name."""
    deleted = models.FieldCondition(key="deleted", match=models.MatchValue(value=1))
    return models.Filter(must=[*_conditions(filters), *more] or None, must_not=[deleted])


def any_of(field: str, keys: Iterable[str | int]) -> models.FieldCondition:
    """The condition that a point has one of some keys."""
    return models.FieldCondition(key=f"{KEYS}.{field}", match=models.MatchAny(any=list(keys)))


def _conditions(filters: Filters) -> Iterator[models.Condition]:
    if filters.brand:
        yield any_of("brand", map(text_key, filters.brand))
    if filters.seller:
        yield any_of("seller", map(text_key, filters.seller))
    if isinstance(filters.category, str):
        yield any_of("category", [text_key(filters.category)])
    elif filters.category:
        yield any_of("path", [path_key(filters.category)])
    for name, wanted in (filters.attributes or {}).items():
        if isinstance(wanted, NumberRange):
            least = number_key(name, -math.inf if wanted.gte is None else wanted.gte)
            most = number_key(name, math.inf if wanted.lte is None else wanted.lte)
            yield models.FieldCondition(key=f"{KEYS}.numbers", range=models.Range(gte=least, lte=most))
        elif wanted:
            yield any_of("attributes", dict.fromkeys(key for value in wanted for key in _asked_keys(name, value)))
    for field, bounds in (("price", filters.price), ("launched_at", filters.launched_at)):
        given = {} if bounds is None else bounds.model_dump(exclude_none=True)
        if given:
            yield models.FieldCondition(key=field, range=models.Range(**given))
    if filters.in_stock is not None:
        yield models.FieldCondition(key="in_stock", match=models.MatchValue(value=int(filters.in_stock)))
    if filters.locale is not None:
        yield any_of("locale", [text_key(filters.locale)])

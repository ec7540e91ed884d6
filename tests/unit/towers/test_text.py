"""The text template: what it holds, what it must not hold, and its bounds."""

import unicodedata
from typing import Any

import pytest

from contracts.catalog import Product
from towers.text import MAX_TEXT_CHARS, normalised, product_text, text_hash


def product(**fields: Any) -> Product:
    """Return a product with the given fields."""
    return Product(**{"type": "product", "product_id": "P-1", "version": 1, "title": "Fridge", **fields})


def test_text_holds_title_category_brand_attributes_and_description_in_this_order() -> None:
    """The parts stand in a fixed order, attributes by name, so that the same product always gives the same text."""
    one = product(
        brand="Kelto",
        category=("Appliances", "Fridges"),
        attributes={"volume_l": 190.5, "frost_free": True, "colour": "red", "unknown": None},
        description="Quiet  and\ncool.",
    )
    assert product_text(one) == (
        "Fridge. Appliances > Fridges. Kelto. colour red, frost free yes, volume l 190.5. Quiet and cool."
    )


def test_text_is_the_same_whatever_the_order_of_attributes() -> None:
    """JSON objects have no order, so the text must not have it either."""
    forward, backward = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert product_text(product(attributes=forward)) == product_text(product(attributes=backward))


def test_text_does_not_change_with_price_stock_or_priority() -> None:
    """What ranks products today must not become a feature of the model that ranks them tomorrow."""
    plain = product_text(product())
    assert product_text(product(price=1.0, currency="INR", in_stock=False, priority=1.0, seller_id="S")) == plain


def test_text_is_bounded_and_one_attribute_does_not_fill_it() -> None:
    """A huge description is cut; a huge attribute leaves room for the next one."""
    text = product_text(product(attributes={"a": "x" * 1000, "b": "kept"}, description="y" * 20_000))
    assert len(text) <= MAX_TEXT_CHARS
    assert "b kept" in text


def test_text_hash_tells_texts_apart() -> None:
    """The cache key differs where the text does, and is stable."""
    assert text_hash("a") != text_hash("b")
    assert text_hash("a") == "ca978112ca1bbdcafac231b39a23dc4d"


@pytest.mark.parametrize("query", ["café", "CAFÉ", "Über-Größe", "पानी", "ｗｉｄｅ", "한국어", "ǰ"])
def test_a_query_is_one_however_its_accents_are_encoded(query: str) -> None:
    """Keyboards and apps send an accent within its letter or behind it; nobody sees which."""
    forms = {normalised(unicodedata.normalize(form, query)) for form in ("NFC", "NFD")}
    assert forms == {normalised(query)}

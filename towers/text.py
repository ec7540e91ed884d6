"""The one template that turns a product into the text which both towers' base encoder reads.

Neither price, stock, rank, badge nor popularity stands in it: what ranks products today must not become a feature of
the model that ranks them tomorrow. A change of wording changes every base vector, hence `TEMPLATE_VERSION`.
"""

import hashlib
import unicodedata
from functools import lru_cache
from typing import Final

from contracts.catalog import AttributeValue, Product

TEMPLATE_VERSION: Final = 1

MAX_TEXT_CHARS: Final = 1200
"""About the 256 word pieces that the default encoder reads; what is beyond costs time and changes nothing."""

MAX_VALUE_CHARS: Final = 120
"""One attribute must not push the others out of the text."""


def product_text(product: Product) -> str:
    """Return a product as the encoder reads it: title, category path, brand, attributes by name, description.

    >>> product_text(Product(type="product", product_id="P-1", version=1, title="Frost free fridge", brand="Kelto",
    ...     category=("Appliances", "Refrigerators"), attributes={"door_count": 2, "capacity_l": 190.0}, price=499.0))
    'Frost free fridge. Appliances > Refrigerators. Kelto. capacity l 190, door count 2'
    """
    attributes = (_attribute(name, product.attributes[name]) for name in sorted(product.attributes))
    parts = (
        product.title,
        " > ".join(product.category),
        product.brand or "",
        ", ".join(attribute for attribute in attributes if attribute),
        product.description,
    )
    text = ". ".join(" ".join(part.split()) for part in parts if part.strip())
    return text[:MAX_TEXT_CHARS].rstrip()


@lru_cache(maxsize=8_192)
def normalised(query: str) -> str:
    """Return a query in the form under which it is remembered: lower case, letters and digits, single spaces.

    An accent is part of its letter (NFC), however it was encoded.

    >>> normalised("  Quiet FRIDGE, 190-l ")
    'quiet fridge 190 l'
    """
    folded = unicodedata.normalize("NFC", query.casefold())
    return " ".join("".join(letter if _counts(letter) else " " for letter in folded).split())


def _counts(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter).startswith("M")


def text_hash(text: str) -> str:
    """Return the key under which a text's base vector is cached: 16 bytes of sha256 as hex.

    >>> text_hash("Frost free fridge")
    '152d426d1e1e7c8ea510edc6fcf7063b'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _attribute(name: str, value: AttributeValue) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        shown = "yes" if value else "no"
    elif isinstance(value, float):
        shown = f"{value:g}"
    else:
        shown = str(value)[:MAX_VALUE_CHARS]
    return f"{name.replace('_', ' ')} {shown}"

"""What a product's words, brand, category and attributes are called when quality is learned of them.

A product that nobody clicked yet starts with the quality of its words and its brand. Names are folded, so that `Bosch`
and `BOSCH` are one; rare names tell nothing that can be learned, and those of most products tell nothing at all.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from scipy.sparse import csr_matrix

from contracts.catalog import AttributeValue

MIN_PRODUCTS: Final = 3
"""A name that fewer products have is left to the products' own quality."""
MAX_SHARE: Final = 0.2
"""A name that more of the catalogue has tells products apart too little."""
MAX_VALUE_CHARS: Final = 40
"""A longer attribute is a sentence, not a name."""
ACCENTS: Final = re.compile("[\u0300-\u036f]")
"""Not the vowel signs of Indian and Thai letters: without those, words become others."""
NO_LETTER: Final = re.compile(r"[^\w\s.,/-]")
WORD: Final = re.compile(r"\w[^\s.,/-]*(?:[-.,/]\w[^\s.,/-]*)*")


def fold(text: str) -> str:
    """Case, accents and width removed.

    >>> fold("Kühlschrank ＡＢ")
    'kuhlschrank ab'
    """
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold()).casefold()
    return ACCENTS.sub("", unicodedata.normalize("NFKD", decomposed))


def words(text: str) -> list[str]:
    """The folded words of a text, numbers with their units kept together.

    >>> words("Fridge 12.5kg, A++ / KG-36")
    ['fridge', '12.5kg', 'a', 'kg-36']
    """
    return WORD.findall(NO_LETTER.sub(_letter_or_space, fold(text)))


def _letter_or_space(found: re.Match[str]) -> str:
    return found[0] if unicodedata.category(found[0]).startswith("M") else " "


class Described(Protocol):
    """What features are made of: a product, or what its point says of it."""

    @property
    def title(self) -> str: ...  # noqa: D102 - as in contracts.catalog.Product
    @property
    def brand(self) -> str | None: ...  # noqa: D102
    @property
    def category(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def attributes(self) -> Mapping[str, AttributeValue]: ...  # noqa: D102


def product_features(product: Described) -> frozenset[str]:
    """The names of what a product is made of, each with its kind.

    >>> from contracts.catalog import Product
    >>> sorted(product_features(Product(type="product", product_id="P-1", version=1, title="Quiet fridge",
    ...     brand="Kelto", category=("Kitchen", "Fridges"), attributes={"doors": 2, "new": True})))
    ['a:doors=2', 'a:new=true', 'b:kelto', 'c:kitchen', 'c:kitchen>fridges', 't:fridge', 't:quiet']
    """
    names = {f"t:{word}" for word in words(product.title)}
    if product.brand:
        names.add(f"b:{fold(product.brand).strip()}")
    path = [fold(part).strip() for part in product.category]
    names.update(f"c:{'>'.join(path[:depth])}" for depth in range(1, len(path) + 1))
    for name, value in product.attributes.items():
        shown = fold(str(value)).strip()
        if value is not None and 0 < len(shown) <= MAX_VALUE_CHARS:
            names.add(f"a:{fold(name)}={shown}")
    return frozenset(names)


def key_of(text: str) -> int:
    """The 64-bit key under which releases name a feature, a product or a query.

    >>> key_of("t:fridge")
    1288984666434518112
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def keys_of(texts: Iterable[str]) -> np.ndarray:
    """Keys of texts, each once and rising, (N,) uint64."""
    return np.unique(np.fromiter(map(key_of, texts), dtype=np.uint64))


def matched(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find keys among rising ones: the places of those of the wanted that are there, and where each of them stands.

    >>> places, rows = matched(np.array([7, 3, 5]), np.array([1, 5, 7]))
    >>> places.tolist(), rows.tolist()
    ([0, 2], [2, 1])
    """
    if not len(keys):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    places = np.flatnonzero(keys[found] == wanted)
    return places, found[places]


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Which features count in a catalogue, in which column, and how much a rare one weighs more.

    Args:
        keys: of the features that count, rising, (F,) uint64.
        idf: log(products / products with the feature), (F,) float32.
    """

    keys: np.ndarray
    idf: np.ndarray

    @classmethod
    def of(cls, catalogue: Sequence[np.ndarray]) -> "FeatureSpace":
        """Count the features of products, the keys of each as `keys_of` gives them, and keep what can be learned."""
        found = np.concatenate([*catalogue, np.zeros(0, dtype=np.uint64)])
        keys, counts = np.unique(found, return_counts=True)
        kept = (counts >= MIN_PRODUCTS) & (counts <= MAX_SHARE * len(catalogue))
        return cls(keys[kept], np.log(len(catalogue) / counts[kept]).astype(np.float32))

    def matrix(self, catalogue: Sequence[np.ndarray]) -> csr_matrix:
        """Rows of idf weights, each of length 1 (0 if a product has no feature that counts), (P, F)."""
        rows = np.repeat(np.arange(len(catalogue)), [len(keys) for keys in catalogue])
        keys = np.concatenate([*catalogue, np.zeros(0, dtype=np.uint64)])
        places, columns = matched(keys, self.keys)
        rows = rows[places]
        values = self.idf[columns]
        norms = np.sqrt(np.bincount(rows, values.astype(np.float64) ** 2, len(catalogue)))
        weights = (values / np.where(norms > 0, norms, 1.0)[rows]).astype(np.float32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(catalogue)))])
        return csr_matrix((weights, columns, starts), shape=(len(catalogue), len(self.keys)))

"""What a product's words, brand, category and attributes are called when quality is learned of them.

A product that nobody clicked yet starts with the quality of its words and its brand. Names are folded, so that `Bosch`
and `BOSCH` are one; rare names tell nothing that can be learned, and those of most products tell nothing at all.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.sparse import csr_matrix

from contracts.catalog import Product

MIN_PRODUCTS: Final = 3
"""A name that fewer products have is left to the products' own quality."""
MAX_SHARE: Final = 0.2
"""A name that more of the catalogue has tells products apart too little."""
MAX_VALUE_CHARS: Final = 40
"""A longer attribute is a sentence, not a name."""
ACCENTS: Final = re.compile("[\u0300-\u036f]")
"""Not the vowel signs of Indian and Thai letters: without those, words become others."""
WORD: Final = re.compile(r"\w[^\s.,/-]*(?:[-.,/]\w[^\s.,/-]*)*")


def fold(text: str) -> str:
    """Case, accents and width removed.

    >>> fold("Kühlschrank ＡＢ")
    'kuhlschrank ab'
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold()).casefold()
    return ACCENTS.sub("", unicodedata.normalize("NFKD", decomposed))


def words(text: str) -> list[str]:
    """The folded words of a text, numbers with their units kept together.

    >>> words("Fridge 12.5kg, A++ / KG-36")
    ['fridge', '12.5kg', 'a', 'kg-36']
    """
    return WORD.findall("".join(letter if _in_words(letter) else " " for letter in fold(text)))


def _in_words(letter: str) -> bool:
    return letter.isalnum() or letter in "_-.,/" or unicodedata.category(letter).startswith("M")


def product_features(product: Product) -> frozenset[str]:
    """The names of what a product is made of, each with its kind.

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


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Which names count in a catalogue, in which column, and how much a rare one weighs more.

    Args:
        columns: name -> column, in order of names.
        idf: log(products / products with the name), by column, (F,).
    """

    columns: Mapping[str, int]
    idf: np.ndarray

    @classmethod
    def of(cls, catalogue: Sequence[frozenset[str]]) -> "FeatureSpace":
        """Count the names of a catalogue and keep those that can be learned."""
        counts = Counter(name for names in catalogue for name in names)
        most = MAX_SHARE * len(catalogue)
        kept = sorted(name for name, count in counts.items() if MIN_PRODUCTS <= count <= most)
        idf = np.array([np.log(len(catalogue) / counts[name]) for name in kept], dtype=np.float32)
        return cls({name: column for column, name in enumerate(kept)}, idf)

    def matrix(self, catalogue: Iterable[frozenset[str]]) -> csr_matrix:
        """Rows of idf weights, each of length 1 (0 if a product has no name that counts), (P, F)."""
        indices: list[int] = []
        starts = [0]
        for names in catalogue:
            indices.extend(sorted(self.columns[name] for name in names if name in self.columns))
            starts.append(len(indices))
        columns, bounds = np.array(indices, dtype=np.int32), np.array(starts)
        values = self.idf[columns]
        squares = np.concatenate([[0.0], np.cumsum(values.astype(np.float64) ** 2)])
        norms = np.sqrt(squares[bounds[1:]] - squares[bounds[:-1]])
        rows = np.repeat(np.where(norms > 0, norms, 1.0), np.diff(bounds))
        return csr_matrix(((values / rows).astype(np.float32), columns, bounds), shape=(len(starts) - 1, len(self.idf)))

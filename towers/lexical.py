"""Words of products and of queries as sparse vectors, so that the vector store answers BM25 beside meaning.

Of each there are two: `words`, and `grams`, which find an identifier or a word that is unfinished or mistyped. The
store multiplies by the inverse document frequency; `towers.word_index` does for whoever scores without a store.

Source: docs/papers.md, "Words beside meaning".
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
from cachetools import LRUCache, cached

from contracts.catalog import AttributeValue
from towers.features import Described, fold, words

LEXICAL_VERSION: Final = 1
"""A change of analysis, weights or hash changes every sparse vector."""

K1: Final = 1.2
"""How soon a repeated word adds nothing: BM25's usual value."""
B: Final = 0.4
"""How much length counts against a product; below the usual 0.75, for many attributes describe one thing better."""
AVERAGE_LENGTH: Final = 20.0
"""Weighted words of a usual product. Fixed, because a moving average would change vectors that nobody wrote."""
TITLE: Final = 1.0
"""The shop's own name of the thing."""
BRAND: Final = 0.6
"""Mostly in the title too; both together outweigh a brand that is only named as compatible."""
CATEGORY: Final = 0.5
"""Says what a thing is if its title does not, but of a whole shelf alike."""
ATTRIBUTE: Final = 0.3
"""Facts of many products: at the weight of a title, a list of colours would outweigh the thing itself."""
MODEL: Final = 1.0
"""A model number counts like a word of the title, and once more as what identifies the product."""
IDENTIFIER: Final = 1.0
"""The product's id, or the whole value of an attribute that identifies it."""
IDENTIFIER_PART: Final = 0.5
"""A word within such a value, or in a title: others of its series may have it too."""
NAMED: Final = 20
"""Products with the best matching words, of which it is asked whether the query names them: reading them takes time."""
MOST_NAMED: Final = 3
"""Products that a part of an identifier names at most: what more of them are called is their kind, like `RJ45`."""
MOST_TERMS: Final = 256
"""Of a product; those of the fields named first above stay."""
MOST_GRAMS: Final = 160
MAX_VALUE_CHARS: Final = 200
"""The beginning of an attribute: a list of compatible models is worth finding, but not without end."""
SHORT_WORDS: Final = 2
"""A query of at most so many words names a kind of thing; a longer one describes it."""

_IDENTIFYING: Final = frozenset({"model", "mpn", "sku", "ean", "gtin", "upc", "isbn", "asin"})
_NUMBERED: Final = frozenset({"part", "article", "item", "product", "manufacturer", "style", "reference"})
_FILLING: Final = frozenset({"number", "no", "nr", "code", "name", "id"})
_UNIT: Final = re.compile(r"[mk]?g|t|[mcd]?l|[mck]?m|in|ft|oz|lb|k?wh?|m?ah?|k?v|[kmg]?hz|[kmgt]b|mp|px|[kcfshxp]")
_SPLIT: Final = re.compile(r"[-/_]|(?<!\d)[.,]|[.,](?!\d)")
_NUMBER: Final = re.compile(r"(\d[\d.,]*\d)([^\W\d_]*)")
_MEASURE: Final = re.compile(r"[\d.]+([^\W\d_]*)")
_LETTER: Final = re.compile(r"[^\W\d_]")
_DIGIT: Final = re.compile(r"\d")
_SEVERAL: Final = re.compile(r"[;|]|, ")
_WIDEST: Final = 4
"""Pieces that are joined; of an attribute only a number and its unit are."""
_LONGEST: Final = 24
"""A longer run of letters and digits is no model number that anyone types."""
_HEAD: Final = 7
"""Typos are found in the beginning of a word; of an identifier in all of it."""


class Sparse(NamedTuple):
    """A sparse vector as the store takes it: rising uint32 indices and float32 values."""

    indices: np.ndarray
    values: np.ndarray


NO_WORDS: Final = Sparse(np.zeros(0, np.uint32), np.zeros(0, np.float32))


class ProductWords(NamedTuple):
    """The sparse vectors of a product, under the names that they have in the store."""

    words: Sparse
    grams: Sparse


class QueryKind(StrEnum):
    """What a shopper typed; words and meaning count differently in each."""

    IDENTIFIER = "identifier"
    SHORT = "short"
    LONG = "long"


@dataclass(frozen=True, slots=True, eq=False)
class LexicalQuery:
    """A query as the lexical arm asks it.

    Args:
        words: its words, and what they are if written together, each with weight 1.
        grams: of what it may be mistyped from; empty if every word is too short.
        kind: what it is by its form.
        identifiers: what a product must be called for it to be meant.
    """

    words: Sparse
    grams: Sparse
    kind: QueryKind
    identifiers: frozenset[str]

    def arms(self, *, mistyped: bool = False) -> dict[str, Sparse]:
        """The vectors to ask by, none that is empty: grams only if words alone may not find what is meant.

        Args:
            mistyped: whether words found nothing.
        """
        arms = {"words": self.words}
        if mistyped or self.kind is QueryKind.IDENTIFIER:
            arms["grams"] = self.grams
        return {name: arm for name, arm in arms.items() if len(arm.indices)}

    def pins(self, product_id: str, title: str, attributes: Mapping[str, AttributeValue]) -> float:
        """How surely it means this very product: 0 not, `IDENTIFIER_PART`, or `IDENTIFIER`. The highest go first.

        A query of another kind than an identifier names a product by its id alone.
        """
        named = (
            identifiers_of(product_id, title, attributes)
            if self.kind is QueryKind.IDENTIFIER
            else dict.fromkeys({_whole(product_id)} - {""}, IDENTIFIER)
        )
        return max((named[name] for name in self.identifiers & named.keys()), default=0.0)


def read_query(text: str) -> LexicalQuery:
    """Both vectors of a query, and what kind it is.

    >>> str(read_query("KG 36 B").kind), str(read_query("bosch kg-36/b fridge").kind), str(read_query("fridge").kind)
    ('identifier', 'identifier', 'short')
    """
    written = _analyse(text)
    identifying = list(written.identifying())
    whole = _whole(text)
    names = {whole, *(join.text for join in identifying)} - {""}
    terms = {*written.pieces, *(join.text for join in written.joins), *(f"={name}" for name in names)}
    mistyped = {name for name in names if name != whole or _DIGIT.search(name)}
    grams = _grams(mistyped, (piece for piece in written.pieces if piece not in mistyped))
    within = {join.text for join in identifying for other in identifying if set(join.words) < set(other.words)}
    return LexicalQuery(
        words=_sparse(dict.fromkeys(map(_index, terms), 1.0)),
        grams=_sparse(dict.fromkeys(grams, 1.0)),
        kind=_kind(written),
        identifiers=frozenset(names - (within - {whole})),
    )


def meant(pins: Sequence[float]) -> list[float]:
    """The pins of a query's candidates, without those of parts if these name more than a few products.

    >>> meant([0.0, IDENTIFIER_PART, IDENTIFIER]), meant([IDENTIFIER, *4 * [IDENTIFIER_PART]])
    ([0.0, 0.5, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0])
    """
    if sum(pin == IDENTIFIER_PART for pin in pins) <= MOST_NAMED:
        return list(pins)
    return [0.0 if pin == IDENTIFIER_PART else pin for pin in pins]


def product_words(product_id: str, product: Described) -> ProductWords:
    """Both vectors of a product."""
    spelled = (
        piece
        for text, weight, widest in _fields(product)
        if weight != ATTRIBUTE
        for piece in _analyse(text, widest).pieces
    )
    grams = _grams(identifiers_of(product_id, product.title, product.attributes), spelled)
    return ProductWords(word_vector(product_id, product), _sparse(grams, MOST_GRAMS))


def word_vector(product_id: str, product: Described) -> Sparse:
    """The words of a product; their values are the document's part of BM25 over weighted fields."""
    counts: dict[str, float] = {}
    length = 0.0
    for text, weight, widest in _fields(product):
        written = _analyse(text, widest)
        length += weight * len(written.pieces)
        joined = dict.fromkeys(join.text for join in written.joins)  # in their order: the last may be cut off
        for term in (*written.pieces, *(term for term in joined if term not in written.pieces)):
            counts[term] = counts.get(term, 0.0) + weight
    names = identifiers_of(product_id, product.title, product.attributes)
    values = {_index(f"={name}"): weight for name, weight in names.items()}
    norm = K1 * (1.0 - B + B * length / AVERAGE_LENGTH)
    for term, count in counts.items():
        values.setdefault(_index(term), count * (K1 + 1.0) / (count + norm))
    return _sparse(values, MOST_TERMS)


def identifiers_of(product_id: str, title: str, attributes: Mapping[str, AttributeValue]) -> dict[str, float]:
    """What identifies a product, folded and without separators, and how surely.

    >>> identifiers_of("P-1", "Kelto KG-36/B fridge", {})
    {'p1': 1.0, 'kg36b': 0.5}
    """
    found = {_whole(product_id): IDENTIFIER} if _whole(product_id) else {}
    values = [text for name, value in attributes.items() if _is_identifying(name) for text in _several(value)]
    found.update(dict.fromkeys((name for name in map(_whole, values) if name), IDENTIFIER))
    for text in values or [title]:
        for join in _analyse(text).identifying():
            found.setdefault(join.text, IDENTIFIER_PART)
    return found


class _Join(NamedTuple):
    """Neighbouring pieces as one word, which written words they are of, and whether of all of these."""

    text: str
    pieces: int
    words: range
    whole: bool


class _Written(NamedTuple):
    words: int
    pieces: list[str]
    joins: list[_Join]

    def identifying(self) -> Iterator[_Join]:
        # `kg-36/b` is no `kg-36`.
        return (join for join in self.joins if join.whole and _identifies(join.text))


def _analyse(text: str, widest: int = _WIDEST) -> _Written:
    """The pieces of a text, and what they are if written together: `12.5 kg`, `KG 36 B`, `kg-36/b`, `frost-free`."""
    pieces: list[str] = []
    places: list[int] = []
    joins = []
    written = words(text)
    for place, word in enumerate(written):
        parts = [_number(part) for part in _SPLIT.split(word) if part]
        joins.append(_Join("".join(parts), len(parts), range(place, place + 1), whole=True))
        pieces += parts
        places += [place] * len(parts)
    for begin, first in enumerate(pieces):
        joined, begins = "", begin == 0 or places[begin - 1] != places[begin]
        for end, piece in enumerate(pieces[begin : begin + widest], begin):
            if not _may_join(piece):
                break
            joined += piece
            if joined != first and _LETTER.search(joined) and _DIGIT.search(joined):
                whole = begins and (end + 1 == len(pieces) or places[end + 1] != places[end])
                joins.append(_Join(joined, end + 1 - begin, range(places[begin], places[end] + 1), whole))
    return _Written(len(written), pieces, joins)


def _number(piece: str) -> str:
    """A number as all write it: `12,5kg`, `12.50kg` and `12.5kg` are one, and 1,500 has a thousand in it."""
    found = _NUMBER.fullmatch(piece) if "." in piece or "," in piece else None
    if found is None:
        return piece
    figures, unit = found.groups()
    point = figures[max(figures.rfind("."), figures.rfind(","))]
    groups = figures.replace(",", ".").split(".")
    thousands = figures.count(point) > 1 or (point == "," and len(groups[-1]) == 3 and groups[0] != "0")
    fraction = "" if thousands else groups.pop().rstrip("0")
    return "".join(groups) + (f".{fraction}" if fraction else "") + unit


def _may_join(piece: str) -> bool:
    return len(piece) <= (7 if piece[0].isdigit() else 4)


def _identifies(text: str) -> bool:
    """Whether a word can be a model number: letters and two digits or more, or many digits, and no measure."""
    digits = len(_DIGIT.findall(text))
    if digits < 2 or not 4 <= len(text) <= _LONGEST:
        return False
    measure = _MEASURE.fullmatch(text)
    if measure is None:
        return True
    unit = measure[1]
    return len(unit) < 3 and not _UNIT.fullmatch(unit) if unit else digits >= 5


def _kind(written: _Written) -> QueryKind:
    # Of two words, `size 42` is more often a measure than a model.
    joins = [join for join in written.identifying() if len(join.words) == 1 or join.pieces > 2]
    covered = {place for join in joins for place in join.words}
    one_word = written.words == 1 and any(_DIGIT.search(piece) for piece in written.pieces)
    alone = one_word and not _MEASURE.fullmatch(written.joins[0].text)
    if alone or (covered and written.words - len(covered) <= 2):
        return QueryKind.IDENTIFIER
    return QueryKind.SHORT if written.words <= SHORT_WORDS else QueryKind.LONG


def _fields(product: Described) -> Iterator[tuple[str, float, int]]:
    """Each text of a product with its weight, and how many neighbours are joined in it."""
    yield product.title, TITLE, _WIDEST
    yield product.brand or "", BRAND, _WIDEST
    yield " ".join(product.category), CATEGORY, _WIDEST
    for name, value in sorted(product.attributes.items()):
        spoken = name.replace("_", " ")
        if value is True:
            yield spoken, ATTRIBUTE, 2
        elif isinstance(value, str):
            identifying = _is_identifying(name)
            yield value[:MAX_VALUE_CHARS], MODEL if identifying else ATTRIBUTE, _WIDEST if identifying else 2
        elif value is not None and value is not False:
            # The last word of `capacity_l` is the unit.
            yield f"{value:g} {spoken.split(' ')[-1]}", ATTRIBUTE, 2


@cached(LRUCache(4096), lock=Lock())  # a catalogue has few names, and each is asked twice a product
def _is_identifying(attribute: str) -> bool:
    """Whether an attribute names the product itself: `model_number` does, `processor_model` does not."""
    parts = set(words(attribute.replace("_", " ")))
    if not parts <= _IDENTIFYING | _NUMBERED | _FILLING:
        return False
    return bool(parts & _IDENTIFYING) or bool(parts & _NUMBERED and parts & _FILLING - {"name"})


def _several(value: AttributeValue) -> list[str]:
    if value is None or isinstance(value, bool):
        return []
    return [text for text in _SEVERAL.split(str(value)[:MAX_VALUE_CHARS]) if _DIGIT.search(text)]


def _whole(text: str) -> str:
    return "".join(letter for letter in fold(text) if letter.isalnum())[:64]


def _grams(identifiers: Iterable[str], spelled: Iterable[str]) -> dict[int, float]:
    """What a word begins with, and what still agrees after one typo."""
    found: dict[int, float] = {}
    for name in identifiers:
        if len(name) <= _LONGEST:
            found.update((_index(f"^{name[:begun]}"), begun / len(name)) for begun in range(3, len(name) + 1))
            found.update((_index(gram), 1.0) for gram in _mistyped(name))
    for word in spelled:
        if len(word) >= 5:
            for gram in (f"^{word[:5]}", *_mistyped(word[:_HEAD])):
                found.setdefault(_index(gram), 0.5)
    return found


def _mistyped(word: str) -> list[str]:
    """A word and what is left of it without any one letter: two words that differ by one typo share one of these."""
    return [f"-{word}", *(f"-{word[:place]}{word[place + 1 :]}" for place in range(len(word)))]


def _index(term: str) -> int:
    """The dimension of a term; CRC keeps terms apart that differ in up to four neighbouring bytes."""
    return zlib.crc32(term.encode())


def _sparse(values: Mapping[int, float], most: int | None = None) -> Sparse:
    indices = np.fromiter(values.keys(), np.uint32, len(values))[:most]
    order = np.argsort(indices)
    return Sparse(indices[order], np.fromiter(values.values(), np.float32, len(values))[:most][order])

"""Worlds whose law of preference is known: real titles, made-up queries, shoppers who want more than the text says.

They tell how much of a law the learner finds, which no judged data set can: there the law is not known. One seed draws
products, queries and law; worlds that settings were chosen on and worlds that are reported have seeds of their own.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from contracts.catalog import Product
from contracts.errors import UsageError
from millrace.output import Tell
from simulator.base_vectors import encode_catalogue
from simulator.shop.world import Judgment, Query, World, attraction_of, popularity_of
from towers.release_files import Encoder

PRODUCTS: Final = 6_000
TYPED: Final = 470
NEVER_TYPED: Final = 200
QUERY_WORDS: Final = (2, 4)
"""Shortest and longest query, in words."""
ANGLE: Final = np.pi / 4
"""By how much a taste turns the text's space."""
PULL: Final = 1.0
"""What a product's worth counts for beside its likeness, both in standard deviations over the catalogue."""
WHIM: Final = 0.3
"""What neither text nor law tells, in the same measure: no model finds all."""
GRADED: Final = ((10, 4), (20, 3), (45, 2), (90, 1))
"""The best products of a query, up to a rank, and their grade."""
FEWEST_TITLES: Final = 3
"""A word of fewer titles is a name of its own; its worth could not be told from the product's."""
WORD: Final = re.compile(r"\w[\w.-]*")

Worth = Callable[[np.random.Generator, Sequence[str], np.ndarray, np.ndarray], np.ndarray]
"""Generator, titles, query vectors (Q, D), product vectors (P, D) -> how much each is wanted, (Q, P)."""


def make(law: str, source: World, encoder: Encoder, *, seed: int, cache: Path | None, tell: Tell) -> World:
    """Make a world of another one's titles.

    Args:
        law: one of `LAWS`.
        source: gives the titles.
        encoder: the base encoder; likeness is its cosine.
        seed: of products, queries and law.
        cache: folder in which base vectors are kept; None keeps none.
        tell: told how encoding goes.

    Raises:
        UsageError: there is no such law, or the titles do not suffice.
    """
    if law not in LAWS:
        raise UsageError(f"there is no law {law}", fix=f"one of: {', '.join(LAWS)}")
    rng = np.random.default_rng(seed)
    products = _products(rng, source)
    titles = [product["title"] for product in products]
    asked = _queries(rng, titles)
    models = [Product.model_validate(product) for product in products]
    catalogue, queries = encode_catalogue(models, [query.query for query in asked], encoder, cache=cache, tell=tell)
    wanted = LAWS[law](rng, titles, queries, catalogue.vectors)
    wanted = wanted + WHIM * rng.standard_normal(wanted.shape)
    judgments = {
        query.query_id: _judged(row, [str(product["product_id"]) for product in products])
        for query, row in zip(asked, wanted, strict=True)
    }
    return World(tuple(products), tuple(asked), judgments, name=law)


def _products(rng: np.random.Generator, source: World) -> list[dict[str, Any]]:
    """Titles alone: what else a product says would tell the law's words twice."""
    first_of_title = {str(product["title"]): product for product in reversed(source.products)}
    known = sorted(first_of_title.values(), key=lambda product: str(product["product_id"]))
    chosen = rng.permutation(len(known))[:PRODUCTS]
    kept = ("type", "schema_version", "product_id", "version", "title")
    return [{name: known[place][name] for name in kept if name in known[place]} for place in sorted(chosen)]


def _queries(rng: np.random.Generator, titles: Sequence[str]) -> list[Query]:
    """Words that follow one another in a title; the first ones drawn are typed, most of all the very first."""
    texts: dict[str, None] = {}
    for place in rng.integers(len(titles), size=100 * (TYPED + NEVER_TYPED)):
        words, length = WORD.findall(titles[place].lower()), int(rng.integers(QUERY_WORDS[0], QUERY_WORDS[1] + 1))
        if len(words) >= length:
            begin = int(rng.integers(len(words) - length + 1))
            texts[" ".join(words[begin : begin + length])] = None
        if len(texts) == TYPED + NEVER_TYPED:
            break
    else:
        fix = f"take a world of some thousand titles of {QUERY_WORDS[0]} words and more"
        raise UsageError(f"its titles give {len(texts)} queries of the {TYPED + NEVER_TYPED} needed", fix=fix)
    return [
        Query(f"Q-{rank + 1:05d}", text, "made", "train" if rank < TYPED else "test", "en", popularity_of(rank % TYPED))
        for rank, text in enumerate(texts)
    ]


def _judged(wanted: np.ndarray, product_ids: Sequence[str]) -> dict[str, Judgment]:
    """The judgments of one query: grades by rank, and what a look becomes."""
    order = np.argsort(-wanted, kind="stable")
    found, first = {}, 0
    for last, grade in GRADED:
        found.update({product_ids[row]: Judgment(grade, attraction_of(grade)) for row in order[first:last]})
        first = last
    return found


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean(axis=-1, keepdims=True)) / values.std(axis=-1, keepdims=True))


def _none(rng: np.random.Generator, titles: Sequence[str], queries: np.ndarray, products: np.ndarray) -> np.ndarray:
    """The text says all."""
    return _standard(queries @ products.T)


def _rotation(rng: np.random.Generator, titles: Sequence[str], queries: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Kinds of queries want other kinds of products than their text is like: the text's space, turned."""
    turn = np.linalg.qr(rng.standard_normal((queries.shape[1],) * 2))[0]
    likeness, turned = _standard(queries @ products.T), _standard(queries @ turn @ products.T)
    return np.asarray(np.cos(ANGLE) * likeness + np.sin(ANGLE) * turned)


def _words(rng: np.random.Generator, titles: Sequence[str], queries: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Words and brands are worth something, whatever is asked for."""
    words = [sorted(set(WORD.findall(title.lower()))) for title in titles]
    titles_of = Counter(word for found in words for word in found)
    worth = {word: rng.standard_normal() for word in sorted(titles_of) if titles_of[word] >= FEWEST_TITLES}
    of_products = np.array([sum(worth.get(word, 0.0) for word in found) for found in words])
    return np.asarray(_none(rng, titles, queries, products) + PULL * _standard(of_products))


def _quality(rng: np.random.Generator, titles: Sequence[str], queries: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Every product has a worth of its own that its text does not tell."""
    return np.asarray(_none(rng, titles, queries, products) + PULL * rng.standard_normal(len(titles)))


LAWS: Final[Mapping[str, Worth]] = {"rotation": _rotation, "words": _words, "quality": _quality, "none": _none}

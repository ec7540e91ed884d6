"""What was learned of queries and of products, as every service applies it: two vectors whose dot product is the score.

    query vector    [ (b e_q + (e_q - m) W + v) / 10 ; 1 ]        product vector    [ e_p ; h_p / 10 ]

Everything that holds for any query of its meaning rides in the query vector; of a product only one number changes, its
quality h. So query and product releases over one base fit one another by construction, and a product release needs no
new vectors. What words count, and what shoppers of this very query chose, search adds.

Source: docs/papers.md, "The preference model".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

import numpy as np

from towers.features import FeatureSpace, key_of, matched
from towers.lexical import QueryKind
from towers.memory import QueryMemory

NATS_PER_COSINE: Final = 10.0
"""What a unit of cosine is worth untrained, and of which scores are counted in: nats are a tenth of a cosine."""
OWN_PRECISION: Final = 90.0
"""How strongly a product's own quality is held to 0 before anything is known: an inverse variance, tight at first."""
STEEPNESS: Final = 4
"""How fast a best match that is weak loses its say."""


class Rate(NamedTuple):
    """What words count in a kind of query: what the product adds whose words match best.

    Args:
        strong: nats of a strong best match.
        weak: nats of one that is next to none.
        full: the BM25 score, in nats, from which the best match is strong.
    """

    strong: float
    weak: float = 0.0
    full: float = 0.0

    def nats(self, best: float) -> float:
        """What the best match of a query adds.

        >>> Rate(3.0, 1.0, 20.0).nats(10.0), Rate(3.0, 1.0, 20.0).nats(30.0)
        (1.125, 3.0)
        """
        strength = strength_of(best, self.full)
        return strength * self.strong + (1 - strength) * self.weak


def strength_of(best: float, full: float) -> float:
    """How strong the best match of a query is, from 0 to 1.

    Of a long query often little more than by-words are found, and of any query common words: rare ones score high.

    Args:
        best: its BM25 score, in nats.
        full: the score from which it is strong.
    """
    return (best / full) ** STEEPNESS if best < full else 1.0


class Mix(NamedTuple):
    """What words count beside meaning, by what kind of query it is."""

    identifier: Rate = Rate(3.0, 3.0, 10.0)
    short: Rate = Rate(2.0, 2.0, 10.0)
    long: Rate = Rate(3.0, 0.0, 20.0)

    @classmethod
    def of(cls, numbers: np.ndarray) -> Self:
        """The mix of the numbers of its rates, (kinds, 3): as `numpy.array` makes them of a mix."""
        return cls(*(Rate(*row) for row in numbers.tolist()))

    def named(self) -> dict[str, dict[str, float]]:
        """The rates by kind of query, as manifests and reports have them."""
        return {kind.value: rate._asdict() for kind, rate in zip(KINDS, self, strict=True)}

    def nats(self, kind: QueryKind, matches: Sequence[float]) -> list[float]:
        """What the match of each candidate's words adds to its score: the best one's nats by its share of that match.

        Args:
            kind: of the query.
            matches: BM25 scores of the candidates.

        >>> Mix(short=Rate(3.0)).nats(QueryKind.SHORT, [8.0, 0.0, 4.0]), Mix().nats(QueryKind.LONG, [10.0])
        ([3.0, 0.0, 1.5], [0.1875])
        """
        best = max((*matches, 0.0))
        nats = self[KINDS.index(kind)].nats(best)
        return [nats * match / best if best else 0.0 for match in matches]


KINDS: Final = tuple(QueryKind)
"""In the order of a mix's rates."""
DEFAULT_MIX: Final = Mix()
"""Until clicks say otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryTower:
    """What queries prefer beyond their text, in nats and in the space of product vectors.

    Args:
        taste: W, (D, D) float32.
        common: v, (D,) float32.
        mean_query: m, (D,) float32.
        memory: what shoppers of repeated queries chose; it rides in no vector.
        mix: what words count; it rides in no vector.
        text: b, what a unit of cosine between query and product is worth, in nats.
        quality: how much of a product's quality counts; 0 for those who are to see nothing of what was learned.
    """

    taste: np.ndarray
    common: np.ndarray
    mean_query: np.ndarray
    memory: QueryMemory = field(default_factory=QueryMemory.nothing)
    mix: Mix = DEFAULT_MIX
    text: float = NATS_PER_COSINE
    quality: float = 1.0

    @classmethod
    def untrained(cls, dim: int, *, quality: float = 1.0) -> Self:
        """The text alone decides, and as much of the products' quality as is said."""
        nothing = np.zeros(dim, dtype=np.float32)
        return cls(np.zeros((dim, dim), np.float32), nothing, nothing, quality=quality)

    def terms(self, row: np.ndarray, product: np.ndarray, added: Mapping[str, float]) -> dict[str, float]:
        """What a product's score is made of, in nats; together ten times the score.

        Args:
            row: base vector of the query, (D,).
            product: as a collection holds it, base vector and quality, (D + 1,).
            added: what search adds beside the vectors, such as the match of words, by the name of the term.
        """
        base = product[:-1]
        return {
            "text": self.text * float(row @ base),
            "taste": float(self.taste_of(row[None])[0] @ base),
            "quality": NATS_PER_COSINE * self.quality * float(product[-1]),
            **added,
        }

    def taste_of(self, vectors: np.ndarray) -> np.ndarray:
        """The part that any query of this meaning has, in nats, (N, D)."""
        return np.asarray((vectors - self.mean_query) @ self.taste + self.common, dtype=np.float32)

    def vectors(self, vectors: np.ndarray) -> np.ndarray:
        """The vectors that queries are searched with, (N, D + 1) float32.

        Args:
            vectors: their base vectors, unit rows, (N, D).
        """
        moved = self.text / NATS_PER_COSINE * vectors + self.taste_of(vectors) / NATS_PER_COSINE
        return np.hstack([moved, np.full((len(moved), 1), self.quality)]).astype(np.float32)

    def remembered(self, query: str) -> dict[str, float]:
        """What the shoppers of a query add to dot products, by point id."""
        return {point: nats / NATS_PER_COSINE for point, nats in self.memory.nats_of(query).items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """What a release carries of it."""
        return {
            "taste": self.taste, "common": self.common, "mean_query": self.mean_query,
            "mix": np.array(self.mix, np.float32), "text": np.array([self.text], np.float32),
            **self.memory.tensors(),
        }  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Self:
        """The tower that a release carries."""
        taste, common, mean_query = (tensors[name] for name in ("taste", "common", "mean_query"))
        text = float(tensors["text"][0]) if "text" in tensors else NATS_PER_COSINE  # releases of before have none
        return cls(taste, common, mean_query, QueryMemory.from_tensors(tensors), Mix.of(tensors["mix"]), text)


@dataclass(frozen=True, slots=True, eq=False)
class ProductTower:
    """The quality of products, in nats: their own, and what their words, brand, category and attributes say of it.

    Args:
        features: which features count, and how much.
        words: w, what each feature is worth, (F,) float32.
        products: keys of the ids of products that have a quality of their own, rising, (P,) uint64.
        own: u of these products, (P,) float32.
        own_width: standard deviation of u of these products, (P,) float32.
        unseen_width: standard deviation of u of every other product.
        cap: most that quality may be, either way.
    """

    features: FeatureSpace
    words: np.ndarray
    products: np.ndarray
    own: np.ndarray
    own_width: np.ndarray
    unseen_width: float
    cap: float

    @classmethod
    def untrained(cls) -> Self:
        """No product is better than another, as far as anyone knows."""
        nothing, no_keys = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.uint64)
        width = float(np.float32(OWN_PRECISION**-0.5))
        return cls(FeatureSpace(no_keys, nothing), nothing, no_keys, nothing, nothing, width, 0.0)

    def quality(self, product_ids: Sequence[str], features: Sequence[np.ndarray]) -> np.ndarray:
        """The quality h of each product, in nats, (N,) float32.

        Args:
            product_ids: of the products.
            features: keys of the features of each, as `keys_of` gives them.
        """
        words = np.asarray(self.features.matrix(features) @ self.words)
        quality = words + self._of_products(product_ids, self.own, 0.0)
        return np.asarray(np.clip(quality, -self.cap, self.cap), dtype=np.float32)

    def parts(self, product_id: str, names: Collection[str]) -> dict[str, float]:
        """What a product's quality is the sum of, in nats, before the cap: `own` and what each of its features adds.

        Args:
            product_id: of the product.
            names: of its features, as `product_features` gives them.
        """
        by_key = {key_of(name): name for name in names}
        row = self.features.matrix([np.array(sorted(by_key), dtype=np.uint64)])
        worth = row.data * self.words[row.indices]
        keys = self.features.keys[row.indices].tolist()
        own = float(self._of_products([product_id], self.own, 0.0)[0])
        return {"own": own, **{by_key[key]: value for key, value in zip(keys, worth.tolist(), strict=True)}}

    def width(self, product_ids: Sequence[str]) -> np.ndarray:
        """How unsure the own quality of each product is: its standard deviation in nats, (N,) float32."""
        return self._of_products(product_ids, self.own_width, self.unseen_width)

    def _of_products(self, product_ids: Sequence[str], values: np.ndarray, otherwise: float) -> np.ndarray:
        found = np.full(len(product_ids), otherwise, dtype=np.float32)
        if len(self.products):
            keys = np.fromiter(map(key_of, product_ids), dtype=np.uint64, count=len(product_ids))
            places, rows = matched(keys, self.products)
            found[places] = values[rows]
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """What a release carries of it."""
        return {
            "features": self.features.keys, "idf": self.features.idf, "words": self.words,
            "products": self.products, "own": self.own, "own_width": self.own_width,
            "unseen_width": np.array([self.unseen_width], np.float32), "cap": np.array([self.cap], np.float32),
        }  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Self:
        """The tower that a release carries."""
        words, products, own, own_width = (tensors[name] for name in ("words", "products", "own", "own_width"))
        unseen_width, cap = (float(tensors[name][0]) for name in ("unseen_width", "cap"))
        space = FeatureSpace(tensors["features"], tensors["idf"])
        return cls(space, words, products, own, own_width, unseen_width, cap)


def product_vectors(vectors: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """The vectors that are searched, (N, D + 1) float32.

    Args:
        vectors: base vectors, unit rows, (N, D).
        quality: in nats, (N,).
    """
    return np.hstack([vectors, quality[:, None] / NATS_PER_COSINE]).astype(np.float32)

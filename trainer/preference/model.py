"""The preference model: s(q, p) = b <e_q, e_p> + (e_q - m)'W e_p + v'e_p + h_p, and h_p = u_p + x_p'w.

Beside it stand a_q l(q, p), how well the words match, 1 for the best match of a query, and d_qp, what the shoppers of a
repeated query chose (`trainer.preference.memory`). What a match is worth, a_q, depends on the kind of query and on how
strong its best match is.

W says what kinds of products kinds of queries prefer, v what all queries do; h is a product's quality: its own, and
what its words, brand and category say of it. All of this rides in the query's vector and in one number beside the
product's: one dot product gives that part of the score.

Source: docs/papers.md, "The preference model".
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from towers.features import matched
from towers.model import DEFAULT_MIX, NATS_PER_COSINE, OWN_PRECISION, Mix
from trainer.preference.evidence import Cells
from trainer.preference.matches import Matches


def rates_of(mix: Mix) -> np.ndarray:
    """Nats of a strong and of a weak best match, kind by kind, (2 * kinds,)."""
    return np.array(mix)[:, :2].reshape(-1)


DEFAULT_RATES: Final = np.append(rates_of(DEFAULT_MIX), NATS_PER_COSINE)
"""a, and last b, untrained."""
LEAST_RATES: Final = np.append(np.zeros(len(DEFAULT_RATES) - 1), 0.6 * NATS_PER_COSINE)
"""No match of words counts against a product, and of the text so much is left: with less, few lists mislead."""
QUALITY_CAP: Final = NATS_PER_COSINE
"""Nats by which a product's quality moves it at most, up or down: no more than all of its text counts untrained."""
OWN_CAP: Final = 2.0
"""Nats of it that are the product's own.

What shoppers chose for one query is lifted in all others, where nobody was asked about it: without a cap a few lists
bring such products before what the text says (docs/experiments.md).
"""


HELD: Final = 1e6
"""The width of what is held at 0: so tight that nothing is learned."""


class Prior(NamedTuple):
    """How strongly each part of the model is held to 0: inverse variances.

    The widths start tight and are loosened as left-out queries allow; `trainer.preference.priors` says how.
    """

    taste: float = 18.0
    """Of W."""
    common: float = 90.0
    """Of v."""
    own: float = OWN_PRECISION
    """Of u."""
    words: float = 90.0
    """Of w."""
    lexical: float = 10.0
    """Of a, about what words are worth untrained."""

    def unheld(self, others: "Prior | None" = None) -> "Prior":
        """The same widths, but what is held at 0 has another one: it is not known, which is not the same as sure.

        Args:
            others: what it has; its first one if None.
        """
        widths = zip(others or Prior(), self, strict=True)
        return Prior(*(other if width >= HELD else width for other, width in widths))


Memory = dict[int, tuple[np.ndarray, np.ndarray]]
"""By query the products that it moves, rising, and by how many nats."""


@dataclass(frozen=True)
class Catalogue:
    """What the model knows of products, P of them.

    Args:
        vectors: base vectors, unit rows, (P, D).
        features: names as idf-weighted unit rows, (P, F).
        matches: how well the words of cells' queries and products match; None if the ranking has no such term.
    """

    vectors: np.ndarray
    features: csr_matrix
    matches: Callable[[Cells], Matches] | None = None


class Deviations(NamedTuple):
    """How uncertain the weights are, in nats: standard deviations of a posterior without correlations (Laplace)."""

    own: np.ndarray
    """Of u of the products that have a quality of their own, in their order."""
    untried: float
    """Of u of any other product."""


@dataclass(frozen=True)
class Weights:
    """What was learned; untrained, everything is 0 and the text alone decides.

    Args:
        taste: W, (D, D).
        common: v, (D,).
        mean_query: m, the mean of the queries that have evidence, (D,).
        words: w, (F,).
        products: the products that have a quality of their own, rising.
        own: u of these products.
        memory: d by query, of the products that it moves.
        rates: a, in nats, and last b, what a unit of cosine is worth, (2 * kinds + 1,); a rides in no vector.
        deviations: how uncertain this is; None if it was not solved here.
    """

    taste: np.ndarray
    common: np.ndarray
    mean_query: np.ndarray
    words: np.ndarray
    products: np.ndarray
    own: np.ndarray
    memory: Memory = field(default_factory=dict)
    rates: np.ndarray = field(default_factory=lambda: DEFAULT_RATES)
    deviations: Deviations | None = None

    @classmethod
    def untrained(cls, catalogue: Catalogue) -> "Weights":
        """Nothing learned."""
        dim, features = catalogue.vectors.shape[1], catalogue.features.shape[1]
        taste, common, words, own = (np.zeros(size, np.float32) for size in ((dim, dim), dim, features, 0))
        return cls(taste, common, np.zeros(dim, np.float32), words, np.zeros(0, dtype=np.int64), own)

    def scaled(self, share: float, *, mix: float) -> "Weights":
        """A share of what was learned for all queries, and another of what words count."""
        return replace(
            self,
            taste=share * self.taste,
            common=share * self.common,
            words=share * self.words,
            own=share * self.own,
            rates=DEFAULT_RATES + mix * (self.rates - DEFAULT_RATES),
        )

    def remembered(self, query: int, scores: np.ndarray) -> np.ndarray:
        """Scores of the whole catalogue, in nats, (P,), with what is remembered of a query."""
        if query not in self.memory:
            return scores
        products, nats = self.memory[query]
        found = scores.copy()
        found[products] += nats
        return found

    def learned_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """What queries prefer beyond their text, in the space of product vectors and in nats, (Q, D).

        Args:
            vectors: their base vectors, (Q, D).
        """
        return np.asarray((vectors - self.mean_query) @ self.taste + self.common)

    def query_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """The vectors that are searched with, (Q, D + 1): the last number takes a product's quality as it is."""
        moved = self.text / NATS_PER_COSINE * vectors + self.learned_vectors(vectors) / NATS_PER_COSINE
        return np.hstack([moved, np.ones((len(moved), 1))]).astype(np.float32)

    @property
    def mix(self) -> Mix:
        """A as search takes it."""
        return Mix.of(np.hstack([self.rates[:-1].reshape(-1, 2), np.array(DEFAULT_MIX)[:, 2:]]))

    @property
    def text(self) -> float:
        """B as it was learned."""
        return float(self.rates[-1])

    @property
    def counted_own(self) -> np.ndarray:
        """U as far as it counts."""
        return np.asarray(np.clip(self.own, -OWN_CAP, OWN_CAP))

    def quality(self, catalogue: Catalogue) -> np.ndarray:
        """The quality h of each product, in nats and capped, (P,)."""
        return self.quality_of(np.arange(catalogue.features.shape[0]), catalogue.features)

    def quality_of(self, products: np.ndarray, features: csr_matrix) -> np.ndarray:
        """The quality h of some products, in nats and capped, (N,).

        Args:
            products: their numbers, (N,).
            features: their rows of the catalogue's, (N, F).
        """
        quality = np.asarray(features @ self.words, dtype=np.float64)
        places, rows = matched(products, self.products)
        quality[places] += self.counted_own[rows]
        return np.clip(quality, -QUALITY_CAP, QUALITY_CAP)

    def own_deviations(self, products: int) -> np.ndarray:
        """How uncertain each product's own quality is, in nats, (P,): as at first if nothing was solved."""
        if self.deviations is None:
            return np.full(products, OWN_PRECISION**-0.5)
        deviations = np.full(products, self.deviations.untried)
        deviations[self.products] = self.deviations.own
        return deviations

    def product_vectors(self, catalogue: Catalogue) -> np.ndarray:
        """The vectors that are searched, (P, D + 1)."""
        return np.hstack([catalogue.vectors, self.quality(catalogue)[:, None] / NATS_PER_COSINE]).astype(np.float32)

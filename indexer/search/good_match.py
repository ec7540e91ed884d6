"""Whether anything found matches: meaning alone always finds something, so its score is compared with that of nonsense.

Texts that mean nothing are searched for once a release is in force, and what the best product scores for them is kept.
A search whose best product does no better than half of them finds nothing worth showing; if not even a word of it
occurs, it must do better than nearly all of them.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, NamedTuple, Self

import numpy as np

from contracts.http import Filters
from indexer.search.encoding import QueryEncoder
from indexer.search.in_force import ServedRelease
from indexer.search.retrieval import Hit, Question, Retrieval
from service.logging import get_logger
from towers.model import NATS_PER_COSINE

TEXTS: Final = 50
"""Enough for a median that another draw moves by a hundredth of a cosine."""
AGAIN_S: Final = 300.0
"""The catalogue changes more quickly than what nonsense scores."""
FOLLOWS_S: Final = 30.0
"""How long the bar may be of an earlier query release, by which nonsense scored otherwise; releases may come faster."""
RETRY_S: Final = 10.0
"""After the store failed, or while it is empty."""
WITH_WORDS: Final = 0.5
"""Quantile of nonsense that a search must exceed some word of which was found."""
WITHOUT_WORDS: Final = 0.98
_LETTERS: Final = ("bcdfghklmnprstvz", "aeiou")


def nonsense(texts: int = TEXTS) -> list[str]:
    """Texts of one to three made-up words; the same each time.

    >>> nonsense(3)
    ['sadu rucu', 'dota', 'tafe']
    """
    random = Random(7)

    def word() -> str:
        return "".join(random.choice(kind) for _ in range(random.randint(2, 4)) for kind in _LETTERS)

    return [" ".join(word() for _ in range(random.randint(1, 3))) for _ in range(texts)]


class Bar(NamedTuple):
    """What the best product must score by meaning and quality, in units of the dot product.

    Args:
        with_words: if some word of the query was found.
        without_words: if none was.
    """

    with_words: float
    without_words: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Self:
        """Set it by the best scores of nonsense.

        >>> Bar.of([0.2, 0.3, 0.4])
        Bar(with_words=0.3, without_words=0.396)
        """
        return cls(*(float(np.quantile(scores, share).round(6)) for share in (WITH_WORDS, WITHOUT_WORDS)))

    def is_missed(self, hits: Sequence[Hit]) -> bool:
        """Whether nothing found is a good match; what a query names always is, and what was passed over may still be.

        Meaning finds something for any text: if nothing is found, it is filters that left nothing, not the query.

        >>> [Bar(0.3, 0.4).is_missed([Hit(score, {}, words=words)]) for score, words in ((0.35, 0.0), (0.85, 5.0))]
        [True, False]
        """
        if not hits or any(hit.pin for hit in hits):
            return False
        best = max(hit.score - (hit.words + min(hit.memory, 0.0)) / NATS_PER_COSINE for hit in hits)
        return bool(best < (self.with_words if any(hit.words for hit in hits) else self.without_words))

    def times(self, factor: float) -> "Bar":
        """The bar where meaning counts so many times as much."""
        return Bar(factor * self.with_words, factor * self.without_words)


class GoodMatch:
    """Keeps the bar of the collection in force, by its query release or one of a moment ago, for one event loop.

    Args:
        encoder: of queries.
        retrieval: the vector store.
        monotonic_s: the clock.
    """

    def __init__(
        self, encoder: QueryEncoder, retrieval: Retrieval, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._encoder = encoder
        self._retrieval = retrieval
        self._monotonic_s = monotonic_s
        self._bar: Bar | None = None
        self._collection = ""
        self._query_release = 0
        self._text = NATS_PER_COSINE
        self._set_at_s = 0.0
        self._due_at_s = 0.0
        self._setting: asyncio.Task[None] | None = None
        self._is_told = False  # that it cannot be set

    def is_missed(self, release: ServedRelease, hits: Sequence[Hit]) -> bool:
        """Whether nothing found is a good match; no while no bar is set. Begins to set it where that is due."""
        if release.collection != self._collection:
            self._bar, self._collection, self._due_at_s = None, release.collection, self._monotonic_s()
        if release.query_release != self._query_release:
            self._query_release = release.query_release
            self._due_at_s = min(self._due_at_s, self._set_at_s + FOLLOWS_S)
        if self._monotonic_s() >= self._due_at_s and (self._setting is None or self._setting.done()):
            self._setting = asyncio.create_task(self._set(release))
        return self._bar is not None and self._bar.times(release.tower.text / self._text).is_missed(hits)

    def close(self) -> None:
        """Stop setting it."""
        if self._setting is not None:
            self._setting.cancel()

    async def _set(self, release: ServedRelease) -> None:
        """Ask for one text after the other, for shoppers go first."""
        texts, scores = nonsense(), []
        try:
            rows = await self._encoder.encode_bulk(texts)
            for vector in release.tower.vectors(rows):
                by_meaning = Question.of("", vector, release.tower)
                found = await self._retrieval.best(release.collection, by_meaning, k=1, filters=Filters())
                scores += [hit.score for hit in found[:1]]
        except Exception as error:  # noqa: BLE001 - whatever it is, searches go on without being judged
            if not self._is_told:
                get_logger().warning("good_match_unknown", error=str(error))
            self._is_told = True
        else:
            self._is_told = False
        if release.collection == self._collection:
            if len(scores) == len(texts):
                self._bar, self._text = Bar.of(scores), release.tower.text
            self._set_at_s = self._monotonic_s()
            self._due_at_s = self._set_at_s + (AGAIN_S if len(scores) == len(texts) else RETRY_S)

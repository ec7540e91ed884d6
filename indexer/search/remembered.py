"""Earlier answers, given again while the vector store does not answer.

Of each search the last results, with the releases and the arm that made them; bounded in bytes, and for minutes only.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import orjson
from cachetools import TTLCache

from contracts.events import Exploration
from indexer.search.encoding import ENTRY_BYTES
from indexer.search.lists import Found
from indexer.search.retrieval import Hit

REMEMBERED_FOR_S: Final = 300.0
"""How old an answer may be that is given again; prices, stock and deletions are as old."""
REMEMBERED_BYTES: Final = 32 * 2**20


class _Remembered(NamedTuple):
    content: bytes
    found_at_s: float


class RememberedAnswers:
    """Answers by what was asked, and of whom.

    Args:
        monotonic_s: the clock.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._answers: TTLCache[bytes, _Remembered] = TTLCache(
            REMEMBERED_BYTES,
            REMEMBERED_FOR_S,
            timer=monotonic_s,
            getsizeof=lambda one: len(one.content) + ENTRY_BYTES,
        )

    def keep(self, key: bytes, found: Found, shown: Sequence[Hit], found_at_s: float) -> None:
        """Keep what was shown of a list, unless something newer is kept, or it is too large.

        Args:
            key: of what was asked.
            found: the list.
            shown: of it.
            found_at_s: when, by the clock.
        """
        kept = self._answers.get(key)
        if kept is not None and kept.found_at_s >= found_at_s:
            return
        hits = [[*hit[:2], hit.variants] for hit in shown]
        made_by = [found.query_release, found.product_release, found.arm, found.exploration.model_dump()]
        content = [*made_by, hits, found.total, found.no_good_match]
        answer = _Remembered(orjson.dumps(content), found_at_s)
        with suppress(ValueError):  # it is larger than all that is kept
            self._answers[key] = answer

    def find(self, key: bytes) -> Found | None:
        """Return what was shown, in one page, and how old it is; None if nothing is kept."""
        kept = self._answers.get(key)
        if kept is None:
            return None
        query_release, product_release, arm, exploration, hits, total, no_good_match = orjson.loads(kept.content)
        return Found(
            query_release,
            product_release,
            [[Hit(score, payload, variants=tuple(variants)) for score, payload, variants in hits]],
            total,
            arm=arm,
            exploration=Exploration(**exploration),
            degraded="remembered",
            age_s=round(self._monotonic_s() - kept.found_at_s, 1),
            no_good_match=no_good_match,
        )

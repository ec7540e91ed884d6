"""Base vectors of queries: a cache of the hot ones, and two queues before the one encoder.

Shoppers go first. Bulk texts are encoded in slices between them, so that a shopper waits for one slice at most.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from cachetools import LRUCache

from contracts.errors import Overloaded
from towers.release_files import Encoder

CACHE_BYTES: Final = 32 * 2**20
"""About 17,000 queries; a shop's frequent queries are far fewer."""
ENTRY_BYTES: Final = 300
"""What an entry of a cache takes besides its content."""
SLICE_TEXTS: Final = 64
SLICE_CHARS: Final = 2_000
"""Texts of a slice times the longest of them: about a tenth of a second on one core."""
WAIT_S: Final = 0.5
"""How long the queries that wait may take to encode; a shopper behind more than that is refused at once."""
BULK_AT_ONCE: Final = 8
_WEIGHT: Final = 0.2
"""Of the newest slice in the mean time of a text."""


@dataclass(slots=True, eq=False)
class _Text:
    vector: "asyncio.Future[np.ndarray]"
    waiters: int = 0


class QueryEncoder:
    """Encodes queries for one event loop.

    Base vectors do not depend on a release: the cache outlives every swap. Queries that arrive while others are being
    encoded wait and are encoded together; the same text is encoded once, however many ask, and not at all once nobody
    waits for it.

    Args:
        encoder: the base encoder.
        cache_bytes: how much memory the kept vectors may take.
    """

    def __init__(self, encoder: Encoder, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._encoder = encoder
        self._cache: LRUCache[bytes, np.ndarray] = LRUCache(cache_bytes, lambda row: row.nbytes + ENTRY_BYTES)
        self._shoppers: dict[str, _Text] = {}
        self._bulk: dict[str, _Text] = {}
        self._under_way: dict[str, _Text] = {}
        self._bulk_requests = 0
        self._text_s = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._working: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return base vectors (N, D) for somebody who waits for them, in the order of the texts.

        Raises:
            Overloaded: so many wait already that it would take too long.
        """
        return await self._vectors(texts, self._shoppers)

    async def encode_bulk(self, texts: Sequence[str]) -> np.ndarray:
        """Return base vectors (N, D), in the order of the texts; every shopper goes before.

        Raises:
            Overloaded: too many bulk requests are under way.
        """
        if self._bulk_requests >= BULK_AT_ONCE:
            raise Overloaded(f"{BULK_AT_ONCE} requests with many texts are under way", fix="send it again later")
        self._bulk_requests += 1
        try:
            return await self._vectors(texts, self._bulk)
        finally:
            self._bulk_requests -= 1

    def close(self) -> None:
        """Free the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _vectors(self, texts: Sequence[str], queue: dict[str, _Text]) -> np.ndarray:
        rows = {text: row for text in texts if (row := self._cache.get(digest(text))) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        if missing and queue is self._shoppers and len(queue) * self._text_s > WAIT_S:
            raise Overloaded(f"{len(queue)} queries wait to be encoded", fix="send it again")
        waiting = {text: self._queued(text, queue) for text in missing}
        try:
            for text, one in waiting.items():
                rows[text] = await asyncio.shield(one.vector)  # who hangs up must not take the others' vector along
        finally:
            for text, one in waiting.items():
                self._leave(text, one)
        return np.stack([rows[text] for text in texts])

    def _queued(self, text: str, queue: dict[str, _Text]) -> _Text:
        if queue is self._shoppers and text in self._bulk:
            queue[text] = self._bulk.pop(text)
        one = self._under_way.get(text) or self._shoppers.get(text) or self._bulk.get(text)
        if one is None:
            one = queue[text] = _Text(asyncio.get_running_loop().create_future())
        one.waiters += 1
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return one

    def _leave(self, text: str, one: _Text) -> None:
        one.waiters -= 1
        if not one.waiters:
            for queue in (self._shoppers, self._bulk):
                if queue.get(text) is one:
                    del queue[text]

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while queue := self._shoppers or self._bulk:
            taken = self._under_way = {text: queue.pop(text) for text in first_slice(queue)}
            began_s = loop.time()
            try:
                rows = await loop.run_in_executor(self._executor, self._encoder.encode, list(taken))
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                for one in taken.values():
                    one.vector.set_exception(error)
                    one.vector.exception()  # seen, even if nobody waits any more
            else:
                for (text, one), row in zip(taken.items(), rows, strict=True):
                    # A copy: a row is a view, and one that is kept would keep the vectors of its whole slice in memory.
                    self._cache[digest(text)] = vector = row.copy()
                    one.vector.set_result(vector)
                self._text_s += _WEIGHT * ((loop.time() - began_s) / len(taken) - self._text_s)
            self._under_way = {}


def first_slice(texts: Iterable[str]) -> list[str]:
    """Return the first texts, as many as are encoded in about a tenth of a second, at least one.

    >>> [len(first_slice(["x" * length] * 100)) for length in (20, 500, 1000, 5000)]
    [64, 4, 2, 1]
    """
    taken: list[str] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text))
        if taken and (len(taken) == SLICE_TEXTS or (len(taken) + 1) * longest > SLICE_CHARS):
            break
        taken.append(text)
    return taken


def digest(text: str) -> bytes:
    """Return a key of fixed size for a cache."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

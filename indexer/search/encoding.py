"""Base vectors of queries: a cache of the hot ones, and one encoding at a time for all that wait."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from towers.release_files import Encoder

CACHED_QUERIES: Final = 10_000
"""About 16 MB of vectors; a shop's frequent queries are far fewer."""
BATCH: Final = 64


class QueryEncoder:
    """Encodes queries for one event loop.

    Base vectors do not depend on a release: the cache outlives every swap. Queries that arrive while others are being
    encoded wait and are encoded together; the same text is encoded once, however many ask.

    Args:
        encoder: the base encoder.
        cached_queries: how many vectors are kept.
    """

    def __init__(self, encoder: Encoder, *, cached_queries: int = CACHED_QUERIES) -> None:
        self._encoder = encoder
        self._cached_queries = cached_queries
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._waiting: dict[str, asyncio.Future[np.ndarray]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._draining: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return base vectors (N, D), in the order of the texts."""
        return np.stack(await asyncio.gather(*(self._vector(text) for text in texts)))

    def close(self) -> None:
        """Free the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _vector(self, text: str) -> np.ndarray:
        found = self._cache.get(text)
        if found is not None:
            self._cache.move_to_end(text)
            return found
        future = self._waiting.get(text)
        if future is None:
            future = self._waiting[text] = asyncio.get_running_loop().create_future()
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await asyncio.shield(future)  # one client that hangs up must not take the others' vector with it

    async def _drain(self) -> None:
        """Encode what waits until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken = dict(list(self._waiting.items())[:BATCH])
            try:
                rows = await loop.run_in_executor(self._executor, self._encoder.encode, list(taken))
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                self._settle_failed(taken, error)
                continue
            for (text, future), row in zip(taken.items(), rows, strict=True):
                self._keep(text, row)
                del self._waiting[text]
                future.set_result(row)

    def _settle_failed(self, taken: dict[str, "asyncio.Future[np.ndarray]"], error: Exception) -> None:
        for text, future in taken.items():
            del self._waiting[text]
            future.set_exception(error)

    def _keep(self, text: str, row: np.ndarray) -> None:
        self._cache[text] = row
        while len(self._cache) > self._cached_queries:
            self._cache.popitem(last=False)

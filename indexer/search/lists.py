"""Lists that shoppers page through: ranked once, kept for a while under their `search_id`, then read page by page.

What a page shows is decided when the list is ranked, what it says of each product when it is asked for: while the index
moves, no product appears twice and none is lost, and price and stock are today's. A list without a query goes on for as
long as a shopper turns its pages: the store is asked for what comes next of all that is not in it.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import orjson
import redis.asyncio
from cachetools import TTLCache

from contracts.arms import LIVE
from contracts.events import Exploration
from contracts.http import SearchRequest
from contracts.telemetry import Process
from indexer.search.arrangement import grouped, in_pages
from indexer.search.encoding import ENTRY_BYTES, digest
from indexer.search.facets import MATCHING
from indexer.search.retrieval import Hit
from service import metrics
from service.health import Dependency, probed
from service.redis import FAILURES

MEMORY_BYTES: Final = 64 * 2**20
"""About 15,000 lists of 100 products."""
WRITES_AT_ONCE: Final = 64
"""Lists on their way to Redis; one more stays with this process alone."""
PAUSE_S: Final = 1.0
"""After Redis failed, how long it is not asked."""
FORM: Final = 4
"""Part of each key in Redis: processes of two versions do not read each other's lists."""
MOST_LISTED: Final = 10_000
"""Products of a list, its variants among them: so many positions an event may name."""
T = TypeVar("T")
_OF_A_PAGE: Final = {"search_id", "page", "facets", "session_id", "client_id", "explain", "explore", "impression"}


def asked_by(request: SearchRequest, query: str) -> bytes:
    """A key of what a request asks for, whoever asks, whichever page, and in whatever order attributes are named.

    Args:
        request: what was asked.
        query: as it is searched for.
    """
    asked = request.model_dump(mode="json", exclude=_OF_A_PAGE | {"query"})
    return digest(f"{query}\n{orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()}")


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A product of a list, its score, the variants that it stands for, its variant group, its team and its seller."""

    product_id: str
    score: float
    variants: tuple[str, ...] = ()
    parent_id: str | None = None
    team: str | None = None
    seller_id: str | None = None

    @classmethod
    def of(cls, hit: Hit) -> "Entry":
        """What is kept of a hit."""
        payload = hit.payload
        group, seller = payload.get("parent_id"), payload.get("seller_id")
        return cls(payload["product_id"], hit.score, hit.variants, group, hit.team, seller)

    def hit(self) -> Hit:
        """What arranges it."""
        payload = {"product_id": self.product_id, "parent_id": self.parent_id, "seller_id": self.seller_id}
        return Hit(self.score, payload, variants=self.variants, team=self.team)


class RankedList(msgspec.Struct, array_like=True, frozen=True):
    """A list as it was ranked.

    Args:
        asked: key of what was asked for.
        search_time: epoch ms.
        query_release: that ranked it.
        product_release: whose quality it was ranked by.
        arm: that answered.
        policy: of its exploration.
        seed: of its exploration.
        degraded: how, if it was.
        total: products that meet the filters; None if nobody counted.
        no_good_match: whether nothing in it matches well.
        pages: its products.
        goes_on: whether the store has more behind them; the last page may not be full then, and is not shown yet.
    """

    asked: bytes
    search_time: int
    query_release: int
    product_release: int
    arm: str
    policy: str
    seed: int
    degraded: str | None
    total: int | None
    no_good_match: bool
    pages: tuple[tuple[Entry, ...], ...]
    goes_on: bool = False

    @property
    def exploration(self) -> Exploration:
        """How it was perturbed."""
        return Exploration(policy=self.policy, seed=self.seed)

    def first_position(self, page: int) -> int:
        """The position at which a page begins, 1-based over the whole list."""
        return 1 + sum(map(len, self.pages[: page - 1]))


def entries_of(pages: Sequence[Sequence[Hit]]) -> tuple[tuple[Entry, ...], ...]:
    """What is kept of pages."""
    return tuple(tuple(map(Entry.of, page)) for page in pages)


def page_of(pages: Sequence[Sequence[T]], number: int) -> Sequence[T]:
    """A page by its number, from 1; nothing behind the last."""
    return pages[number - 1] if number <= len(pages) else ()


class Found(NamedTuple):
    """A list in its pages, and how it came about; explanations by product, of those that were asked for."""

    query_release: int
    product_release: int
    pages: Sequence[Sequence[Hit]]
    total: int | None
    arm: str = LIVE
    exploration: Exploration = Exploration()
    explanations: Mapping[str, dict[str, float]] = {}
    degraded: str | None = None
    age_s: float | None = None
    no_good_match: bool = False
    goes_on: bool = False


def kept_of(found: Found, *, asked: bytes, search_time: int) -> RankedList:
    """What is kept of a list for its further pages."""
    return RankedList(
        asked=asked,
        search_time=search_time,
        query_release=found.query_release,
        product_release=found.product_release,
        arm=found.arm,
        policy=found.exploration.policy,
        seed=found.exploration.seed,
        degraded=found.degraded,
        total=found.total,
        no_good_match=found.no_good_match,
        pages=entries_of(found.pages),
        goes_on=found.goes_on,
    )


def listed_ids(ranked: RankedList) -> list[str]:
    """The products of a list, and the variants that they stand for."""
    return [one for entry in _entries(ranked) for one in (entry.product_id, *entry.variants)]


def wanted(ranked: RankedList, request: SearchRequest, listed: int) -> int:
    """How many further products to ask for, so that something is behind a page; none if the list is at its longest."""
    missing = request.page * request.k + 1 - sum(map(len, ranked.pages))
    return min(max(MATCHING, missing), MOST_LISTED - listed)


def continued(ranked: RankedList, further: Sequence[Hit], request: SearchRequest, *, goes_on: bool) -> RankedList:
    """Put what comes next behind a list, whose full pages stay as they were shown.

    Args:
        ranked: the list.
        further: what comes next, none of it in the list.
        request: what was asked.
        goes_on: whether there is more behind it.
    """
    pages = [*ranked.pages]
    if request.group_variants:
        groups = iter(grouped([*(entry.hit() for entry in _entries(ranked)), *further]))
        pages = [tuple(Entry.of(next(groups)) for _entry in page) for page in pages]
        further = [*groups]
    begun = pages.pop() if pages and len(pages[-1]) < request.k else ()
    more = in_pages([*(entry.hit() for entry in begun), *further], request.k, per_seller=request.per_seller)
    return msgspec.structs.replace(ranked, pages=(*pages, *entries_of(more)), goes_on=goes_on)


def _entries(ranked: RankedList) -> Iterator[Entry]:
    return (entry for page in ranked.pages for entry in page)


class KeptLists:
    """Keeps lists: in memory, and in Redis for the other search processes.

    Redis may be gone at any time: then each process knows its own lists alone.

    Args:
        kept_for_s: how long.
        client: of Redis, which gives up quickly; None if there is none.
        prefix: the deployment's, before each key.
        monotonic_s: clock that ends what is kept in memory.
    """

    def __init__(
        self,
        *,
        kept_for_s: float,
        client: redis.asyncio.Redis | None = None,
        prefix: str = "",
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kept_for_s = kept_for_s
        self._client = client
        self._prefix = f"{prefix}millrace:search:list:{FORM}:"
        self._monotonic_s = monotonic_s
        self._memory: TTLCache[str, bytes] = TTLCache(
            MEMORY_BYTES, kept_for_s, timer=monotonic_s, getsizeof=lambda value: len(value) + ENTRY_BYTES
        )
        self._redis = Dependency(Process.REDIS, meaning="each search process knows the pages of its own lists alone")
        self._asked_again_at_s = monotonic_s()
        self._writing: set[asyncio.Task[None]] = set()

    def keep(self, search_id: str, ranked: RankedList) -> None:
        """Keep a list and return at once; Redis gets it beside, if it has a second page."""
        value = msgspec.msgpack.encode(ranked)
        self._memory[search_id] = value
        if self._client is None or not (len(ranked.pages) > 1 or ranked.goes_on):
            return
        if len(self._writing) >= WRITES_AT_ONCE or not self._is_asked:
            metrics.DEGRADED.labels("without_redis").inc()
            return
        task = asyncio.create_task(self._write(self._client, search_id, value))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def find(self, search_id: str) -> RankedList | None:
        """Return a list that is still kept."""
        value: Any = self._memory.get(search_id)
        if value is None and self._client is not None and self._is_asked:
            try:
                value = await self._client.get(self._prefix + search_id)
            except FAILURES as error:
                self._failed(error)
            else:
                self._redis.answered()
        return None if value is None else msgspec.msgpack.decode(value, type=RankedList)

    def probed(self) -> AbstractAsyncContextManager[None]:
        """Know of Redis during the block although nobody turns pages."""
        return nullcontext() if self._client is None else probed(self._redis, self._client.ping)

    async def close(self) -> None:
        """Let go of Redis."""
        for task in self._writing:
            task.cancel()
        if self._client is not None:
            await self._client.aclose()

    @property
    def _is_asked(self) -> bool:
        return self._monotonic_s() >= self._asked_again_at_s

    async def _write(self, client: redis.asyncio.Redis, search_id: str, value: bytes) -> None:
        try:
            await client.set(self._prefix + search_id, value, px=round(1000 * self.kept_for_s))
        except FAILURES as error:
            self._failed(error)
        else:
            self._redis.answered()

    def _failed(self, error: Exception) -> None:
        self._redis.failed(type(error).__name__)
        self._asked_again_at_s = self._monotonic_s() + PAUSE_S
        metrics.DEGRADED.labels("without_redis").inc()

"""Stand-ins for what the search service talks to."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from typing_extensions import override

from contracts.arms import LIVE
from contracts.catalog import PointPayload
from contracts.errors import Overloaded, TransientError
from contracts.events import Impression
from contracts.http import Filters, SearchRequest, Sort
from indexer.filters import stored_keys
from indexer.search.arms import NO_SHARES, Shares
from indexer.search.arrangement import NO_BOOSTS, Boosts
from indexer.search.encoding import QueryEncoder
from indexer.search.exploration import Policy
from indexer.search.finding import DEADLINE_S, Finder
from indexer.search.good_match import GoodMatch
from indexer.search.in_force import ServedRelease
from indexer.search.lists import KeptLists
from indexer.search.retrieval import Hit, Question
from indexer.search.service import Clocks, Ranking, SearchService
from tests.support.hand_clock import HandClock
from tests.support.tiny_encoder import TinyEncoder
from towers.lexical import read_query
from towers.model import QueryTower

NOW_MS = 1_795_196_600_000
DIM = 16
DEPTH = 12
LISTS_KEPT_S = 600


def served(query: int = 0, product: int = 0) -> ServedRelease:
    """Return a release whose tower moves vectors by its number; release 0 moves nothing."""
    taste = np.zeros((DIM, DIM), dtype=np.float32)
    taste[:, 0] = query
    tower = replace(QueryTower.untrained(DIM), taste=taste)
    return ServedRelease(query, product, f"products-r{product}", tower)


def request(query: str = "quiet fridge", **fields: object) -> SearchRequest:
    """Return a request."""
    return SearchRequest.model_validate({"query": query, **fields})


def question_of(query: str, vector: np.ndarray | None, **said: Any) -> Question:
    """Return what a store is asked for a query by a tower that says nothing else."""
    return Question(vector, read_query(query), **said)


class Store:
    """A vector store that answers with what it was asked, or does not answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, np.ndarray, int, Filters]] = []
        self.questions: list[Question] = []
        self.knows_words = True
        self.was_asked = asyncio.Event()
        self.counted = 0
        self.browsed: list[tuple[str, Sort, int, Filters]] = []
        self.faceted: list[tuple[str, Filters]] = []
        self.facets: dict[str, dict[str | int, int]] = {}
        self.prices: dict[str, float] = {}
        self.said: dict[str, Any] = {}
        self.looked_up: list[str | int] = []
        self.products: list[dict[str, Any]] = []
        self.size = 5_000
        self.said_of: dict[str, dict[str, Any]] = {}
        self.down = False
        self.sheds = False
        self.hangs = False
        self.count_fails = False
        self.count_hangs = False
        self.gate: asyncio.Event | None = None
        self.gone: set[str] = set()

    async def best(
        self, collection: str, question: Question, *, k: int, filters: Filters, with_vectors: bool = False
    ) -> list[Hit]:
        """Return k products of the collection, by words alone P-10 and on, of quality 0.5."""
        vector = np.zeros(DIM + 1) if question.vector is None else question.vector
        self.questions.append(question)
        self.asked.append((collection, vector, k, filters))
        self.was_asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise TransientError("Qdrant cannot be reached")
        if self.sheds:
            raise Overloaded("Qdrant refused: 503", retry_after_s=2)
        release = int(collection.removeprefix("products-r"))
        product = product_of(vector).tolist() if with_vectors else None
        if question.vector is None:
            found = range(10, 10 + k) if self.knows_words else ()
            return [Hit(0.35, payload(f"P-{number}", release), words=3.0) for number in found]
        return [
            Hit(1 - 0.1 * number, self.payload(f"P-{number}", release), product, words=0.25)
            for number in range(1, k + 1)
        ]

    def payload(self, product_id: str, release: int) -> dict[str, Any]:
        """Return what the store shows of a product, with what was given."""
        priced = {"price": self.prices[product_id]} if product_id in self.prices else {}
        return payload(product_id, release) | self.said | priced

    async def browse(
        self, collection: str, sort: Sort, *, k: int, filters: Filters, without: Sequence[str] = ()
    ) -> list[Hit]:
        """Return k of the products of the collection, named after what sorts them."""
        self.browsed.append((collection, sort, k, filters))
        if self.down:
            raise TransientError("Qdrant cannot be reached")
        release = int(collection.removeprefix("products-r"))
        named = [one for number in range(1, self.size + 1) if (one := f"{sort}-{number}") not in {*without}]
        return [Hit(0.05, payload(one, release) | self.said_of.get(one, {})) for one in named[:k]]

    async def facet(self, collection: str, field: str, *, most: int, filters: Filters) -> dict[str | int, int]:
        """Return the counts that were given for the field."""
        self.faceted.append((field, filters))
        if self.count_hangs:
            await asyncio.Event().wait()
        if self.count_fails:
            raise TransientError("facet failed")
        return dict(list(self.facets.get(field, {}).items())[:most])

    async def having(self, collection: str, field: str, keys: Sequence[str | int]) -> list[dict[str, Any]]:
        """Return what the products say that were given, and have one of the keys."""
        self.looked_up += keys
        return [one for one in self.products if set(stored_keys(PointPayload(**one)).get(field, ())) & set(keys)]

    async def shown(
        self, collection: str, product_ids: Sequence[str], *, filters: Filters
    ) -> dict[str, dict[str, Any]]:
        """Return what is shown of products that are not gone, at a price that has changed."""
        del filters
        self.was_asked.set()
        if self.down:
            raise TransientError("Qdrant cannot be reached")
        if self.sheds:
            raise Overloaded("Qdrant refused: 503", retry_after_s=2)
        release = int(collection.removeprefix("products-r"))
        return {one: payload(one, release) | {"price": 9.5} for one in product_ids if one not in self.gone}

    async def count(self, collection: str, filters: Filters) -> int:
        """Return a number."""
        self.counted += 1
        if self.count_hangs:
            await asyncio.Event().wait()
        if self.count_fails:
            raise TransientError("count failed")
        return 412


def product_of(query: np.ndarray) -> np.ndarray:
    """Return the vector of a product: along the query, and better than others by 2 nats."""
    return np.append(query[:-1] / np.linalg.norm(query[:-1]), 0.2)


def payload(product_id: str, release: int) -> dict[str, Any]:
    """Return what the store shows of a product."""
    shown = {"title": f"title of {product_id}", "price": 4.5, "brand": "Kelto", "category": ["A", "B"], "in_stock": 0}
    ranked = {"product_release": release, "quality_width": 0.5}
    return {"product_id": product_id, "parent_id": "V-1", **ranked, **shown}


class Impressions:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[Impression] = []

    def send(self, impression: Impression) -> None:
        """Keep an impression."""
        self.sent.append(impression)


class GatedEncoder(TinyEncoder):
    """An encoder that waits until it may go on, and keeps what it was asked."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__(dim)
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.batches: list[list[str]] = []
        self.fails = False

    @override
    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Encode, once allowed."""
        self.batches.append(list(texts))
        self.may_go_on.wait(10)
        if self.fails:
            raise RuntimeError("out of memory")
        return super().encode(texts, batch_size=batch_size)


UNHURRIED_S: Final = 60.0
"""Deadline where none is meant to pass, however slow the machine."""


class Search:
    """A search service over stand-ins; `release` is what is in force, `clock` the seconds that have passed."""

    def __init__(
        self,
        *,
        deadline_s: float = DEADLINE_S,
        explore: str = "none",
        shares: Shares = NO_SHARES,
        boosts: Boosts = NO_BOOSTS,
        hot_for_s: float = 0,
        judges_match: bool = False,
        hides_no_good_match: bool = False,
    ) -> None:
        self.release: ServedRelease | None = served()
        self.store = Store()
        self.impressions = Impressions()
        self.encoder = GatedEncoder()
        self.now_ms = NOW_MS
        self.clock = HandClock()
        queries = QueryEncoder(self.encoder)
        self.good_match = GoodMatch(queries, self.store, monotonic_s=self.clock)
        self.finder = Finder(
            queries,
            self.store,
            good_match={LIVE: self.good_match} if judges_match else {},
            hot_for_s=hot_for_s,
            deadline_s=deadline_s,
            monotonic_s=self.clock,
        )
        self.service = SearchService(
            lambda: self.release,
            self.finder,
            lists=KeptLists(kept_for_s=LISTS_KEPT_S, monotonic_s=self.clock),
            impressions=self.impressions,
            person_key=b"key",
            ranking=Ranking(DEPTH, Policy.named(explore), shares, boosts, hides_no_good_match),
            clocks=Clocks(lambda: self.now_ms, self.clock),
        )

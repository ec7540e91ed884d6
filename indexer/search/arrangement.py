"""How a ranked list is arranged for its page: the shop's boosts, variants together, unlike things, few of one seller.

Each step takes hits and returns hits, best first; a product that the query names stays ahead of all others.

Source: maximal marginal relevance, Carbonell and Goldstein 1998; see docs/papers.md.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from contracts.events import BY_RELEVANCE
from contracts.http import SearchRequest
from indexer.search.retrieval import Hit
from towers.model import NATS_PER_COSINE

DAY_MS: Final = 86_400_000
MOST_DIVERSE: Final = 200
"""Products that diversity may move, for its time grows with their square; shoppers see fewer."""


class Boosts(NamedTuple):
    """What the shop adds to scores; it reorders what was found, and finds nothing.

    Args:
        launch_nats: for a product that is launched today; it fades evenly.
        launch_days: until nothing of it is left.
        priority_nats: for a product of priority 1.
    """

    launch_nats: float = 0.0
    launch_days: float = 14.0
    priority_nats: float = 0.0

    def of(self, payload: Mapping[str, Any], now_ms: int) -> dict[str, float]:
        """What is added to a product's score, in nats, by the name of the term; no term that is not set.

        >>> Boosts(launch_nats=1.0, priority_nats=0.5).of({"launched_at": 7 * DAY_MS, "priority": 0.5}, 14 * DAY_MS)
        {'launch': 0.5, 'priority': 0.25}
        """
        terms = {}
        if self.launch_nats:
            age_days = (now_ms - payload.get("launched_at", 0)) / DAY_MS
            terms["launch"] = self.launch_nats * min(max(1.0 - age_days / self.launch_days, 0.0), 1.0)
        if self.priority_nats:
            terms["priority"] = self.priority_nats * min(max(payload.get("priority", 0.0), 0.0), 1.0)
        return terms

    def ranked(self, hits: Sequence[Hit], now_ms: int) -> list[Hit]:
        """Add to the score of each, and rank them by it."""
        if not self.of({}, now_ms):
            return [*hits]
        boosted = [
            hit._replace(score=hit.score + sum(self.of(hit.payload, now_ms).values()) / NATS_PER_COSINE) for hit in hits
        ]
        return sorted(boosted, key=lambda hit: (-hit.pin, -hit.score))


NO_BOOSTS: Final = Boosts()


def arranged(hits: Sequence[Hit], request: SearchRequest) -> list[list[Hit]]:
    """Arrange a list as a request asks for.

    Args:
        hits: best first.
        request: what was asked.

    Returns:
        Its pages, of `k` products each but the last; one at least if there is anything.
    """
    if request.group_variants:
        hits = grouped(hits)
    if request.diversity and request.sort == BY_RELEVANCE:
        hits = diverse(hits, request.diversity)
    return in_pages(hits, request.k, per_seller=request.per_seller)


def grouped(hits: Sequence[Hit]) -> list[Hit]:
    """Of each variant group only the best, with the ids of the others."""
    groups: dict[tuple[str, str], list[Hit]] = {}
    for hit in hits:
        parent_id = hit.payload.get("parent_id")
        group = ("product", hit.payload["product_id"]) if parent_id is None else ("parent", parent_id)
        groups.setdefault(group, []).append(hit)
    return [
        best._replace(variants=(*best.variants, *(other.payload["product_id"] for other in others)))
        for best, *others in groups.values()
    ]


def diverse(hits: Sequence[Hit], diversity: float) -> list[Hit]:
    """Rank the first `MOST_DIVERSE` by maximal marginal relevance, and leave the others behind them.

    Next is always the largest (1 - diversity) score - diversity closeness.
    Closeness is the largest cosine of its base vector to one that was taken; scores stay what they are. Hits without
    a vector are taken to be unlike all others.
    """
    hits, others = hits[:MOST_DIVERSE], hits[MOST_DIVERSE:]
    rows = _unit_rows(hits)
    scores = np.array([hit.score for hit in hits])
    closeness = np.full(len(hits), -1.0)
    left = np.ones(len(hits), dtype=bool)
    taken: list[Hit] = []
    named = sum(hit.pin > 0 for hit in hits)  # they stand first
    for place in range(len(hits)):
        worth = np.where(left, (1.0 - diversity) * scores - diversity * closeness, -np.inf)
        best = place if place < named else int(worth.argmax())
        left[best] = False
        taken.append(hits[best])
        closeness = np.maximum(closeness, rows @ rows[best])
    return [*taken, *others]


def _unit_rows(hits: Sequence[Hit]) -> np.ndarray:
    """Base vectors of unit length, (N, D); the last number of a vector is the product's quality."""
    width = next((len(hit.vector) - 1 for hit in hits if hit.vector is not None), 0)
    rows = np.zeros((len(hits), width))
    for place, hit in enumerate(hits):
        if hit.vector is not None:
            rows[place] = hit.vector[:-1]
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny))


def in_pages(hits: Sequence[Hit], k: int, *, per_seller: int | None = None) -> list[list[Hit]]:
    """Cut a list into pages of k; a product that is one too many of its seller waits for the next page.

    Where nothing of another seller is left, those that wait fill the page: the cap is for variety, not to hide.
    """
    if per_seller is None:
        return [[*hits[start : start + k]] for start in range(0, len(hits), k)]
    pages = []
    while hits:
        page: list[Hit] = []
        later: list[Hit] = []
        sellers: Counter[str] = Counter()
        for hit in hits:
            seller_id = hit.payload.get("seller_id")
            if len(page) == k or (seller_id and sellers[seller_id] >= per_seller):
                later.append(hit)
            else:
                page.append(hit)
                sellers[seller_id or ""] += 1
        missing = k - len(page)
        pages.append([*page, *later[:missing]])
        hits = later[missing:]
    return pages

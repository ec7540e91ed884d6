"""Pairs that rules of the shop made, of launches and priorities: a term of the loss beside what shoppers chose.

They are kept apart from the evidence, so that whatever judges what is learned asks shoppers alone. All of them together
weigh a share of the clicks at most, however many a shop sends.
"""

import math
from dataclasses import replace
from heapq import heappop, heappush
from typing import Final, NamedTuple

import numpy as np

from trainer.preference.evidence import FORGOTTEN, Cells, each_two

RULE_SHARE: Final = 0.05
"""Of the weight of the clicks, what all such pairs weigh at most."""
MAX_RULE_PAIRS: Final = 20_000

NO_RULES: Final = each_two(np.zeros((0, 5)))


class Said(NamedTuple):
    """What was said of two products of a query; of two such things the greater one stands.

    Args:
        time_ms: when.
        offset: of its record, which tells apart what was said in the same millisecond.
        expires_ms: from when it no longer counts; infinite if it only fades.
        clicks: that it counts as.
    """

    time_ms: float
    offset: float
    expires_ms: float
    clicks: float

    def end_ms(self, half_life_ms: float) -> float:
        """From when it no longer counts: it has expired, or faded below what is forgotten."""
        return min(self.expires_ms, self.time_ms + half_life_ms * math.log2(max(self.clicks / FORGOTTEN, 1.0)))


class RulePairs:
    """The pairs, of each two products what was said last; queries and products are the numbers of the evidence.

    Args:
        rows: as `rows` gives them.
        half_life_ms: after which a pair weighs half as much, as clicks do.
    """

    def __init__(self, rows: np.ndarray | None = None, *, half_life_ms: float) -> None:
        self._half_life_ms = half_life_ms
        self._said: dict[tuple[int, int, int], tuple[Said, int, int]] = {}
        """By query and both products, the lower number first: what was said, the chosen one, the rejected one."""
        self._ends: list[tuple[float, tuple[int, int, int]]] = []
        """A heap of when each of them ends; some entries are of what was said before."""
        self._fill(np.zeros((0, 7)) if rows is None else rows)

    def __len__(self) -> int:
        return len(self._said)

    def put(self, query: int, chosen: int, rejected: int, said: Said) -> bool:
        """Take what is said of two products; return whether there is room. What was said later stands."""
        key = query, min(chosen, rejected), max(chosen, rejected)
        if key not in self._said and len(self._said) >= MAX_RULE_PAIRS:
            self.drop_ended(said.time_ms)
            if len(self._said) >= MAX_RULE_PAIRS:
                return False
        new = said, chosen, rejected
        self._said[key] = max(new, self._said.get(key, new))
        self._note_end(key)
        if len(self._ends) > 2 * MAX_RULE_PAIRS:
            self._fill(self.rows())
        return True

    def drop_ended(self, now_ms: float) -> None:
        """Forget what has expired or faded away."""
        while self._ends and self._ends[0][0] <= now_ms:
            _, key = heappop(self._ends)
            if key in self._said and self._end_ms(key) <= now_ms:
                del self._said[key]

    def cells(self, queries: np.ndarray, products: np.ndarray, *, now_ms: float) -> Cells:
        """The pairs that count, each as a query of its own, in an order that does not depend on their arrival.

        Args:
            queries: whether each query may be used, (all queries,) of bool.
            products: the same of products.
            now_ms: the time of the newest evidence.
        """
        rows = self.rows()
        query, chosen, rejected = rows[:, :3].astype(np.int64).T
        clicks = rows[:, 6] * 2.0 ** (np.minimum(rows[:, 3] - now_ms, 0.0) / self._half_life_ms)
        ends_ms = np.array([Said(*said).end_ms(self._half_life_ms) for said in rows[:, 3:].tolist()])
        kept = (ends_ms > now_ms) & queries[query] & products[chosen] & products[rejected]
        return each_two(np.column_stack([rows[:, :3], clicks, np.zeros(len(rows))])[kept])

    def rows(self) -> np.ndarray:
        """Query, chosen, rejected and what was said of them, by these numbers, (N, 7)."""
        found = sorted((query, *products, *said) for (query, _, _), (said, *products) in self._said.items())
        return np.array(found, dtype=np.float64).reshape(-1, 7)

    def used(self) -> tuple[np.ndarray, np.ndarray]:
        """The queries and the products that pairs name, rising."""
        numbers = self.rows()[:, :3].astype(np.int64)
        return np.unique(numbers[:, 0]), np.unique(numbers[:, 1:])

    def renumber(self, queries: np.ndarray, products: np.ndarray) -> None:
        """Give every query and product another number.

        Args:
            queries: the new number of each query, (all queries,).
            products: the new number of each product, (all products,).
        """
        rows = self.rows()
        rows[:, 0], rows[:, 1:3] = queries[rows[:, 0].astype(np.int64)], products[rows[:, 1:3].astype(np.int64)]
        self._fill(rows)

    def _fill(self, rows: np.ndarray) -> None:
        """Keep these rows and no others."""
        self._said, self._ends = {}, []
        for query, chosen, rejected, *said in rows.tolist():
            key = int(query), int(min(chosen, rejected)), int(max(chosen, rejected))
            self._said[key] = Said(*said), int(chosen), int(rejected)
            self._note_end(key)

    def _end_ms(self, key: tuple[int, int, int]) -> float:
        return self._said[key][0].end_ms(self._half_life_ms)

    def _note_end(self, key: tuple[int, int, int]) -> None:
        heappush(self._ends, (self._end_ms(key), key))


def capped(rules: Cells, clicks: float) -> Cells:
    """Pairs of rules that weigh `RULE_SHARE` of the clicks at most.

    Args:
        rules: as they were sent.
        clicks: the weight of all clicks.
    """
    asked = float(rules.clicks.sum())
    if not asked or not clicks:
        return NO_RULES
    return replace(rules, clicks=rules.clicks * min(1.0, RULE_SHARE * clicks / asked))

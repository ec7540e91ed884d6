"""Pairs that rules of the shop made, of launches and priorities: a term of the loss beside what shoppers chose.

They are kept apart from the evidence, so that whatever judges what is learned asks shoppers alone. All of them together
weigh a share of the clicks at most, however many a shop sends.
"""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from trainer.preference.evidence import FORGOTTEN, Cells, each_two

RULE_SHARE: Final = 0.05
"""Of the weight of the clicks, what all such pairs weigh at most."""
MAX_RULE_PAIRS: Final = 20_000

NO_RULES: Final = each_two(np.zeros((0, 5)))


class Said(NamedTuple):
    """What was said of two products of a query.

    Args:
        time_ms: when.
        expires_ms: from when it no longer counts; infinite if it only fades.
        clicks: that it counts as.
    """

    time_ms: float
    expires_ms: float
    clicks: float


class RulePairs:
    """The pairs, each as it was said last; queries and products are the numbers of the evidence.

    Args:
        rows: as `rows` gives them.
    """

    def __init__(self, rows: np.ndarray | None = None) -> None:
        self._said: dict[tuple[int, int, int], Said] = {}
        for query, chosen, rejected, *said in () if rows is None else rows.tolist():
            self._said[int(query), int(chosen), int(rejected)] = Said(*said)

    def __len__(self) -> int:
        return len(self._said)

    def put(self, query: int, chosen: int, rejected: int, said: Said) -> bool:
        """Take what is said of two products; return whether there is room. What was said later stands."""
        key = query, chosen, rejected
        if key not in self._said and len(self._said) >= MAX_RULE_PAIRS:
            self.drop_expired(said.time_ms)
            if len(self._said) >= MAX_RULE_PAIRS:
                return False
        self._said[key] = max(said, self._said.get(key, said))
        return True

    def drop_expired(self, now_ms: float) -> None:
        """Forget what no longer counts."""
        self._said = {key: said for key, said in self._said.items() if said.expires_ms > now_ms}

    def cells(self, queries: np.ndarray, products: np.ndarray, *, now_ms: float, half_life_ms: float) -> Cells:
        """The pairs that count, each as a query of its own, in an order that does not depend on their arrival.

        Args:
            queries: whether each query may be used, (all queries,) of bool.
            products: the same of products.
            now_ms: the time of the newest evidence.
            half_life_ms: after which a pair weighs half as much, as clicks do.
        """
        rows = self.rows()
        query, chosen, rejected = rows[:, :3].astype(np.int64).T
        clicks = rows[:, 5] * 2.0 ** (np.minimum(rows[:, 3] - now_ms, 0.0) / half_life_ms)
        kept = (rows[:, 4] > now_ms) & (clicks >= FORGOTTEN) & queries[query] & products[chosen] & products[rejected]
        return each_two(np.column_stack([rows[:, :3], clicks, np.zeros(len(rows))])[kept])

    def rows(self) -> np.ndarray:
        """Query, chosen, rejected and what was said of them, by these numbers, (N, 6)."""
        rows = np.array([(*key, *said) for key, said in sorted(self._said.items())], dtype=np.float64)
        return rows.reshape(-1, 6)

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
        self._said = RulePairs(rows)._said


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

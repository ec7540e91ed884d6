"""What clicks say, counted: per query and product the clicks and the examination-weighted showings.

A product shown ten times at the top and clicked twice says the same whatever the order of the lists and whatever else
was shown in between, so two numbers per cell hold all that is ever used of a list. Lists without a click count too:
they say at which rate a query's products are passed over. What is one half-life older weighs half as much.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

FORGOTTEN: Final = 1e-3
"""Showings and clicks below which a cell is dropped."""
MAX_QUERY_CLICKS: Final = 300.0
"""A query's evidence counts at most as much as so many clicks: one head query, or one robot, is not the whole shop."""
MAX_PRODUCT_SHARE: Final = 0.1
"""Share of the clicks that one product may have, once it has more than a query may: no product outshouts the shop."""
MAX_TIMES_MEAN: Final = 3.0
"""In a shop of few products, a product may have so many times the clicks of the average one."""
LOOKS_MISTOLD: Final = 1.5
"""By which factor looks may be told too low until a product that is chosen more often than that is taken for sought."""
CHANCE_NATS: Final = 12.0
"""So far beyond it that chance does it to one product of 160,000, by Chernoff's bound."""
MAX_CELLS: Final = 500_000
UNSEEN: Final = -50.0
"""Logarithm of the showings of what counts nothing."""
CELLS_LEFT: Final = 0.95
"""Share of the cells that stays when there are too many: then many go at once, seldom."""
QUANTUM: Final = 2.0**-20
"""What one list adds is a multiple of it. Sums of such numbers round nothing off, so no order gives another sum."""
FIRST_ROWS: Final = 1024
COLUMNS: Final = 6
TOP_LOOKS: Final = 0.75
"""What is looked at less often stands below the top."""
STEPS: Final = 8
"""Depths of lists while looks halve on the way down, so that the first of a second page is not of the first one's."""
DEPTHS: Final = 10 * STEPS
"""Of 1,000 places in a list the last have about the last one."""


class Shown(NamedTuple):
    """A product of a list.

    Args:
        product: which one.
        showing: the chance that the shopper looked at it, relative to the top of a list.
        click: what the shopper's choice is worth; 0 if it was passed over.
        listed: how often it was in the list, looked at or not.
    """

    product: int
    showing: float
    click: float
    listed: float = 1.0


@dataclass(frozen=True, slots=True)
class Cells:
    """The evidence as arrays, ordered by query, then product; N cells of Q queries.

    Args:
        queries: the queries that have cells, rising, (Q,); behind them one may come again, as a query of its own.
        starts: first cell of each query, (Q,).
        query_of: place of each cell's query in `queries`, (N,).
        products: of each cell, (N,).
        clicks: graded and capped, (N,).
        log_showings: logarithm of the examination-weighted showings, (N,).
        width: products of each query if all have the same ones: the cells are a grid; else 0.
        sought: products of which only the memory of their queries learns (`EvidenceTable.sought`), rising.
    """

    queries: np.ndarray
    starts: np.ndarray
    query_of: np.ndarray
    products: np.ndarray
    clicks: np.ndarray
    log_showings: np.ndarray
    width: int = 0
    sought: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.products)

    @property
    def query_clicks(self) -> np.ndarray:
        """All clicks of each query, (Q,)."""
        return self.sums(self.clicks) if len(self) else np.zeros(0)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of values of the cells, (N,), the sum of each query, (Q,)."""
        return values.reshape(-1, self.width).sum(axis=1) if self.width else np.add.reduceat(values, self.starts)

    def highest(self, values: np.ndarray) -> np.ndarray:
        """Of values of the cells, (N,), the highest of each query, (Q,)."""
        return values.reshape(-1, self.width).max(axis=1) if self.width else np.maximum.reduceat(values, self.starts)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of queries, (Q,), for each of their cells, (N,)."""
        return np.repeat(values, self.width) if self.width else values[self.query_of]

    @property
    def is_sought(self) -> np.ndarray:
        """Of which products only the memory of their queries learns, (N,) of bool."""
        return np.isin(self.products, self.sought)

    def of_all_queries(self) -> "Cells":
        """The cells as far as they say something of other queries: those of products that are sought count nothing."""
        if not len(self.sought):
            return self
        gone = self.is_sought
        clicks, log_showings = np.where(gone, 0.0, self.clicks), np.where(gone, UNSEEN, self.log_showings)
        return replace(self, clicks=clicks, log_showings=log_showings)

    def of_queries(self, chosen: np.ndarray) -> "Cells":
        """The cells of some of the queries, (Q,) of bool."""
        return replace(self.of_cells(self.spread(chosen)), width=self.width)

    def followed_by(self, others: "Cells") -> "Cells":
        """These cells and behind them others, of queries of their own."""
        if not len(others):
            return self
        return Cells(
            np.concatenate([self.queries, others.queries]),
            np.concatenate([self.starts, len(self) + others.starts]),
            np.concatenate([self.query_of, len(self.queries) + others.query_of]),
            np.concatenate([self.products, others.products]),
            np.concatenate([self.clicks, others.clicks]),
            np.concatenate([self.log_showings, others.log_showings]),
        )

    def of_cells(self, kept: np.ndarray) -> "Cells":
        """Some of the cells, (N,) of bool; no grid any more."""
        queries = self.spread(self.queries)[kept]
        found = _cells(queries, self.products[kept], self.clicks[kept], self.log_showings[kept])
        return replace(found, sought=self.sought)


def each_two(rows: np.ndarray) -> Cells:
    """Each two products as a query of their own, in which both were shown alike.

    Args:
        rows: query, its two products, and what the choice of each was worth, (N, 5).
    """
    size = len(rows)
    return Cells(
        queries=rows[:, 0].astype(np.int64),
        starts=2 * np.arange(size),
        query_of=np.repeat(np.arange(size), 2),
        products=rows[:, 1:3].reshape(-1).astype(np.int64),
        clicks=rows[:, 3:].reshape(-1),
        log_showings=np.zeros(2 * size),
    )


def _cells(queries: np.ndarray, products: np.ndarray, clicks: np.ndarray, log_showings: np.ndarray) -> Cells:
    distinct, starts, query_of = np.unique(queries, return_index=True, return_inverse=True)
    return Cells(distinct, starts, query_of.reshape(-1), products, clicks, log_showings)


class EvidenceTable:
    """The table; queries and products are numbers below 2^31 that the caller gives out.

    It is a function of the lists, not of their order: weights are powers of two relative to a reference that moves in
    whole half-lives, and such a move is exact.

    Args:
        half_life_ms: by how much older a list weighs half as much.
        max_cells: cells that are kept; beyond them those that weigh least leave.

    >>> table = EvidenceTable()
    >>> table.add(7, [Shown(1, 1.0, 0.0), Shown(2, 0.5, 1.0)])
    >>> table.add(7, [Shown(2, 1.0, 1.0)])
    >>> cells = table.cells()
    >>> cells.products.tolist(), cells.clicks.tolist(), np.exp(cells.log_showings).round(2).tolist()
    ([1, 2], [0.0, 2.0], [1.0, 1.5])
    """

    def __init__(self, *, half_life_ms: float = math.inf, max_cells: int = MAX_CELLS) -> None:
        self.half_life_ms, self._max_cells = half_life_ms, max_cells
        self._row_of: dict[int, int] = {}
        self._keys = np.zeros(FIRST_ROWS, dtype=np.int64)
        self._counts = np.zeros((FIRST_ROWS, COLUMNS))
        """Of each cell its clicks, its examination-weighted showings, how often it was listed; and of the lists that
        have it below the top how often it was chosen, its showings, and how often it was listed."""
        self._reference = -(2**62)
        """The half-life, counted from 1970, in which what is added weighs between 1 and 2."""
        self._newest_ms = 0
        self.lists = 0
        """Lists counted; they do not fade."""
        self.dropped = 0
        """Cells that left because there were too many."""

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def newest_ms(self) -> int:
        """The time of the newest evidence."""
        return self._newest_ms

    def add(self, query: int, shown: Iterable[Shown], *, time_ms: int = 0, is_list: bool = True) -> None:
        """Count one list, or what else is known of a query's products; it is the caller's to give each once."""
        halves = time_ms / self.half_life_ms
        half = math.floor(halves)
        if half > self._reference:
            self._move_reference(half)
        self._newest_ms = max(self._newest_ms, time_ms)
        weight, shift = 2.0 ** (halves - half) / QUANTUM, half - self._reference
        for product, showing, click, listed in shown:
            row = self._row(query << 32 | product)
            is_below = showing < TOP_LOOKS * listed
            below = (listed if click else 0.0, showing, listed) if is_below else ()
            for column, value in enumerate((click, showing, listed, *below)):
                self._counts[row, column] += math.ldexp(round(value * weight) * QUANTUM, shift)
        self.lists += is_list
        if len(self._row_of) > self._max_cells:
            self._drop_least()

    def cells(
        self, queries: np.ndarray | None = None, products: np.ndarray | None = None, *, debiasing: float = 1.0
    ) -> Cells:
        """Everything that was counted, in an order of its own: the same counts give the same arrays.

        Queries without a click are left out: they say nothing about which product is better.

        Args:
            queries: whether each query may be used, (all queries,) of bool; all if None.
            products: the same of products.
            debiasing: 1 weighs showings by their examination, 0 counts each listed product as looked at, and between
                them lies the geometric mean, so weighed.
        """
        order = np.argsort(self._keys[: len(self)])
        keys, counts = self._keys[order], self._counts[order] * self._fade
        kept = counts[:, :2].max(axis=1, initial=0.0) >= FORGOTTEN
        for usable, numbers in ((queries, keys >> 32), (products, keys & 0xFFFFFFFF)):
            if usable is not None:
                kept &= usable[numbers]
        keys, counts = keys[kept], counts[kept]
        log_showings = np.log(np.maximum(counts[:, 1:3], FORGOTTEN)) @ (debiasing, 1 - debiasing)
        clicks = _capped_by_product(keys & 0xFFFFFFFF, counts[:, 0])
        found = replace(_cells(keys >> 32, keys & 0xFFFFFFFF, clicks, log_showings), sought=self.sought())
        of_all, of_others = (
            np.minimum(1.0, MAX_QUERY_CLICKS / np.maximum(one.query_clicks, FORGOTTEN))
            for one in (found, found.of_all_queries())
        )
        scale = np.where(found.is_sought, found.spread(of_all), found.spread(of_others))
        return replace(found, clicks=clicks * scale).of_queries(found.query_clicks > 0)

    def sought(self) -> np.ndarray:
        """The products that below the top are chosen more often, over all queries, than anybody looks there, rising.

        Only who seeks a product, wherever it stands, does that: shoppers who know it, or a robot, by whichever names it
        goes. It says what they want who typed that, and nothing of what shoppers prefer among products that they look
        at. At the top each choice is a look: what has come there by being sought stays sought. Where looks are told too
        low for a depth of lists, what else stands there is chosen too often, too, beside what stands second: as much
        is allowed for. So this is asked of looks in full, however showings are weighed: else whoever pushes a product
        could, by that, have them weighed less, and would be found no more.
        """
        counts, products = self._counts[: len(self)], self._keys[: len(self)] & 0xFFFFFFFF
        is_below = counts[:, 5] * self._fade >= FORGOTTEN
        counts, products = counts[is_below], products[is_below]
        chosen, looks, listed = counts[:, 3:].T
        depths = STEPS * np.log2(listed / np.maximum(looks, FORGOTTEN * listed))
        depths = np.clip(np.rint(depths), 0, DEPTHS - 1).astype(np.int64)
        places, place_of = np.unique(products * DEPTHS + depths, return_inverse=True)
        own, every = (
            [np.bincount(by, of, size) * self._fade for of in (chosen, looks)]
            for by, size in ((place_of, len(places)), (depths, DEPTHS))
        )
        others = [all_[places % DEPTHS] - ours for all_, ours in zip(every, own, strict=True)]
        near_top = [all_[: STEPS + 1].sum() for all_ in every]
        rates, rate_near_top = (of[0] / np.maximum(of[1], FORGOTTEN) for of in (others, near_top))
        allowed = LOOKS_MISTOLD * own[1] * np.maximum(1.0, rates / max(rate_near_top, FORGOTTEN))
        most, taken = (np.bincount(places // DEPTHS, of) for of in (allowed, own[0]))
        most = np.maximum(most, FORGOTTEN)
        beyond = taken * np.log(np.maximum(taken / most, 1.0)) - taken + most
        return np.flatnonzero((taken > most) & (beyond > CHANCE_NATS))

    def clicked(self) -> np.ndarray:
        """The queries of which something was chosen, rising."""
        return np.unique(self._keys[: len(self)][self._counts[: len(self), 0] > 0] >> 32)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the table knows."""
        size = len(self)
        numbers = np.array([self._reference, self._newest_ms, self.lists, self.dropped], dtype=np.int64)
        return {"keys": self._keys[:size].copy(), "counts": self._counts[:size].copy(), "numbers": numbers}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], *, half_life_ms: float) -> "EvidenceTable":
        """Go on where another table was when it gave its state."""
        table = cls(half_life_ms=half_life_ms)
        table._reference, table._newest_ms, table.lists, table.dropped = state["numbers"].tolist()
        counts = state["counts"]
        if counts.shape[1] == 2:
            # That form did not know how often a product was listed: its cells are weighed alike either way.
            counts = np.hstack([counts, counts[:, 1:]])
        if counts.shape[1] < COLUMNS:
            # Nor did this one know what happened below the top: what it counted is believed.
            counts = np.hstack([counts, np.zeros((len(counts), COLUMNS - counts.shape[1]))])
        table._keep(state["keys"], counts)
        return table

    def renumber(self, queries: np.ndarray, products: np.ndarray) -> None:
        """Give every query and product that has cells another number; cells of what gets none leave.

        Args:
            queries: the new number of each query, -1 for none, (all queries,).
            products: the new number of each product, -1 for none, (all products,).
        """
        keys = self._keys[: len(self)]
        queries, products = queries[keys >> 32], products[keys & 0xFFFFFFFF]
        kept = (queries >= 0) & (products >= 0)
        self._keep(queries[kept] << 32 | products[kept], self._counts[: len(self)][kept])

    def used(self) -> tuple[np.ndarray, np.ndarray]:
        """The queries and the products that have cells, rising."""
        keys = self._keys[: len(self)]
        return np.unique(keys >> 32), np.unique(keys & 0xFFFFFFFF)

    @property
    def _fade(self) -> float:
        """What counts weigh now: the newest evidence weighs 1. Sums of counts are exact, so they fade, not each one."""
        if self.half_life_ms == math.inf or not len(self):
            return 1.0
        return float(2.0 ** (self._reference - self._newest_ms / self.half_life_ms))

    def _row(self, key: int) -> int:
        row = self._row_of.get(key)
        if row is None:
            row = self._row_of[key] = len(self._row_of)
            if row == len(self._keys):
                self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._keys[row], self._counts[row] = key, 0.0
        return row

    def _move_reference(self, half: int) -> None:
        if len(self):
            self._counts = np.ldexp(self._counts, max(self._reference - half, -1000))
            kept = self._counts[: len(self), :2].max(axis=1) >= FORGOTTEN
            self._keep(self._keys[: len(self)][kept], self._counts[: len(self)][kept])
        self._reference = half

    def _drop_least(self) -> None:
        keys, counts = self._keys[: len(self)], self._counts[: len(self)]
        kept = np.lexsort((keys, counts[:, :2].sum(axis=1)))[-round(CELLS_LEFT * self._max_cells) :]
        self.dropped += len(keys) - len(kept)
        kept.sort()
        self._keep(keys[kept], counts[kept])

    def _keep(self, keys: np.ndarray, counts: np.ndarray) -> None:
        rows = max(FIRST_ROWS, len(keys))
        self._keys, self._counts = np.zeros(rows, dtype=np.int64), np.zeros((rows, COLUMNS))
        self._keys[: len(keys)], self._counts[: len(keys)] = keys, counts
        self._row_of = dict(zip(keys.tolist(), range(len(keys)), strict=True))


def _capped_by_product(products: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Clicks of cells, (N,), none of whose products has much more than its share."""
    if not len(products):
        return clicks
    of_product = np.bincount(products, clicks)
    share = max(MAX_PRODUCT_SHARE, MAX_TIMES_MEAN / max(int(np.count_nonzero(of_product)), 1))
    if share >= 1:
        return clicks
    most = np.maximum(MAX_QUERY_CLICKS, share / (1 - share) * (of_product.sum() - of_product))
    return np.asarray(clicks * np.minimum(1.0, most / np.maximum(of_product, FORGOTTEN))[products])

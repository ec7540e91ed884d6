"""What clicks say, counted: per query and product the clicks and the examination-weighted showings.

A product shown ten times at the top and clicked twice says the same whatever the order of the lists and whatever else
was shown in between, so two numbers per cell hold all that is ever used of a list. Lists without a click count too:
they say at which rate a query's products are passed over. Forgetting multiplies both numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

FORGOTTEN: Final = 1e-3
"""Showings and clicks below which a cell is dropped."""
MAX_QUERY_CLICKS: Final = 300.0
"""A query's evidence counts at most as much as so many clicks: one head query, or one robot, is not the whole shop."""


class Shown(NamedTuple):
    """A product of a list.

    Args:
        product: which one.
        showing: the chance that the shopper looked at it, relative to the top of a list.
        click: what the shopper's choice is worth; 0 if it was passed over.
    """

    product: int
    showing: float
    click: float


@dataclass(frozen=True, slots=True)
class Cells:
    """The evidence as arrays, ordered by query, then product; N cells of Q queries.

    Args:
        queries: the queries that have cells, rising, (Q,).
        starts: first cell of each query, (Q,).
        query_of: place of each cell's query in `queries`, (N,).
        products: of each cell, (N,).
        clicks: graded and capped, (N,).
        log_showings: logarithm of the examination-weighted showings, (N,).
        width: products of each query if all have the same ones: the cells are a grid; else 0.
    """

    queries: np.ndarray
    starts: np.ndarray
    query_of: np.ndarray
    products: np.ndarray
    clicks: np.ndarray
    log_showings: np.ndarray
    width: int = 0

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

    def of_queries(self, chosen: np.ndarray) -> "Cells":
        """The cells of some of the queries, (Q,) of bool."""
        kept = self.spread(chosen)
        queries = self.queries[self.query_of[kept]]
        found = _cells(queries, self.products[kept], self.clicks[kept], self.log_showings[kept])
        return replace(found, width=self.width)


def _cells(queries: np.ndarray, products: np.ndarray, clicks: np.ndarray, log_showings: np.ndarray) -> Cells:
    distinct, starts, query_of = np.unique(queries, return_index=True, return_inverse=True)
    return Cells(distinct, starts, query_of.reshape(-1), products, clicks, log_showings)


class EvidenceTable:
    """The table; queries and products are numbers that the caller gives out.

    >>> table = EvidenceTable()
    >>> table.add(7, [Shown(1, 1.0, 0.0), Shown(2, 0.5, 1.0)])
    >>> table.add(7, [Shown(2, 1.0, 1.0)])
    >>> cells = table.cells()
    >>> cells.products.tolist(), cells.clicks.tolist(), np.exp(cells.log_showings).round(2).tolist()
    ([1, 2], [0.0, 2.0], [1.0, 1.5])
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[float]] = {}
        self.lists = 0.0
        """Lists counted, faded like everything else."""

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, query: int, shown: Iterable[Shown]) -> None:
        """Count one list; it is the caller's to give each list once."""
        for product, showing, click in shown:
            cell = self._cells.setdefault((query, product), [0.0, 0.0])
            cell[0] += click
            cell[1] += showing
        self.lists += 1

    def forget(self, factor: float) -> None:
        """Let everything counted so far weigh less; cells that weigh next to nothing are dropped."""
        self.lists *= factor
        for cell in self._cells.values():
            cell[0] *= factor
            cell[1] *= factor
        self._cells = {key: cell for key, cell in self._cells.items() if max(cell) >= FORGOTTEN}

    def cells(self) -> Cells:
        """Everything that was counted, in an order of its own: the same counts give the same arrays.

        Queries without a click are left out: they say nothing about which product is better.
        """
        keys: Sequence[tuple[int, int]] = sorted(self._cells)
        queries = np.array([query for query, _ in keys], dtype=np.int64)
        products = np.array([product for _, product in keys], dtype=np.int64)
        counts = np.array([self._cells[key] for key in keys], dtype=np.float64).reshape(-1, 2)
        all_cells = _cells(queries, products, counts[:, 0], np.log(np.maximum(counts[:, 1], FORGOTTEN)))
        clicks = all_cells.query_clicks
        scale = np.minimum(1.0, MAX_QUERY_CLICKS / np.maximum(clicks, FORGOTTEN))
        capped = replace(all_cells, clicks=all_cells.clicks * all_cells.spread(scale))
        return capped.of_queries(clicks > 0)

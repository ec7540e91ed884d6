"""How far propensities are from the truth on made logs: `python -m tests.support.propensity_errors --seeds 10`.

Beside them: raw click-through, and scikit-learn's Poisson regression, which nobody here wrote.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from sklearn.linear_model import PoissonRegressor

from contracts.structs import JoinedSearch
from streams.propensity.estimate import Estimate, estimate
from streams.propensity.partition_propensity import PartitionPropensity
from tests.support.position_log import PositionShop

LISTS: Final = 40_000
TRUTHS: Final[dict[str, tuple[float, ...]]] = {
    "flat": tuple(k**-0.6 for k in range(1, 11)),
    "prior": tuple(1 / k for k in range(1, 11)),
    "steep": tuple(k**-1.4 for k in range(1, 11)),
    "eye tracking": tuple(look / 0.68 for look in (0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06)),
}
"""Powers of the position, and what eyes were seen to do (as ULTRA has it), which is none."""
EXPLORATION: Final = {
    "swaps .05, anchor .1": (0.05, 0.1),
    "swaps .5, anchor .5": (0.5, 0.5),
    "swaps .05": (0.05, 0.0),
}
"""Shares of lists with neighbours exchanged, and of the jittered anchor: the default, every list, and no anchor."""


class Run(NamedTuple):
    """What came of a log.

    Args:
        truth: the propensities, (K,).
        found: ours.
        raw_thetas: click-through over all lists, relative to the first position, (K,).
        explored: the lists that were explored.
        cpu_s: of counting these and estimating.
    """

    truth: Any
    found: Estimate
    raw_thetas: Any
    explored: list[JoinedSearch]
    cpu_s: float

    @property
    def thetas(self) -> list[float]:
        """Our propensities, (K,)."""
        return [slot.theta for slot in self.found.slots[: len(self.truth)]]

    @property
    def covered(self) -> list[bool]:
        """Whether each position's truth is in its band, from the second on."""
        slots = zip(self.found.slots[1:], self.truth[1:], strict=False)
        return [bool(slot.low <= theta <= slot.high) for slot, theta in slots]

    def error(self, thetas: Any) -> float:
        """Return the mean relative error over all positions."""
        return float(np.mean(np.abs(np.asarray(thetas) / self.truth - 1)))


def run_shop(name: str, seed: int, lists: int = LISTS, swapped: float = 0.05, anchored: float = 0.1) -> Run:
    """Return what exploration tells of a shop with feedback."""
    shop = PositionShop(TRUTHS[name], seed=seed, swapped=swapped, anchored=anchored)
    explored = list(shop.explored(lists))
    began_s = time.process_time()
    rules = PartitionPropensity(0, half_life_lists=20_000)
    for search in explored:
        rules.count(search)
    ((cell, sums),) = rules.cells.items()
    found = estimate(cell, sums)
    cpu_s = time.process_time() - began_s
    return Run(np.asarray(shop.thetas), found, shop.raw_thetas(), explored, cpu_s)


def poisson_thetas(explored: Iterable[JoinedSearch]) -> Any:
    """Return the examinations that a Poisson regression finds, with a factor for each (query, product), (K,)."""
    columns: dict[tuple[str, str], int] = {}
    shown = [
        (columns.setdefault((one.query, slot.product_id), len(columns)), slot) for one in explored for slot in one.slots
    ]
    products = np.array([column for column, _ in shown])
    places = np.array([slot.position - 1 for _, slot in shown])
    size = int(places.max()) + 1
    design = coo_matrix(
        (np.ones(2 * len(shown)), (np.tile(np.arange(len(shown)), 2), np.concatenate([places, size + products]))),
        shape=(len(shown), size + len(columns)),
    ).tocsr()
    clicks = np.array([float(slot.clicked) for _, slot in shown])
    fit = PoissonRegressor(alpha=1e-6, fit_intercept=False, max_iter=1000, tol=1e-6).fit(design, clicks)
    return np.exp(fit.coef_[:size] - fit.coef_[0])


def main(seeds: Sequence[int]) -> None:
    """Print mean errors over seeds, of each truth and each exploration."""
    for way, (swapped, anchored) in EXPLORATION.items():
        for name in TRUTHS:
            rows, covered = [], []
            for seed in seeds:
                one = run_shop(name, seed * 10 + [*TRUTHS].index(name), swapped=swapped, anchored=anchored)
                began_s = time.process_time()
                fitted = poisson_thetas(one.explored)
                peer_s = time.process_time() - began_s
                frozen = [search for search in one.explored if search.ranking.arm == "anchor"]
                frozen_fit = poisson_thetas(frozen) if frozen else np.full(len(one.truth), np.nan)
                errors = [one.error(np.asarray(thetas)) for thetas in (one.thetas, one.raw_thetas, fitted, frozen_fit)]
                rows.append([*errors, one.cpu_s, peer_s])
                covered += one.covered
            ours, raw, peer, frozen_peer, cpu_s, peer_s = np.mean(rows, axis=0)
            worst = max(row[0] for row in rows)
            peers = f"Poisson {peer:.3f}, anchor alone {frozen_peer:.3f}"
            sys.stdout.write(
                f"{way:20} {name:12} ours {ours:.3f} (worst {worst:.3f})  raw {raw:.3f}  {peers}  "
                f"in band {np.mean(covered):.2f}  CPU {cpu_s:.2f} s, Poisson {peer_s:.2f} s\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    main(range(1, parser.parse_args().seeds + 1))

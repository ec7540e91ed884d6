"""What held-out lists decide of releases that the learner made: `python -m tests.support.held_out_loop WORLD [SEED]`.

The closed loop of `millrace simulate` gives the releases; then lists are shown that nobody learns from, half of queries
that were learned, as if their shoppers were held out, and half of queries that never were. What the looks and the gate
decide is taken as it is.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from typing_extensions import override

from service.settings import load_settings
from simulator.shop.builtin import world_of
from simulator.shop.world import World
from simulator.shown_lists import Ranking, SimulateOptions
from simulator.simulate import Simulation
from tests.support.held_out_decisions import SHOPPERS, SLOTS, Scores, first_move, print_moves, shown_to
from towers.encoder import load_encoder
from trainer.preference.model import Weights

LISTS: Final = 4_000
REDEPLOY: Final = 500
BATCH: Final = 20
"""Lists of a micro-batch, after which the last release follows the one before it."""
LISTS_SHOWN: Final = 6_400
STREAMS: Final = 20
HARMS: Final = (-0.03, -0.1)
"""What errors take from a release, as shares of the clicks."""


class Loop(Simulation):
    """A simulation that keeps what it puts in force: the untrained weights, and those of each solve."""

    def releases(self, seed: int) -> list[Weights]:
        """Run the loop once."""
        self._in_force: list[Weights] = []
        self.run(SimulateOptions(lists=LISTS + BATCH, redeploy=REDEPLOY, seed=seed))
        return self._in_force

    @override
    def _ranking(self, weights: Weights) -> Ranking:
        self._in_force.append(weights)
        return super()._ranking(weights)

    def scores(self, weights: Weights) -> np.ndarray:
        """What a release says of each product of each query, (Q, P)."""
        return np.array([*self.nats(weights)], dtype=np.float32)


class Shop(NamedTuple):
    """What shoppers like; Q queries, P products.

    Args:
        appeal: chance of a click by who looks, (Q, P).
        asked_by: chance of each query, (Q,); half of it on those that were never learned.
    """

    appeal: np.ndarray
    asked_by: np.ndarray

    @classmethod
    def of(cls, world: World) -> "Shop":
        """The shop of a world."""
        row_of = {str(product["product_id"]): row for row, product in enumerate(world.products)}
        appeal = np.zeros((len(world.queries), len(row_of)), np.float32)
        for number, query in enumerate(world.queries):
            for product_id, judgment in world.judgments.get(query.query_id, {}).items():
                appeal[number, row_of[product_id]] = judgment.click_probability()
        asked_by = np.array([query.popularity for query in world.queries])
        is_learned = np.array([query.split == "train" for query in world.queries])
        for split in (is_learned, ~is_learned):
            asked_by[split] *= 0.5 / asked_by[split].sum()
        return cls(appeal, asked_by / asked_by.sum())

    def clicks(self, scores: np.ndarray) -> float:
        """Expected clicks of a list in the order of scores, (Q, P), by who looks by 1/position."""
        return float(self.asked_by @ (np.take_along_axis(self.appeal, _top(scores), 1) @ (1 / np.arange(1, SLOTS + 1))))

    def harmed(self, rng: np.random.Generator, scores: np.ndarray, *, clicks: float) -> np.ndarray:
        """Scores with errors of the products' qualities, so large that just so many clicks are left."""
        errors = rng.standard_normal(scores.shape[1], dtype=np.float32)
        low, high = 0.0, 16.0
        for _ in range(10):
            size = (low + high) / 2
            low, high = (size, high) if self.clicks(scores + size * errors) > clicks else (low, size)
        return np.asarray(scores + high * errors)

    def found_by(self, scores: Scores) -> tuple[np.ndarray, Scores]:
        """The appeal, and what releases say, of the products that one of them ranks first, (Q, 3 * SLOTS) each."""
        found = np.sort(np.hstack([_top(one) for one in scores]), axis=1)
        again = np.zeros(found.shape, dtype=bool)
        again[:, 1:] = found[:, 1:] == found[:, :-1]
        told = (np.where(again, -np.inf, np.take_along_axis(one, found, 1)) for one in scores)
        return np.take_along_axis(self.appeal, found, 1), Scores(*told)


def _top(scores: np.ndarray) -> np.ndarray:
    """The products that rank first, best first, (Q, SLOTS)."""
    found = np.sort(np.argpartition(-scores, SLOTS, axis=1)[:, :SLOTS], axis=1)
    return np.take_along_axis(found, np.argsort(-np.take_along_axis(scores, found, 1), axis=1, kind="stable"), 1)


Make = Callable[[], Scores]


def cases(rng: np.random.Generator, shop: Shop, releases: Sequence[np.ndarray]) -> Iterator[tuple[str, int, Make]]:
    """What is compared: its name, the release that it is beside, 0 if that is the untrained one, and what they say.

    Args:
        rng: draws errors, anew for each stream.
        shop: what shoppers like.
        releases: scores of the untrained release and of those that followed, (Q, P) each.
    """
    untrained, early, *_, before, last, next_one = releases

    def wrong(one: np.ndarray, beside: np.ndarray, by: float) -> Make:
        level = (1 + by) * shop.clicks(beside)
        return lambda: Scores(untrained, beside, shop.harmed(rng, one, clicks=level))

    def known(beside: np.ndarray, judged: np.ndarray) -> Make:
        return lambda: Scores(untrained, beside, judged)

    yield "a micro-batch later", 1, known(last, next_one)
    yield f"{REDEPLOY} lists later", 1, known(before, last)
    yield "late", 1, known(early, last)
    yield "early", 1, known(last, early)
    for by in HARMS:
        yield "late, with errors", 1, wrong(last, last, by)
    yield "early", 0, known(untrained, early)
    yield "late", 0, known(untrained, last)
    for by in HARMS:
        yield "untrained, with errors", 0, wrong(untrained, untrained, by)
    for by in (0.0, *HARMS):
        yield "late, with errors", 0, wrong(last, untrained, by)


def main(name: str, seed: int) -> None:
    """Print a table."""
    folder = Path(name)
    with threadpool_limits(1):
        loop = Loop(world_of(folder, seed), load_encoder(load_settings().base_model), cache=folder, tell=_silent)
        releases = [loop.scores(weights) for weights in loop.releases(seed)]
        shop, rng = Shop.of(loop.world), np.random.default_rng(seed)
        for case, against, make in cases(rng, shop, releases):
            moves: dict[str, list[tuple[str, int]]] = {kind: [] for kind in SHOPPERS}
            truths: dict[str, list[float]] = {kind: [] for kind in SHOPPERS}
            for _ in range(STREAMS):
                appeal, scores = shop.found_by(make())
                for kind, shoppers in SHOPPERS.items():
                    lists = LISTS_SHOWN // (2 if against else 1)
                    shown = shown_to(
                        rng, appeal, shop.asked_by, scores, shoppers=shoppers, against=against, lists=lists
                    )
                    moves[kind].append(first_move(shown, against=against))
                    truths[kind].append(shown.truth)
            beside = "a promoted one" if against else "the untrained"
            for kind, found in moves.items():
                truth = float(np.mean(truths[kind]))
                print_moves(f"| {folder.name}, {seed} | {case} | {beside} | {kind} | {truth:+.1%}", found)


def _silent(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)

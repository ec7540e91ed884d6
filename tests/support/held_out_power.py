"""How many lists it takes to tell a better release: `python -m tests.support.held_out_power [SEED]`.

Held-out lists show the products that release B ranked first, and A is estimated on them; for arms, other shoppers are
shown A's order of the same products. Shoppers look by a power of 1/position, and click by a product's appeal.
"""

import sys
from typing import Final, NamedTuple

import numpy as np

from contracts.comparison import GROUPS, GroupSums, difference
from trainer.release.held_out import HeldOutLists, evaluate

SLOTS: Final = 20
PRODUCTS: Final = 40
QUERIES: Final = 300
"""Asked by 1/rank: half of the lists are of 5 % of the queries, and 24 equally frequent ones would spread as widely."""
ANCHOR_SHARE: Final = 0.1
STREAMS: Final = 40
SIZES: Final = tuple(100 * 2**power for power in range(6))
ARMS: Final = tuple(1_000 * 2**power for power in range(9))
BANDS: Final = {"known": 0.0, "band of 10 %": 0.1, "band of 30 %": 0.3, "prior": 0.784}
"""What is known of the power of the position: it is 1, and lies so near to it."""
CASES: Final = {"much better": 0.5, "better": 0.15, "little better": 0.05, "harmed": -0.3}
"""By how much more A knows of what shoppers like."""


class Logged(NamedTuple):
    """Lists of a simulated shop: what is known of them, scores of two releases, and what shoppers would have done."""

    lists: HeldOutLists
    ours: np.ndarray
    theirs: np.ndarray
    truth: float
    """Difference in expected clicks a list, of these queries."""
    chances: np.ndarray
    """That anything is clicked in the order of A, and of B, (2, lists)."""


def logged(
    rng: np.random.Generator,
    count: int,
    *,
    knows: float = 0.5,
    power: float = 1.0,
    band: float = 0.0,
    queries: int = QUERIES,
) -> Logged:
    """Show lists by their release B; shoppers look by a power of 1/position and click by a product's appeal.

    Args:
        rng: draws them.
        count: of lists.
        knows: how much more A knows of what shoppers like than B; less if negative.
        power: of 1/position, by which looks fall.
        band: by how much that power is less, and more, at the ends of its band, as a share of it.
        queries: that are asked, by 1/rank.
    """
    liked = rng.normal(-1.0, 1.2, (queries, PRODUCTS))
    before = 0.5 * liked + rng.normal(0, 1, liked.shape)
    after = before + knows * liked + rng.normal(0, 0.6 * abs(knows), liked.shape)
    return _shown(rng, asked_by_rank(rng, queries, count), liked, before, after, power=power, band=band)


def blind(rng: np.random.Generator, asked: np.ndarray) -> Logged:
    """Show lists in an order that knows nothing of what shoppers like, and compare it with another such order.

    Args:
        rng: draws them.
        asked: query of each list, (lists,).
    """
    liked, before, after = rng.normal([[[-1.0]], [[0.0]], [[0.0]]], 1.2, (3, int(asked.max()) + 1, PRODUCTS))
    return _shown(rng, asked, liked, before, after, power=1.0, band=0.0)


def asked_by_rank(rng: np.random.Generator, queries: int, count: int) -> np.ndarray:
    """Return the query of each of so many lists, (count,); the query of rank k is asked in proportion to 1/k."""
    chances = 1 / np.arange(1, queries + 1)
    return rng.choice(queries, size=count, p=chances / chances.sum())


def _shown(
    rng: np.random.Generator,
    queries: np.ndarray,
    liked: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    *,
    power: float,
    band: float,
) -> Logged:
    """Show the lists and let shoppers click."""
    count, looks = len(queries), np.arange(1, SLOTS + 1) ** -power
    persons = rng.integers(max(2, count // 3), size=count)
    shown = np.argsort(-before[queries], axis=1)[:, :SLOTS]
    appeal, ours, theirs = (
        np.take_along_axis(one[queries], shown, axis=1) for one in (1 / (1 + np.exp(-liked)), after, before)
    )
    clicked = (rng.random(shown.shape) < looks * appeal).astype(float)
    theta = np.array([np.tile(looks**by, count) for by in (1 + band, 1.0, 1 - band)])
    lists = HeldOutLists(persons, queries, np.repeat(np.arange(count), SLOTS), theta, clicked.ravel(), {})
    looks_after, looks_before = (looks[np.argsort(np.argsort(-one, axis=1), axis=1)] for one in (ours, theirs))
    truth = float(((looks_after - looks_before) * appeal).sum(axis=1).mean())
    chances = 1 - np.prod(1 - np.array([looks_after, looks_before]) * appeal, axis=2)
    return Logged(lists, ours.ravel(), theirs.ravel(), truth, chances)


def decided_by_arms(shop: Logged, rng: np.random.Generator) -> int | None:
    """Return how many lists of both arms it takes until the comparison of arms is decided; None if too many."""
    sums = np.zeros((2, GROUPS, 2))
    counted = 0
    for lists in ARMS:
        chosen = rng.integers(len(shop.chances[0]), size=lists - counted)
        counted = lists
        anchored = (rng.random(len(chosen)) < ANCHOR_SHARE).astype(int)
        clicked = rng.random(len(chosen)) < shop.chances[anchored, chosen]
        np.add.at(
            sums, (anchored, rng.integers(GROUPS, size=len(chosen))), np.column_stack([np.ones(len(chosen)), clicked])
        )
        found = difference(*([GroupSums(*group) for group in arm.tolist()] for arm in sums))
        if found is not None and found.verdict != "undecided":
            return int(lists)
    return None


def main() -> None:
    """Print for each case what is told after how many lists."""
    rng = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for case, knows in CASES.items():
        for name, band in BANDS.items():
            for size in SIZES:
                found = [
                    evaluate(shop.lists, shop.ours, shop.theirs).difference.verdict
                    for shop in (logged(rng, size, knows=knows, band=band) for _ in range(STREAMS))
                ]
                told = ", ".join(f"{verdict} {found.count(verdict)}" for verdict in dict.fromkeys(sorted(found)))
                sys.stdout.write(f"{case}, {name}, {size} lists: {told}\n")
        shops = [logged(rng, 2_000, knows=knows) for _ in range(STREAMS)]
        lists = sorted(decided_by_arms(shop, rng) or 2 * ARMS[-1] for shop in shops)
        truth, share = (float(np.mean(values)) for values in ([shop.truth for shop in shops], [
            shop.truth / shop.lists.clicked.sum() * 2_000 for shop in shops
        ]))  # fmt: skip
        sys.stdout.write(
            f"{case}: {truth:+.3f} clicks a list ({share:+.1%}); arms, quartiles of lists: {lists[9::10]}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""How many lists it takes to tell a better ranking: `python -m tests.support.interleaving_power [SEED]`.

Two rankings of the built-in world, each by the true grade and noise, one of them less noisy. Shoppers click a product
with its attraction over its position. Arms are compared by the share of clicked lists, interleaved lists by who won.
"""

import sys
from typing import Final, NamedTuple

import numpy as np

from contracts.arms import LIVE
from contracts.comparison import GROUPS, GroupSums, difference, wins
from indexer.search.arms import team_draft
from indexer.search.retrieval import Hit
from simulator.evaluation import ndcg
from simulator.shop.builtin import builtin_world
from simulator.shop.world import World

SHOWN: Final = 10
SEEDS: Final = 8
"""Drafts that are made of each query's two lists."""
STREAMS: Final = 40
MOST_LISTS: Final = 200_000
LOOKS: Final = 200
NOISE_NATS: Final = ((1.0, 1.5), (1.25, 1.5), (1.4, 1.5))
"""Of the better ranking, and of the other."""


class Shown(NamedTuple):
    """Lists that may be shown, by query: the chance of a click at each slot, (Q, SHOWN), and whose slot it is."""

    live: np.ndarray
    anchor: np.ndarray
    drafts: np.ndarray
    """(Q, SEEDS, SHOWN)."""
    is_live: np.ndarray
    """Of the drafts, (Q, SEEDS, SHOWN)."""
    ndcg: tuple[float, float]


def lists_of(world: World, noise_nats: tuple[float, float], seed: int) -> Shown:
    """Rank the world's products for each query that has a right answer, both ways, and interleave."""
    random, ids = np.random.default_rng(seed), [product["product_id"] for product in world.products]
    rows: list[tuple[list[float], list[float], list[list[float]], list[list[bool]]]] = []
    worth: list[list[float]] = []
    for query in world.queries:
        grades = world.grades(query.query_id)
        if not any(grades.values()):
            continue

        def chances(hits: list[Hit], query_id: str = query.query_id) -> list[float]:
            judged = (world.judgment(query_id, hit.payload["product_id"]) for hit in hits[:SHOWN])
            return [one.click_probability() / place for place, one in enumerate(judged, start=1)]

        truth = np.array([grades.get(one, 0) for one in ids], dtype=float)
        ranked = []
        for nats in noise_nats:
            scores = truth + nats * random.standard_normal(len(truth))
            ranked.append([Hit(scores[at], {"product_id": ids[at]}) for at in np.argsort(-scores)[: 2 * SHOWN]])
        drafts = [team_draft(ranked[0], ranked[1], number) for number in random.integers(2**32, size=SEEDS).tolist()]
        teams = [[hit.team == LIVE for hit in draft[:SHOWN]] for draft in drafts]
        rows.append((chances(ranked[0]), chances(ranked[1]), [*map(chances, drafts)], teams))
        worth.append([ndcg([hit.payload["product_id"] for hit in one], grades, k=SHOWN) or 0.0 for one in ranked])
    live, anchor, chosen, teams_of = (np.array(column) for column in zip(*rows, strict=True))
    better, worse = np.mean(worth, axis=0)
    return Shown(live, anchor, chosen, teams_of, (float(better), float(worse)))


def arms_need(shown: Shown, share: float, random: np.random.Generator) -> float:
    """Lists of both arms until their clicks are told apart; infinite if they are not."""
    queries, in_anchor = random.integers(len(shown.live), size=MOST_LISTS), random.random(MOST_LISTS) < share
    none = np.where(in_anchor, np.prod(1 - shown.anchor, axis=1)[queries], np.prod(1 - shown.live, axis=1)[queries])
    clicked, groups = random.random(MOST_LISTS) > none, random.integers(GROUPS, size=MOST_LISTS)
    sums = np.zeros((2, LOOKS, 2, GROUPS))
    for counted, weight in zip(sums, (1, clicked), strict=True):
        np.add.at(counted, (np.arange(MOST_LISTS) * LOOKS // MOST_LISTS, in_anchor.astype(int), groups), weight)
    lists, totals = sums.cumsum(axis=1)
    for look in range(LOOKS):
        sides = [[*map(GroupSums, lists[look, arm], totals[look, arm])] for arm in (0, 1)]
        found = difference(*sides)
        if found is not None and found.verdict != "undecided":
            return (look + 1) * MOST_LISTS / LOOKS
    return float("inf")


def interleaving_needs(shown: Shown, random: np.random.Generator) -> float:
    """Interleaved lists until their wins are told from a fair coin; infinite if they are not."""
    queries, drafts = random.integers(len(shown.live), size=MOST_LISTS), random.integers(SEEDS, size=MOST_LISTS)
    clicked = random.random((MOST_LISTS, SHOWN)) < shown.drafts[queries, drafts]
    lead = (clicked * np.where(shown.is_live[queries, drafts], 1, -1)).sum(axis=1)
    won, lost = (lead > 0).cumsum(), (lead < 0).cumsum()
    for at in range(99, MOST_LISTS, 100):
        found = wins(int(won[at]), int(lost[at]))
        if found is not None and found.p <= 0.05:
            return float(at + 1)
    return float("inf")


def main() -> None:
    """Print the medians of one world."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    world, random = builtin_world(seed), np.random.default_rng(seed)
    for noise_nats in NOISE_NATS:
        shown = lists_of(world, noise_nats, seed)
        even, tenth = (np.median([arms_need(shown, share, random) for _ in range(STREAMS)]) for share in (0.5, 0.1))
        drafted = np.median([interleaving_needs(shown, random) for _ in range(STREAMS)])
        better, worse = shown.ndcg
        sys.stdout.write(
            f"nDCG@10 {better:.3f} against {worse:.3f}: interleaving {drafted:,.0f} lists, "
            f"arms of half {even:,.0f}, an anchor of a tenth {tenth:,.0f}\n"
        )


if __name__ == "__main__":
    main()

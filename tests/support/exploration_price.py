"""What exploration costs in nDCG@10 of the lists it moves: `python -m tests.support.exploration_price [SEED]`.

Lists of the built-in world, ranked by the true grade and noise: no encoder, no index. Prices depend on how good the
ranking is that is perturbed, so several are told.
"""

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from indexer.search.exploration import JITTER, MOST_EXPLORED, Policy, swapped
from indexer.search.retrieval import Hit
from simulator.evaluation import ndcg
from simulator.shop.builtin import builtin_world
from simulator.shop.world import World

SHOWN: Final = 10
NOISE_NATS: Final = (0.5, 1.5, 3.0)
"""Standard deviation of what a ranking adds to the grades: a good one, one of middle quality, and a bad one."""


class Price(NamedTuple):
    """Mean nDCG@10 of lists as they are ranked, and what a list loses that a policy perturbs, as shares of it."""

    ndcg: float
    lost: dict[str, float]


def price(world: World, noise_nats: float, *, policies: Sequence[Policy] = (), lists: int = 20, seed: int = 1) -> Price:
    """Perturb each query's list so many times by exchanges, jitter and the policies given."""
    random, ids = np.random.default_rng(seed), [product["product_id"] for product in world.products]
    ranked: list[float] = []
    moved: dict[str, list[float]] = {name: [] for name in ("swap", *(one.name for one in (JITTER, *policies)))}
    for query in world.queries:
        grades = world.grades(query.query_id)
        if not any(grades.values()):
            continue
        truth = np.array([grades.get(one, 0) for one in ids], dtype=float)
        scores = truth + noise_nats * random.standard_normal(len(truth))
        best = np.argsort(-scores)[:MOST_EXPLORED]
        hits = [Hit(scores[place] / 10, {"product_id": ids[place]}) for place in best]

        def worth(shown: Sequence[Hit], grades: dict[str, int] = grades) -> float:
            return ndcg([hit.payload["product_id"] for hit in shown], grades, k=SHOWN) or 0.0

        ranked.append(worth(hits))
        for number in random.integers(2**32, size=lists).tolist():
            moved["swap"].append(worth(swapped([hits[:SHOWN]], number)[0]))
            for policy in (JITTER, *policies):
                moved[policy.name].append(worth(policy.ranked(hits, seed=number)))
    mean = float(np.mean(ranked))
    return Price(mean, {name: 1 - float(np.mean(values)) / mean for name, values in moved.items()})


def main() -> None:
    """Print the prices of one world."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    world = builtin_world(seed)
    for noise_nats in NOISE_NATS:
        found = price(world, noise_nats, policies=[Policy.named("noise:0.3")], seed=seed)
        lost = ", ".join(f"{name} {100 * share:.2f} %" for name, share in found.lost.items())
        sys.stdout.write(f"ranking of nDCG@10 {found.ndcg:.3f}: a perturbed list loses {lost}\n")


if __name__ == "__main__":
    main()

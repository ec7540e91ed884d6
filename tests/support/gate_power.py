"""How often equal arms are decided, how soon a worse release is undone: `python -m tests.support.gate_power [SEED]`.

Persons click with a chance that differs between them; a tenth of those who click put the product into the cart. A
tenth of the lists is the anchor's. What the gate decides is taken as it is, look by look.
"""

import sys
from typing import Final

import numpy as np

from contracts.arms import ANCHOR, LIVE, PersonGroup
from contracts.comparison import GROUPS
from contracts.releases import ReleaseManifest, Serving
from trainer.release.gate import HOUR_MS, Counted, Facts, decide

T0: Final = 1_790_000_000_000
ANCHOR_SHARE: Final = 0.1
STREAMS: Final = 200
LOOKS: Final = 100
CASES: Final = ((1.0, 200_000), (1.0, 2_000_000), (0.97, 500_000), (0.97, 2_000_000), (0.9, 200_000), (1.05, 500_000))
"""Clicks of live over those of the anchor, and lists."""
RATES: Final = (0.25, 0.6)
"""Share of the anchor's lists that are clicked."""
MANIFEST: Final = ReleaseManifest(
    kind="query", release=1, product_release=0, query_release=1, base_version="base", dim=2, created_at=T0,
    pairs_trained=0, lists_trained=0, offsets={}, weights_sha256="",
)  # fmt: skip
SERVING: Final = Serving(query_release=1, product_release=0, collection="products", published_at=T0)


def stream(rng: np.random.Generator, *, live: float, anchor: float, looks: int, lists: int) -> list[Counted]:
    """What is counted at each look.

    Args:
        rng: draws it.
        live: chance that a list of the live arm is clicked, on average over persons.
        anchor: likewise.
        looks: how often it is looked.
        lists: between two looks, of both arms.
    """
    counted: list[Counted] = []
    sums = {arm: np.zeros((GROUPS, 3)) for arm in (LIVE, ANCHOR)}
    persons = {arm: 1 + rng.normal(0, 0.02, size=GROUPS) for arm in sums}  # a group is the mean of many
    for _ in range(looks):
        for arm, chance, share in ((LIVE, live, 1 - ANCHOR_SHARE), (ANCHOR, anchor, ANCHOR_SHARE)):
            searches = rng.poisson(lists * share / GROUPS, size=GROUPS)
            clicked = rng.binomial(searches, np.clip(chance * persons[arm], 0, 1))
            sums[arm] += np.column_stack([searches, clicked, clicked + 3.0 * rng.binomial(clicked, 0.1)])
        counted.append(
            {
                arm: [PersonGroup(searches=int(n), clicked=int(c), value=float(v)) for n, c, v in one]
                for arm, one in sums.items()
            }
        )
    return counted


def first_move(counted: list[Counted]) -> tuple[str, int]:
    """The first verdict that moves something, and at which look; `nothing` if there is none."""
    found = None
    for look, one in enumerate(counted, start=1):
        found = decide(found, Facts(one, SERVING, [MANIFEST]), now_ms=T0 + look * HOUR_MS)
        if found.decided:
            return found.decided[0].verdict, look
    return "nothing", len(counted)


def main(seed: int) -> None:
    """Print a table."""
    rng = np.random.default_rng(seed)
    print("| clicked | live / anchor | lists | promoted | stepped back | lists until then, median |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    for rate in RATES:
        for ratio, lists in CASES:
            each = lists // LOOKS
            moves = [
                first_move(stream(rng, live=rate * ratio, anchor=rate, looks=LOOKS, lists=each)) for _ in range(STREAMS)
            ]
            of = {verdict: sum(move == verdict for move, _ in moves) for verdict in ("promoted", "stepped_back")}
            when = [look * each for move, look in moves if move != "nothing"]
            median = f"{np.median(when):,.0f}" if when else "-"
            print(  # noqa: T201
                f"| {rate:.2f} | {ratio:.2f} | {lists:,} | {of['promoted']} of {STREAMS} "
                f"| {of['stepped_back']} of {STREAMS} | {median} |",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)

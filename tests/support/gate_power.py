"""How often equal arms are decided, how soon a worse release is undone: `python -m tests.support.gate_power [SEED]`.

Persons click with a chance that differs between them; a tenth of those who click put the product into the cart. A
tenth of the lists is the anchor's. What the gate decides is taken as it is, look by look.
"""

import sys
from typing import Final

import numpy as np

from contracts.arms import ANCHOR, LIVE, PersonGroup
from contracts.comparison import GROUPS
from contracts.decisions import Decisions
from contracts.releases import ReleaseManifest, Serving
from trainer.release.gate import HOUR_MS, Counted, Facts, decide

T0: Final = 1_790_000_000_000
ANCHOR_SHARE: Final = 0.1
CARTS: Final = 0.1
"""Share of clicks that become carts."""
STREAMS: Final = 200
LOOKS: Final = 100
CASES: Final = (
    (1.0, CARTS, 200_000), (1.0, CARTS, 2_000_000), (0.97, CARTS, 500_000), (0.97, CARTS, 2_000_000),
    (0.9, CARTS, 200_000), (1.05, CARTS, 500_000), (1.2, 0.0, 500_000),
)  # fmt: skip
"""Clicks of live over those of the anchor, share of live clicks that become carts, and lists."""
RATES: Final = (0.25, 0.6)
"""Share of the anchor's lists that are clicked."""
MANIFEST: Final = ReleaseManifest(
    kind="query", release=1, product_release=0, query_release=1, base_version="base", dim=2, created_at=T0,
    pairs_trained=0, lists_trained=0, offsets={}, weights_sha256="",
)  # fmt: skip
SERVING: Final = Serving(query_release=1, product_release=0, collection="products", published_at=T0)


def stream(
    rng: np.random.Generator, *, live: float, anchor: float, looks: int, lists: int, carts: float = CARTS
) -> list[Counted]:
    """What is counted at each look.

    Args:
        rng: draws it.
        live: chance that a list of the live arm is clicked, on average over persons.
        anchor: likewise.
        looks: how often it is looked.
        lists: between two looks, of both arms.
        carts: share of the live arm's clicks that become carts; of the anchor's it is `CARTS`.
    """
    counted: list[Counted] = []
    sums = {arm: np.zeros((GROUPS, 3)) for arm in (LIVE, ANCHOR)}
    persons = {arm: 1 + rng.normal(0, 0.02, size=GROUPS) for arm in sums}  # a group is the mean of many
    for _ in range(looks):
        for arm, chance, share, bought in (
            (LIVE, live, 1 - ANCHOR_SHARE, carts), (ANCHOR, anchor, ANCHOR_SHARE, CARTS)
        ):  # fmt: skip
            searches = rng.poisson(lists * share / GROUPS, size=GROUPS)
            clicked = rng.binomial(searches, np.clip(chance * persons[arm], 0, 1))
            sums[arm] += np.column_stack([searches, clicked, clicked + 3.0 * rng.binomial(clicked, bought)])
        counted.append(
            {
                arm: [PersonGroup(searches=int(n), clicked=int(c), value=float(v)) for n, c, v in one]
                for arm, one in sums.items()
            }
        )
    return counted


def first_move(counted: list[Counted]) -> tuple[str, int]:
    """The first verdict that moves something, and at which look; `nothing` if there is none."""
    found = Decisions(began_at=T0, since={}, collection=SERVING.collection)
    for look, one in enumerate(counted, start=1):
        found = decide(found, Facts(one, SERVING, [MANIFEST], counted_to_ms=T0), now_ms=T0 + look * HOUR_MS)
        if found.decided:
            return found.decided[0].verdict, look
    return "nothing", len(counted)


def main(seed: int) -> None:
    """Print a table."""
    rng = np.random.default_rng(seed)
    print("| clicked | live / anchor | carts | lists | promoted | stepped back | lists until then, median |")  # noqa: T201
    print("|---|---|---|---|---|---|---|")  # noqa: T201
    for rate in RATES:
        for ratio, carts, lists in CASES:
            each, chances = lists // LOOKS, {"live": rate * ratio, "anchor": rate}
            moves = [first_move(stream(rng, **chances, looks=LOOKS, lists=each, carts=carts)) for _ in range(STREAMS)]
            of = {verdict: sum(move == verdict for move, _ in moves) for verdict in ("promoted", "stepped_back")}
            when = [look * each for move, look in moves if move != "nothing"]
            median = f"{np.median(when):,.0f}" if when else "-"
            print(  # noqa: T201
                f"| {rate:.2f} | {ratio:.2f} | {carts:.2f} | {lists:,} | {of['promoted']} of {STREAMS} "
                f"| {of['stepped_back']} of {STREAMS} | {median} |",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)

"""How often held-out lists decide wrongly, and how soon rightly: `python -m tests.support.held_out_decisions [SEED]`.

A tenth of the lists is ranked by the untrained release, the others by the one that is judged: what is shown is what the
ranker took for the best of many products, and not a random choice. What the gate decides is taken as it is.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from contracts.arms import ANCHOR, LIVE
from contracts.decisions import Decisions
from contracts.releases import ReleaseManifest
from tests.support.gate_power import MANIFEST, SERVING, T0
from trainer.release.gate import Counted, Facts, decide, question_of
from trainer.release.held_out import HeldOutLists, evaluate
from trainer.release.looks import NORMAL, Scored, look_at

SLOTS: Final = 10
PRODUCTS: Final = 60
QUERIES: Final = 1_500
ANCHOR_SHARE: Final = 0.1
STREAMS: Final = 60
LISTS: Final = 6_400
PROMOTED: Final = 1
JUDGED: Final = 9
NOBODY: Final[Counted] = {LIVE: [], ANCHOR: []}
"""What arms counted: nothing, so that held-out lists decide alone."""
CARTS: Final = 0.1
"""Share of clicks that become carts, which are worth four."""


class Scores(NamedTuple):
    """What three releases say of every product of every query, (queries, products) each."""

    untrained: np.ndarray
    promoted: np.ndarray
    judged: np.ndarray


Make = Callable[[np.random.Generator, np.ndarray], Scores]


def _noise(rng: np.random.Generator, like: np.ndarray, size: float = 1.0) -> np.ndarray:
    """Give errors of the shape of what they are errors of."""
    return rng.normal(0, size, like.shape)


def equal(rng: np.random.Generator, liked: np.ndarray) -> Scores:
    """All three know as much of what shoppers like, and err elsewhere; half of their errors they have in common."""
    common = np.sqrt(0.5) * _noise(rng, liked)
    return Scores(*(0.5 * liked + common + np.sqrt(0.5) * _noise(rng, liked) for _ in range(3)))


def better(rng: np.random.Generator, liked: np.ndarray, learned: float = 0.1) -> Scores:
    """The judged one adds a little of what shoppers like, with as much noise."""
    base = 0.5 * liked + _noise(rng, liked)
    return Scores(base, base + 0.05 * (liked + _noise(rng, liked)), base + learned * (liked + _noise(rng, liked)))


def overshot(rng: np.random.Generator, liked: np.ndarray) -> Scores:
    """The judged one goes four times as far as it should by something that it knows badly, and is better still."""
    base = 0.5 * liked + _noise(rng, liked)
    return Scores(base, base, base + 4.0 * (liked + _noise(rng, liked, 2.0)))


def harmed(rng: np.random.Generator, liked: np.ndarray) -> Scores:
    """The judged one has lost what the others know."""
    base = 0.5 * liked + _noise(rng, liked)
    return Scores(base, base, base - 0.4 * liked)


CASES: Final[Mapping[str, Make]] = {"equal": equal, "better": better, "overshot": overshot, "harmed": harmed}


def position_based(rng: np.random.Generator, appeal: np.ndarray) -> np.ndarray:
    """Shoppers look by 1/position and click by appeal, (lists, slots)."""
    return rng.random(appeal.shape) < appeal / np.arange(1, SLOTS + 1)


def cascade(rng: np.random.Generator, appeal: np.ndarray) -> np.ndarray:
    """They read from the top; 15 % give up at each product, and 60 % after a click."""
    clicked, reads = np.zeros(appeal.shape, dtype=bool), np.ones(len(appeal), dtype=bool)
    for slot in range(SLOTS):
        clicked[:, slot] = reads & (rng.random(len(appeal)) < appeal[:, slot])
        reads &= rng.random(len(appeal)) < np.where(clicked[:, slot], 0.4, 0.85)
    return clicked


def trusting(rng: np.random.Generator, appeal: np.ndarray) -> np.ndarray:
    """They look by 1/position, and what ranks high appeals to them for that reason."""
    places = np.arange(1, SLOTS + 1)
    return rng.random(appeal.shape) < np.minimum(appeal + 0.25 / places, 1) / places


Shoppers = Callable[[np.random.Generator, np.ndarray], np.ndarray]
SHOPPERS: Final[Mapping[str, Shoppers]] = {"position": position_based, "cascade": cascade, "trust": trusting}


class Stream(NamedTuple):
    """Held-out lists of one shop in the order in which they come, and by how much the judged release is better.

    Args:
        scored: all of them.
        truth: clicks a list of its own lists, less those of the other's own lists, as a share of the latter.
    """

    scored: Scored
    truth: float

    def first(self, count: int) -> Scored:
        """The first of the lists."""
        lists, slots = self.scored.lists, count * SLOTS
        cut = HeldOutLists(
            lists.persons[:count], lists.queries[:count], lists.list_of[:slots], lists.theta[:, :slots],
            lists.clicked[:slots], {},
        )  # fmt: skip
        rest = (self.scored.worth[:slots], self.scored.ranked_by[:count])
        return Scored(cut, *rest, self.scored.ours[:slots], self.scored.theirs[:slots])


def stream(
    rng: np.random.Generator,
    make: Make,
    *,
    shoppers: Shoppers = position_based,
    against: int = 0,
    lists: int = LISTS,
    queries: int = QUERIES,
    steepness: float = 1.0,
) -> Stream:
    """Show lists and let shoppers click; propensities are what exchanged products would say of these shoppers.

    Args:
        rng: draws everything.
        make: what the releases know.
        shoppers: how they click.
        against: 0 compares with the untrained release, else with the promoted one, on the untrained one's lists.
        lists: how many.
        queries: how many there are, asked by 1/rank to the power of `steepness`.
        steepness: 0 asks all alike.
    """
    liked = rng.normal(0, 1, (queries, PRODUCTS))
    appeal, scores = 1 / (1 + np.exp(2 - 1.2 * liked)), make(rng, liked)
    chances = np.arange(1, queries + 1) ** -steepness
    return shown_to(rng, appeal, chances / chances.sum(), scores, shoppers=shoppers, against=against, lists=lists)


def shown_to(
    rng: np.random.Generator,
    appeal: np.ndarray,
    asked_by: np.ndarray,
    scores: Scores,
    *,
    shoppers: Shoppers = position_based,
    against: int = 0,
    lists: int = LISTS,
) -> Stream:
    """Show lists of known releases to shoppers.

    Args:
        rng: draws everything.
        appeal: chance of a click by who looks, (queries, products).
        asked_by: chance of each query, (queries,).
        scores: what the releases say.
        shoppers: how they click.
        against: as `stream` has it.
        lists: how many.
    """
    other = scores.promoted if against else scores.untrained
    asked = rng.choice(len(asked_by), size=lists, p=asked_by)
    ranked_by = np.where((rng.random(lists) < ANCHOR_SHARE) | bool(against), 0, JUDGED - 1)
    tops = {id(of): np.argsort(-of, axis=1)[:, :SLOTS] for of in scores}

    def clicks_by(of: np.ndarray) -> float:
        own = np.take_along_axis(appeal, tops[id(of)], 1)[asked]
        return float(shoppers(rng, own).sum(axis=1).mean())

    shown = np.where((ranked_by == 0)[:, None], tops[id(scores.untrained)][asked], tops[id(scores.judged)][asked])
    of_shown = appeal[asked[:, None], shown]
    rates = shoppers(rng, rng.permuted(of_shown[rng.integers(lists, size=40_000)], axis=1)).mean(axis=0)
    theta = np.tile(rates / rates[0], (3, lists))
    clicked = shoppers(rng, of_shown).astype(float).ravel()
    worth = clicked * np.where(rng.random(len(clicked)) < CARTS, 4.0, 1.0)
    held_out = HeldOutLists(
        rng.integers(max(2, lists // 3), size=lists), asked, np.repeat(np.arange(lists), SLOTS), theta, clicked, {}
    )
    ours, theirs = (one[asked[:, None], shown].ravel() for one in (scores.judged, other))
    level = clicks_by(other)
    return Stream(Scored(held_out, worth, ranked_by, ours, theirs), (clicks_by(scores.judged) - level) / level)


def first_move(shop: Stream, *, against: int = 0) -> tuple[str, int]:
    """The first verdict that moves something, and after how many lists; `nothing` if there is none."""
    manifests = [_manifest(number) for number in (PROMOTED, JUDGED)]
    serving = SERVING.model_copy(update={"query_release": JUDGED})
    found = Decisions(began_at=T0, since={}, collection=SERVING.collection, promoted=PROMOTED if against else 0)
    count, most = 100, len(shop.scored.ranked_by)
    while count <= most:
        asked = question_of(found, Facts(NOBODY, serving, manifests), now_ms=T0 + 1)
        if asked is None:
            break
        look = look_at(asked, shop.first(count), now_ms=T0 + 1)
        facts = Facts(NOBODY, serving, manifests, counted_to_ms=T0, held_out=look)
        found = decide(found, facts, now_ms=T0 + 1)
        if found.decided:
            return found.decided[0].verdict, count
        count *= 2
    return "nothing", most


def naive_move(shop: Stream) -> tuple[str, int]:
    """What would be decided by all lists alike, whichever release chose them."""
    count, most = 100, len(shop.scored.ranked_by)
    while count <= most:
        part = shop.first(count)
        verdict = evaluate(part.lists, part.ours, part.theirs, normal=NORMAL).difference.verdict
        if verdict in {"better", "worse"}:
            return {"better": "promoted", "worse": "stepped_back"}[verdict], count
        count *= 2
    return "nothing", most


def _manifest(number: int) -> ReleaseManifest:
    """Return the manifest of a query release."""
    return MANIFEST.model_copy(update={"release": number, "query_release": number})


def main(seed: int) -> None:
    """Print a table."""
    sys.stdout.write("| case | asked | shoppers | truth | by | promoted | stepped back | lists until then |\n")
    for name, make in CASES.items():
        for steepness in (1.0, 0.4):
            for shoppers in SHOPPERS if name == "equal" else ("position",):
                for against in (0, PROMOTED):
                    rng = np.random.default_rng(seed)
                    lists = LISTS // (2 if against else 1)
                    shops = [
                        stream(
                            rng, make, shoppers=SHOPPERS[shoppers], against=against, lists=lists, steepness=steepness
                        )
                        for _ in range(STREAMS)
                    ]  # fmt: skip
                    truth = float(np.mean([shop.truth for shop in shops]))
                    told = f"| {name} | {steepness:g} | {shoppers} | {truth:+.1%} |"
                    beside = "the promoted" if against else "the untrained"
                    print_moves(f"{told} beside {beside}", [first_move(shop, against=against) for shop in shops])
                    if not against:
                        print_moves(f"{told} all lists alike", [naive_move(shop) for shop in shops])


def print_moves(told: str, moves: list[tuple[str, int]]) -> None:
    """Print a row."""
    verdicts = [verdict for verdict, _ in moves]
    counts = [verdicts.count(one) for one in ("promoted", "stepped_back")]
    when = [count for verdict, count in moves if verdict != "nothing"]
    median = f"{np.median(when):,.0f}" if when else "-"
    sys.stdout.write(f"{told} | {counts[0]} | {counts[1]} of {len(moves)} | {median} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)

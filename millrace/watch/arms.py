"""What became of each arm's lists, and what that says of learning: the agent's sums over all partitions, compared."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from contracts.arms import ANCHOR, ARMS, COMPARED, LIVE, ArmCounts, ArmsProgress, Interleaving, compared, groups_of
from contracts.comparison import Difference, mean_of, wins
from millrace.watch.kafka_view import KafkaView
from streams.arms.partition_arms import ARMS_AGENT

RATES: Final = {
    "click_rate": "clicked", "cart_rate": "carted", "purchase_rate": "purchased", "value_per_search": "value",
    "cart_adds_per_search": "cart_adds", "mrr_of_first_click": "reciprocal_rank", "abandonment_rate": "abandoned",
    "reformulation_rate": "reformulated", "zero_results_rate": "zero_results", "no_good_match_rate": "no_good_match",
}  # fmt: skip
"""What is told of an arm per search -> the sum that it is made of."""


def arms_report(seen: KafkaView) -> dict[str, Any] | None:
    """Put the arms into stable JSON: figures per arm and surface, live against the anchor, and interleaved lists.

    None if they are not known.
    """
    if not seen.knows(ARMS_AGENT.progress_topic):
        return None
    found = [cast("ArmsProgress", one) for one in seen.progress.get(ARMS_AGENT.name, {}).values()]
    cells: dict[tuple[str, str], list[ArmCounts]] = {}
    for progress in found:
        for arm, surfaces in progress.arms.items():
            for surface, counts in surfaces.items():
                cells.setdefault((arm, surface), []).append(counts)
    ordered = sorted(cells.items(), key=lambda cell: (_place(cell[0][0]), cell[0]))
    return {
        "arms": [_figures(arm, surface, counts) for (arm, surface), counts in ordered],
        "comparisons": [_comparison(found, metric) for metric in COMPARED],
        "interleaving": _interleaving([progress.interleaving for progress in found]),
    }


def _place(arm: str) -> int:
    """An arm that a later version counts comes last."""
    return ARMS.index(arm) if arm in ARMS else len(ARMS)


def _figures(arm: str, surface: str, counts: Iterable[ArmCounts]) -> dict[str, Any]:
    sums: Counter[str] = Counter()
    for one in counts:
        sums.update(one.model_dump())
    rates = {name: sums[what] / sums["searches"] for name, what in RATES.items()}
    return {"arm": arm, "surface": surface, **{name: sums[name] for name in ArmCounts.model_fields}, **rates}


def _comparison(found: Sequence[ArmsProgress], metric: str) -> dict[str, Any]:
    sides = {arm: groups_of(found, arm) for arm in (LIVE, ANCHOR)}
    searches = {arm: sum(group.searches for group in groups) for arm, groups in sides.items()}
    means = {
        arm: mean_of([group.sums(metric) for group in groups]).value if searches[arm] else None
        for arm, groups in sides.items()
    }
    seen = compared(metric, sides[LIVE], sides[ANCHOR])
    told = dict.fromkeys(Difference._fields) if seen is None else seen._asdict()
    verdict = "too little" if seen is None else seen.verdict
    counted = {f"{arm}_searches": number for arm, number in searches.items()}
    return {"metric": metric, **counted, **means, **told, "verdict": verdict}


def _interleaving(found: Sequence[Interleaving]) -> dict[str, Any]:
    live, anchor, tied = (sum(getattr(one, name) for one in found) for name in Interleaving.model_fields)
    decided = wins(live, anchor)
    told = dict.fromkeys(("share", "low", "high", "p")) if decided is None else decided._asdict()
    return {"live": live, "anchor": anchor, "tied": tied, **told}

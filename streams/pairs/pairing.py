"""A joined search becomes weighted preference pairs: for this query, this product rather than that one.

Chosen is what the shopper went further with; rejected is what was shown, and in all likelihood seen, and got less.
Every factor of a weight is symmetric in (chosen, rejected) but for the value of what was chosen and the examination
ratio, which undoes position bias; nothing is normalised inside a list, which would undo the ratio again. Sampling goes
by a hash of the pair's id: the same search gives the same pairs, and a weight carries the inverse of its chance.

Source: docs/papers.md, "The weight of a pair".
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from contracts.pairs import RULE_VERSION, Factors, pair_id
from contracts.structs import JoinedSearch, JoinedSlot
from contracts.telemetry import FilterReason, UnpairedReason
from streams.pairs.grading import VALUE, Grade, grade, is_bounce, is_comparable
from streams.pairs.propensity import PRIOR_VERSION, examination_ratio

SOURCE: Final = "click"
BELOW_LAST_CLICK: Final = 3
"""How many slots below the last click are still taken as seen."""
PER_SIDE: Final = 3
"""Most pairs per chosen slot with slots above it, and as many below it."""
PER_LIST: Final = 12
"""Most pairs of one list."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that may be emitted; `rate` is the chance with which it was kept so far."""

    pair_id: str
    chosen: JoinedSlot
    rejected: JoinedSlot
    rate: float = 1.0


def filter_reason(search: JoinedSearch) -> FilterReason | None:
    """Return why a search is kept out of learning on purpose, or None."""
    if search.synthetic:
        return FilterReason.SYNTHETIC
    if search.consent == "denied":
        return FilterReason.CONSENT
    return None


def pairs_of(search: JoinedSearch) -> list[bytes] | UnpairedReason:
    """Return the messages of a search's pairs, or why it gives none."""
    engaged = [slot for slot in search.slots if grade(slot) > Grade.SKIP]
    if not engaged:
        return UnpairedReason.NO_CLICK
    chosen = [slot for slot in engaged if not is_bounce(slot)]
    if not chosen:
        return UnpairedReason.BOUNCED
    rejectable = _rejectable(search, last_click=max(slot.position for slot in engaged))
    candidates = [pair for slot in chosen if is_comparable(slot) for pair in _pairs_with(search, slot, rejectable)]
    if not candidates:
        return UnpairedReason.NO_REJECTED
    kept = sorted(_cap_list(candidates), key=lambda pair: pair.pair_id)
    return [orjson.dumps(_message(search, pair)) for pair in kept]


def _rejectable(search: JoinedSearch, *, last_click: int) -> list[JoinedSlot]:
    """Return the slots that the shopper must have seen, as far as can be known, and that stood there by rank."""
    reported = any(slot.visible_ms is not None for slot in search.slots)
    return [
        slot
        for slot in search.slots
        if slot.position <= last_click + BELOW_LAST_CLICK
        and is_comparable(slot)
        and not is_bounce(slot)
        and (not reported or slot.visible_ms or grade(slot) > Grade.SKIP)
    ]


def _pairs_with(search: JoinedSearch, chosen: JoinedSlot, rejectable: list[JoinedSlot]) -> list[Candidate]:
    """Return the pairs of one chosen slot, a few with slots above it and a few with slots below it."""
    lesser = [slot for slot in rejectable if grade(slot) < grade(chosen)]
    above = [slot for slot in lesser if slot.position < chosen.position]
    below = [slot for slot in lesser if slot.position > chosen.position]
    return [pair for side in (above, below) for pair in _cap_side(search, chosen, side)]


def _cap_side(search: JoinedSearch, chosen: JoinedSlot, side: list[JoinedSlot]) -> list[Candidate]:
    """Keep a few slots of one side, by the first half of the pair ids."""
    rate = min(1.0, PER_SIDE / len(side)) if side else 1.0
    pairs = [
        Candidate(
            pair_id(search.search_id, chosen.product_id, slot.product_id, source=SOURCE, rule_version=RULE_VERSION),
            chosen,
            slot,
            rate,
        )
        for slot in side
    ]
    return sorted(pairs, key=lambda pair: pair.pair_id[:32])[:PER_SIDE]


def _cap_list(pairs: list[Candidate]) -> list[Candidate]:
    """Keep a few pairs of a list, by the second half of the pair ids: independent of who survived the first cut."""
    if len(pairs) <= PER_LIST:
        return pairs
    rate = PER_LIST / len(pairs)
    kept = sorted(pairs, key=lambda pair: pair.pair_id[32:])[:PER_LIST]
    return [Candidate(pair.pair_id, pair.chosen, pair.rejected, pair.rate * rate) for pair in kept]


def _message(search: JoinedSearch, pair: Candidate) -> dict[str, Any]:
    """Return a pair as it goes over the wire."""
    chosen, rejected, ranking = pair.chosen, pair.rejected, search.ranking
    factors = Factors(
        value=VALUE[grade(chosen)],
        ratio=examination_ratio(chosen.position, rejected.position),
        sampling=1 / pair.rate,
    )
    releases = {"query_release": ranking.query_release, "product_release": ranking.product_release}
    return {
        "schema_version": 1,
        "pair_id": pair.pair_id,
        "search_id": search.search_id,
        "query": search.query,
        "source": SOURCE,
        "chosen": _side(chosen),
        "rejected": _side(rejected),
        "weight": factors.weight(),
        "factors": factors.model_dump(),
        "confidence": _confidence(chosen, rejected),
        "propensity_version": PRIOR_VERSION,
        "filters": [],
        **{name: release for name, release in releases.items() if release is not None},
        "arm": ranking.arm,
        "event_time": search.search_time if chosen.click_time is None else chosen.click_time,
        "closed_at": search.closed_at,
        "origins": [{"topic": o.topic, "partition": o.partition, "offset": o.offset} for o in search.origins],
        "rule_version": RULE_VERSION,
    }


def _side(slot: JoinedSlot) -> dict[str, Any]:
    """Return one product of a pair."""
    return {"product_id": slot.product_id, "position": slot.position, "grade": int(grade(slot))}


def _confidence(chosen: JoinedSlot, rejected: JoinedSlot) -> float:
    """Return how sure it is that the rejected product was seen: observed, passed on the way, or only near by."""
    if rejected.visible_ms or grade(rejected) > Grade.SKIP:
        return 1.0
    return 0.7 if rejected.position < chosen.position else 0.5

"""A joined search becomes weighted preference pairs: for this query, this product rather than that one.

Chosen is what the shopper went further with; rejected is what was shown, and in all likelihood seen, and got less.
Every factor of a weight is symmetric in (chosen, rejected) but for the value of what was chosen and the examination
ratio, which undoes position bias; nothing is normalised inside a list. Source: docs/papers.md, "The weight of a pair".
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from contracts.base import is_visible
from contracts.outcomes import VALUE, Grade, Theta, cell_of, examination_ratio, grade, is_bounce, prior, stood_by_rank
from contracts.pairs import RULE_VERSION, pair_id
from contracts.structs import JoinedSearch, JoinedSlot
from contracts.telemetry import UnpairedReason

SOURCE: Final = "click"
BELOW_LAST_CLICK: Final = 3
"""How many slots below the last click are still taken as seen."""
PER_SIDE: Final = 3
"""Most pairs per chosen slot with slots above it, and as many below it."""
PER_LIST: Final = 12
"""Most pairs of one list."""


class GradedSlot(NamedTuple):
    """A slot that may be part of a pair: chosen, or seen, as far as can be known, and passed over."""

    slot: JoinedSlot
    grade: Grade
    position: int


class Pair(NamedTuple):
    """Two slots of one list; `rate` is the chance with which the pair was kept."""

    pair_id: str
    chosen: GradedSlot
    rejected: GradedSlot
    rate: float = 1.0


def pairs_of(search: JoinedSearch, *, excluded: Container[str] = ()) -> list[Pair] | UnpairedReason:
    """Return the pairs of a search in the order of their ids, or why it gives none.

    Args:
        search: the list.
        excluded: products that the shopper's other lists leave out, on either side.
    """
    if not is_visible(search.query):
        return UnpairedReason.NO_QUERY
    grades = [grade(slot) for slot in search.slots]
    engaged = [GradedSlot(slot, one, slot.position) for slot, one in zip(search.slots, grades, strict=True) if one]
    if not engaged:
        return UnpairedReason.NO_CLICK
    if all(is_bounce(one.slot) for one in engaged):
        return UnpairedReason.BOUNCED
    # A product that was engaged with as an advertisement, say, was not passed over in its other slot.
    engaged_elsewhere = {one.slot.product_id for one in engaged if not stood_by_rank(one.slot)}
    rejectable = [
        one
        for one in _seen(search.slots, grades, last_click=max(one.position for one in engaged))
        if stood_by_rank(one.slot) and not is_bounce(one.slot) and one.slot.product_id not in engaged_elsewhere
        if one.slot.product_id not in excluded
    ]
    if all(one.slot.product_id in excluded or is_bounce(one.slot) for one in engaged):
        return UnpairedReason.NOT_NEW
    pairs = [
        pair
        for chosen in engaged
        if stood_by_rank(chosen.slot) and not is_bounce(chosen.slot) and chosen.slot.product_id not in excluded
        for pair in _pairs_with(search.search_id, chosen, rejectable)
    ]
    return sorted(_sampled(pairs), key=lambda pair: pair.pair_id) if pairs else UnpairedReason.NO_REJECTED


def _seen(slots: Sequence[JoinedSlot], grades: Sequence[Grade], *, last_click: int) -> list[GradedSlot]:
    """Return the slots that the shopper must have seen: by the viewport's report if there is one, else by position."""
    lowest = last_click + BELOW_LAST_CLICK
    reported = any(slot.visible_ms is not None for slot in slots)
    return [
        GradedSlot(slot, one, slot.position)
        for slot, one in zip(slots, grades, strict=True)
        if slot.position <= lowest and (not reported or slot.visible_ms or one)
    ]


def _pairs_with(search_id: str, chosen: GradedSlot, rejectable: list[GradedSlot]) -> list[Pair]:
    """Return the pairs of one chosen slot: a few with slots above it and a few with slots below it."""
    product_id = chosen.slot.product_id
    lesser = [one for one in rejectable if one.grade < chosen.grade]
    above = [one for one in lesser if one.position < chosen.position]
    below = [one for one in lesser if one.position > chosen.position]
    kept: list[Pair] = []
    for side in (above, below):
        rate = min(1.0, PER_SIDE / len(side)) if side else 1.0
        pairs = [
            Pair(pair_id(search_id, product_id, one.slot.product_id, source=SOURCE), chosen, one, rate) for one in side
        ]
        # Sampling goes by the id: the same search gives the same pairs, and the weight carries the inverse chance.
        kept += sorted(pairs, key=lambda pair: pair.pair_id[:32])[:PER_SIDE] if rate < 1 else pairs
    return kept


def _sampled(pairs: list[Pair]) -> list[Pair]:
    """Keep a few pairs of a list, by the second half of the ids: independent of who survived the cut by side."""
    if len(pairs) <= PER_LIST:
        return pairs
    rate = PER_LIST / len(pairs)
    kept = sorted(pairs, key=lambda pair: pair.pair_id[32:])[:PER_LIST]
    return [pair._replace(rate=pair.rate * rate) for pair in kept]


def encode_pairs(
    search: JoinedSearch,
    pairs: list[Pair],
    *,
    theta: Theta = prior,
    cap: float = 1.0,
    filters: Iterable[str] = (),
) -> list[bytes]:
    """Return the messages of a search's pairs; what they share is encoded once.

    Args:
        search: the list.
        pairs: of that list.
        theta: propensities; the one in force when the list was shown is used.
        cap: weight of the whole list.
        filters: why products of the list were left out.
    """
    ranking = search.ranking
    releases = {"query_release": ranking.query_release, "product_release": ranking.product_release}
    origins = [{"topic": o.topic, "partition": o.partition, "offset": o.offset} for o in search.origins]
    shared: dict[str, Any] = {
        "query": orjson.Fragment(orjson.dumps(search.query)),
        "releases": {name: release for name, release in releases.items() if release is not None},
        "cap": cap,
        "filters": sorted(set(filters)),
        "origins": orjson.Fragment(orjson.dumps(origins)),
    }
    cell, shown_at = cell_of(search), search.search_time

    def looked_at(slot: GradedSlot) -> tuple[float, int]:
        return theta(cell, slot.position, shown_at)

    return [orjson.dumps(_message(search, pair, looked_at=looked_at, **shared)) for pair in pairs]


def _message(
    search: JoinedSearch,
    pair: Pair,
    *,
    looked_at: Callable[[GradedSlot], tuple[float, int]],
    cap: float,
    filters: list[str],
    query: object,
    releases: dict[str, int],
    origins: object,
) -> dict[str, Any]:
    chosen, rejected = pair.chosen, pair.rejected
    value, sampling = VALUE[chosen.grade], 1 / pair.rate
    (examined, version), (passed, _) = looked_at(chosen), looked_at(rejected)
    ratio = examination_ratio(examined, passed)
    clicked_at = chosen.slot.click_time
    return {
        "schema_version": 1,
        "pair_id": pair.pair_id,
        "search_id": search.search_id,
        "query": query,
        "source": SOURCE,
        "chosen": _side(chosen),
        "rejected": _side(rejected),
        "weight": value * ratio * sampling * cap,
        "factors": {"value": value, "ratio": ratio, "similarity": 1.0, "sampling": sampling, "cap": cap},
        "confidence": _confidence(chosen, rejected),
        "propensity_version": version,
        "filters": filters,
        **releases,
        "arm": search.ranking.arm,
        "event_time": search.search_time if clicked_at is None else clicked_at,
        "closed_at": search.closed_at,
        "origins": origins,
        "rule_version": RULE_VERSION,
    }


def _side(graded: GradedSlot) -> dict[str, Any]:
    return {"product_id": graded.slot.product_id, "position": graded.position, "grade": graded.grade.value}


def _confidence(chosen: GradedSlot, rejected: GradedSlot) -> float:
    """How sure it is that the rejected product was seen: observed, passed on the way, or only near by."""
    if rejected.slot.visible_ms or rejected.grade:
        return 1.0
    return 0.7 if rejected.position < chosen.position else 0.5

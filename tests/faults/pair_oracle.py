"""What pairs must say about a closed search, computed a second time; it shares no code with `streams/pairs`."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

VALUE = {1: 1.0, 2: 1.5, 3: 4.0, 4: 10.0}
CELL = ("surface", "device", "layout", "columns", "kind")

Json = dict[str, Any]


class Looks:
    """How much more rarely a position is looked at than the first one: by versions, or 1/position before the first."""

    def __init__(self, versions: Iterable[Json] = ()) -> None:
        self._versions = list(versions)

    def at(self, search: Json, position: int) -> tuple[float, int]:
        """Return it, and the version in force when the list was shown."""
        in_force = [
            (one["effective_from"], one["version"], one)
            for one in self._versions
            if [one[name] for name in CELL] == search["cell"] and one["effective_from"] <= search["search_time"]
        ]
        if not in_force:
            return 1 / position, 0
        _, number, version = max(in_force, key=lambda one: one[:2])
        known = {slot["position"]: slot["theta"] for slot in version["slots"]}
        last = max(known)
        further = 1.0 if position in known else (last / position) ** version["steepness"]
        return known.get(position, known[last]) * further, number


def rounded(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a pair with its products rounded: another order of multiplication gives another last digit."""
    factors = {name: round(factor, 9) for name, factor in pair["factors"].items()}
    return {**pair, "weight": round(pair["weight"], 9), "factors": factors}


def grade_of(slot: Json) -> int:
    """Return 0 skipped, 1 click, 2 long click, 3 cart, 4 purchase."""
    if slot["purchase_quantity"] > 0:
        return 4
    if slot["cart_quantity"] > 0:
        return 3
    if slot.get("dwell_ms", -1) >= 30_000:
        return 2
    return 1 if slot["clicked"] or "dwell_ms" in slot else 0


def _bounced(slot: Json) -> bool:
    """Return whether the shopper came straight back."""
    return grade_of(slot) == 1 and slot.get("dwell_ms", 5_000) < 5_000


def pairs_of(search: Json, looks: Looks) -> tuple[str, list[Json]]:
    """Decide on one closed search; return what becomes of it and its pairs."""
    slots = search["slots"]
    engaged = [slot for slot in slots if grade_of(slot) > 0]
    if search["synthetic"] or search["denied"]:
        return "filtered/synthetic" if search["synthetic"] else "filtered/consent", []
    if not search["query"].strip():
        return "unpaired/no_query", []
    if not engaged:
        return "unpaired/no_click", []
    if all(_bounced(slot) for slot in engaged):
        return "unpaired/bounced", []
    pairs = _pairs(search, slots, max(slot["position"] for slot in engaged), looks)
    return "paired" if pairs else "unpaired/no_rejected", pairs


def _pairs(search: Json, slots: list[Json], last_click: int, looks: Looks) -> list[Json]:
    """Return a search's pairs, sampled down by the hashes of their ids."""
    anything_seen = any("visible_ms" in slot for slot in slots)
    found: list[tuple[str, Json, Json, float]] = []
    usable = [s for s in slots if s["in_stock"] and not s["sponsored"] and not s["pinned"] and not _bounced(s)]
    taken_elsewhere = {
        s["product_id"] for s in slots if grade_of(s) > 0 and (not s["in_stock"] or s["sponsored"] or s["pinned"])
    }
    for chosen in usable:
        for side in (-1, 1):
            lesser = [
                slot
                for slot in usable
                if grade_of(slot) < grade_of(chosen)
                and slot["product_id"] not in taken_elsewhere
                and (slot["position"] - chosen["position"]) * side > 0
                and slot["position"] <= last_click + 3
                and (not anything_seen or slot.get("visible_ms", 0) > 0 or grade_of(slot) > 0)
            ]
            by_hash = sorted((_pair_id(search, chosen, slot)[:32], slot["product_id"]) for slot in lesser)
            kept = {product for _, product in by_hash[:3]}
            rate = 1.0 if len(lesser) <= 3 else 3 / len(lesser)
            found += [(_pair_id(search, chosen, s), chosen, s, rate) for s in lesser if s["product_id"] in kept]
    if len(found) > 12:
        share = 12 / len(found)
        found = [(i, c, r, rate * share) for i, c, r, rate in sorted(found, key=lambda pair: pair[0][32:])[:12]]
    return [_pair_message(search, looks, *one) for one in found]


def _pair_id(search: Json, chosen: Json, rejected: Json) -> str:
    """Return the id of a pair."""
    identity = [search["search_id"], chosen["product_id"], rejected["product_id"], "click", 1]
    return hashlib.sha256(json.dumps(identity, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _pair_message(search: Json, looks: Looks, pair_id: str, chosen: Json, rejected: Json, rate: float) -> Json:
    """Return a pair as it stands on the topic."""
    (looked_at, version), (passed, _) = (looks.at(search, one["position"]) for one in (chosen, rejected))
    value, ratio = VALUE[grade_of(chosen)], min(1.0, passed / looked_at)
    seen = rejected.get("visible_ms", 0) > 0 or grade_of(rejected) > 0
    nearer = 0.7 if rejected["position"] < chosen["position"] else 0.5
    ranking = search["ranking"]
    releases = {name: ranking[name] for name in ("query_release", "product_release") if name in ranking}
    return {
        "schema_version": 1,
        "pair_id": pair_id,
        "search_id": search["search_id"],
        "query": search["query"],
        "source": "click",
        "chosen": {"product_id": chosen["product_id"], "position": chosen["position"], "grade": grade_of(chosen)},
        "rejected": {
            "product_id": rejected["product_id"],
            "position": rejected["position"],
            "grade": grade_of(rejected),
        },
        "weight": value * ratio / rate,
        "factors": {"value": value, "ratio": ratio, "similarity": 1.0, "sampling": 1 / rate, "cap": 1.0},
        "confidence": 1.0 if seen else nearer,
        "propensity_version": version,
        "filters": [],
        **releases,
        "arm": ranking.get("arm", "live"),
        "event_time": chosen.get("click_time", search["search_time"]),
        "closed_at": search["closed_at"],
        "origins": search["origins"],
        "rule_version": 1,
    }


def _side(slot: Json) -> Json:
    """Return one side of a pair."""
    return {"product_id": slot["product_id"], "position": slot["position"], "grade": grade_of(slot)}

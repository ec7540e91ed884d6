"""What join and pairs must say about a log, computed a second time from the words of the interfaces alone.

It shares no code with `streams/join`: no heap, no watermark object, no replay. It looks at the whole log at once, in
plain dictionaries, and may therefore be slow and simple.
"""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

FUTURE_MS = 300_000
VALUE = {1: 1.0, 2: 1.5, 3: 4.0, 4: 10.0}

Json = dict[str, Any]


@dataclass
class LogEntry:
    """One record of `search-events`."""

    offset: int
    append_ms: int
    value: bytes


@dataclass
class Expected:
    """What must come out of one partition."""

    outcomes: Counter[str] = field(default_factory=Counter)
    searches: dict[str, Json] = field(default_factory=dict)
    """Joined searches by search id."""
    pairs: dict[str, Json] = field(default_factory=dict)
    """Pairs by pair id."""
    search_outcomes: Counter[str] = field(default_factory=Counter)
    aside: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Offset -> (outcome, reason) of what was set aside."""


def expect(partition: int, log: list[LogEntry], *, window_ms: int, lateness_ms: int) -> Expected:
    """Return what must come out of one partition whose searches are all over."""
    expected = Expected()
    groups: dict[tuple[str, int], list[tuple[LogEntry, Json, int]]] = defaultdict(list)
    strays: list[tuple[LogEntry, Json, int, int]] = []
    watermark = -1
    for entry in log:
        event, refusal = _read(entry)
        if refusal is not None:
            _aside(expected, entry, "dead_lettered", refusal)
            continue
        assert event is not None
        happened = min(event["event_time"], entry.append_ms)
        watermark = max(watermark, happened - lateness_ms)
        if event["type"] == "tick":
            expected.outcomes["ticks"] += 1
            continue
        search_id, search_time = _search(event)
        if search_id is None:
            _aside(expected, entry, "orphan", "no_search")
        elif search_time is None:
            strays.append((entry, event, happened, watermark))
        elif happened > search_time + window_ms:
            _aside(expected, entry, "late", "after_deadline")
        elif search_time + window_ms < watermark:
            _aside(expected, entry, "late", "after_close")
        else:
            groups[search_id, search_time].append((entry, event, happened))
    _place_strays(expected, groups, strays, window_ms)
    for (search_id, search_time), members in groups.items():
        _close(expected, partition, search_id, search_time + window_ms, members)
    for search in expected.searches.values():
        _pair(expected, search)
    return expected


def rounded(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a pair with its products rounded: another order of multiplication gives another last digit."""
    factors = {name: round(factor, 9) for name, factor in pair["factors"].items()}
    return {**pair, "weight": round(pair["weight"], 9), "factors": factors}


def _read(entry: LogEntry) -> tuple[Json | None, str | None]:
    """Return a record as (event, None) or (None, reason)."""
    try:
        event = json.loads(entry.value)
    except ValueError:
        return None, "malformed_json"
    if "type" not in event:
        return None, "missing"
    limit = entry.append_ms + FUTURE_MS
    if event["event_time"] > limit:
        return None, "too_far_ahead"
    if event["type"] == "purchase" and len(event["items"]) > 1:
        return None, "unsplit_purchase"
    return event, None


def _search(event: Json) -> tuple[str | None, int | None]:
    """Return the search that an event names."""
    if event["type"] == "impression":
        return event["search_id"], event["event_time"]
    named = event["items"][0] if event["type"] == "purchase" else event
    return named.get("search_id"), named.get("search_time")


def _aside(expected: Expected, entry: LogEntry, outcome: str, reason: str) -> None:
    """Note a record that was set aside."""
    expected.outcomes[outcome] += 1
    expected.aside[entry.offset] = (outcome, reason)


def _place_strays(
    expected: Expected,
    groups: dict[tuple[str, int], list[tuple[LogEntry, Json, int]]],
    strays: list[tuple[LogEntry, Json, int, int]],
    window_ms: int,
) -> None:
    """Give events without `search_time` to the list that was open when they came, else call them orphans."""
    shown = {
        search_id: search_time
        for (search_id, search_time), members in groups.items()
        if any(event["type"] == "impression" for _, event, _ in members)
    }
    for entry, event, happened, watermark in strays:
        search_id, _ = _search(event)
        search_time = shown.get(search_id or "")
        if search_time is not None and happened <= search_time + window_ms and watermark <= search_time + window_ms:
            groups[search_id or "", search_time].append((entry, event, happened))
        else:
            _aside(expected, entry, "orphan", "no_impression")


def _close(
    expected: Expected, partition: int, search_id: str, deadline: int, members: list[tuple[LogEntry, Json, int]]
) -> None:
    """Decide on the events of one search."""
    once: dict[str, tuple[LogEntry, Json, int]] = {}
    for member in sorted(members, key=lambda m: m[0].offset):
        if member[1]["event_id"] in once:
            expected.outcomes["duplicate"] += 1
        else:
            once[member[1]["event_id"]] = member
    impressions = sorted(
        (m for m in once.values() if m[1]["type"] == "impression"), key=lambda m: str(m[1]["event_id"])
    )
    if not impressions:
        for entry, _, _ in once.values():
            _aside(expected, entry, "orphan", "no_impression")
        return
    expected.outcomes["duplicate"] += len(impressions) - 1
    others = [m for m in once.values() if m[1]["type"] != "impression"]
    expected.outcomes["joined"] += 1 + len(others)
    expected.searches[search_id] = _joined(partition, deadline, impressions[0], others)


def _joined(
    partition: int, deadline: int, shown: tuple[LogEntry, Json, int], others: list[tuple[LogEntry, Json, int]]
) -> Json:
    """Return a closed search."""
    impression = shown[1]
    slots = {
        slot["product_id"]: {
            "sponsored": False,
            "pinned": False,
            "in_stock": True,
            "clicked": False,
            "cart_quantity": 0,
            "purchase_quantity": 0,
            **slot,
        }
        for slot in sorted(impression["slots"], key=lambda slot: int(slot["position"]))
    }
    unlisted = 0
    for _, event, happened in others:
        named = {"view": event.get("slots"), "purchase": event.get("items")}.get(event["type"]) or [event]
        unlisted += any(part["product_id"] not in slots for part in named)
        for part in named:
            if part["product_id"] in slots:
                _note(slots[part["product_id"]], event["type"], part, happened)
    everything = [shown, *others]
    return {
        "search_id": impression["search_id"],
        "search_time": impression["event_time"],
        "closed_at": deadline,
        "session_id": impression["session_id"],
        "query": impression["query"],
        "synthetic": any(event.get("synthetic", False) for _, event, _ in everything),
        "denied": any(event.get("consent") == "denied" for _, event, _ in everything),
        "ranking": impression.get("ranking", {}),
        "slots": list(slots.values()),
        "unlisted": unlisted,
        "origins": [
            {"topic": "search-events", "partition": partition, "offset": offset}
            for offset in sorted(entry.offset for entry, _, _ in everything)
        ],
    }


def _note(slot: Json, kind: str, part: Json, happened: int) -> None:
    """Note one event on the slot that it names."""
    if kind == "view":
        slot["visible_ms"] = max(slot.get("visible_ms", 0), part["visible_ms"])
    elif kind == "click":
        slot["clicked"] = True
        slot["click_time"] = min(slot.get("click_time", happened), happened)
    elif kind == "dwell":
        slot["dwell_ms"] = max(slot.get("dwell_ms", 0), part["dwell_ms"])
    else:
        slot[f"{kind}_quantity"] += part.get("quantity", 1)


def _grade(slot: Json) -> int:
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
    return _grade(slot) == 1 and slot.get("dwell_ms", 5_000) < 5_000


def _pair(expected: Expected, search: Json) -> None:
    """Decide on one closed search and note its pairs."""
    slots = search["slots"]
    engaged = [slot for slot in slots if _grade(slot) > 0]
    if search["synthetic"] or search["denied"]:
        expected.search_outcomes["filtered/synthetic" if search["synthetic"] else "filtered/consent"] += 1
        return
    if not search["query"].strip():
        expected.search_outcomes["unpaired/no_query"] += 1
        return
    if not engaged:
        expected.search_outcomes["unpaired/no_click"] += 1
        return
    if all(_bounced(slot) for slot in engaged):
        expected.search_outcomes["unpaired/bounced"] += 1
        return
    pairs = _pairs(search, slots, max(slot["position"] for slot in engaged))
    expected.search_outcomes["paired" if pairs else "unpaired/no_rejected"] += 1
    for pair in pairs:
        expected.pairs[pair["pair_id"]] = pair


def _pairs(search: Json, slots: list[Json], last_click: int) -> list[Json]:
    """Return a search's pairs, sampled down by the hashes of their ids."""
    anything_seen = any("visible_ms" in slot for slot in slots)
    found: list[tuple[str, Json, Json, float]] = []
    usable = [s for s in slots if s["in_stock"] and not s["sponsored"] and not s["pinned"] and not _bounced(s)]
    taken_elsewhere = {
        s["product_id"] for s in slots if _grade(s) > 0 and (not s["in_stock"] or s["sponsored"] or s["pinned"])
    }
    for chosen in usable:
        for side in (-1, 1):
            lesser = [
                slot
                for slot in usable
                if _grade(slot) < _grade(chosen)
                and slot["product_id"] not in taken_elsewhere
                and (slot["position"] - chosen["position"]) * side > 0
                and slot["position"] <= last_click + 3
                and (not anything_seen or slot.get("visible_ms", 0) > 0 or _grade(slot) > 0)
            ]
            by_hash = sorted((_pair_id(search, chosen, slot)[:32], slot["product_id"]) for slot in lesser)
            kept = {product for _, product in by_hash[:3]}
            rate = 1.0 if len(lesser) <= 3 else 3 / len(lesser)
            found += [(_pair_id(search, chosen, s), chosen, s, rate) for s in lesser if s["product_id"] in kept]
    if len(found) > 12:
        share = 12 / len(found)
        found = [(i, c, r, rate * share) for i, c, r, rate in sorted(found, key=lambda pair: pair[0][32:])[:12]]
    return [_pair_message(search, *one) for one in found]


def _pair_id(search: Json, chosen: Json, rejected: Json) -> str:
    """Return the id of a pair."""
    identity = [search["search_id"], chosen["product_id"], rejected["product_id"], "click", 1]
    return hashlib.sha256(json.dumps(identity, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _pair_message(search: Json, pair_id: str, chosen: Json, rejected: Json, rate: float) -> Json:
    """Return a pair as it stands on the topic."""
    value, ratio = VALUE[_grade(chosen)], min(1.0, chosen["position"] / rejected["position"])
    seen = rejected.get("visible_ms", 0) > 0 or _grade(rejected) > 0
    nearer = 0.7 if rejected["position"] < chosen["position"] else 0.5
    ranking = search["ranking"]
    releases = {name: ranking[name] for name in ("query_release", "product_release") if name in ranking}
    return {
        "schema_version": 1,
        "pair_id": pair_id,
        "search_id": search["search_id"],
        "query": search["query"],
        "source": "click",
        "chosen": {"product_id": chosen["product_id"], "position": chosen["position"], "grade": _grade(chosen)},
        "rejected": {"product_id": rejected["product_id"], "position": rejected["position"], "grade": _grade(rejected)},
        "weight": value * ratio / rate,
        "factors": {"value": value, "ratio": ratio, "similarity": 1.0, "sampling": 1 / rate, "cap": 1.0},
        "confidence": 1.0 if seen else nearer,
        "propensity_version": 0,
        "filters": [],
        **releases,
        "arm": ranking.get("arm", "live"),
        "event_time": chosen.get("click_time", search["search_time"]),
        "closed_at": search["closed_at"],
        "origins": search["origins"],
        "rule_version": 1,
    }

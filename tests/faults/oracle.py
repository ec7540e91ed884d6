"""What join and pairs must say about a log, computed a second time from the words of the interfaces alone.

It shares no code with `streams/join`: no heap, no watermark object, no replay. It looks at the whole log at once, in
plain dictionaries, and may therefore be slow and simple.
"""

import hashlib
import hmac
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FUTURE_MS = 300_000
PERSONS = ("client_id", "user_id")
PERSON_KEY = b"the key of the tests"
VALUE = {1: 1.0, 2: 1.5, 3: 4.0, 4: 10.0}
CELL = ("surface", "device", "layout", "columns", "kind")

Json = dict[str, Any]


@dataclass
class LogEntry:
    """One record of `search-events`."""

    offset: int
    append_ms: int
    value: bytes


class Member(NamedTuple):
    """An event of the log: its place there, its record, what it says, when it happened."""

    number: int
    entry: LogEntry
    event: Json
    happened: int


@dataclass
class Expected:
    """What must come out of one partition."""

    outcomes: Counter[str] = field(default_factory=Counter)
    searches: dict[tuple[str, int], Json] = field(default_factory=dict)
    """Joined searches by search id and time."""
    pairs: dict[str, Json] = field(default_factory=dict)
    """Pairs by pair id."""
    search_outcomes: Counter[str] = field(default_factory=Counter)
    aside: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Offset -> (outcome, reason) of what was set aside."""


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


def expect(
    partition: int, log: list[LogEntry], *, window_ms: int, lateness_ms: int, looks: Looks | None = None
) -> Expected:
    """Return what must come out of one partition whose searches are all over."""
    looks = looks or Looks()
    expected = Expected()
    groups: dict[tuple[str, int], list[Member]] = defaultdict(list)
    waiting: list[Member] = []
    watermark = moved = -1
    watermarks: list[int] = []
    for number, entry in enumerate(log):
        event, refusal = _read(entry)
        happened = min(event["event_time"], entry.append_ms) if event else -1
        if event and event["type"] == "tick":
            expected.outcomes["ticks"] += 1
            happened = _tick_time(entry, event["event_time"], watermark + lateness_ms, moved)
        if event and happened - lateness_ms > watermark:
            watermark, moved = happened - lateness_ms, entry.append_ms
        watermarks.append(watermark)
        if refusal:
            _aside(expected, entry, "dead_lettered", refusal)
        if event is None or event["type"] == "tick":
            continue
        member = Member(number, entry, event, happened)
        search_id, search_time = _search(event)
        if search_id is None:
            _aside(expected, entry, "orphan", "no_search")
        elif search_time is None:
            waiting.append(member)
        elif member.happened > search_time + window_ms:
            _aside(expected, entry, "late", "after_deadline")
        elif search_time + window_ms < watermark:
            _aside(expected, entry, "late", "after_close")
        else:
            groups[search_id, search_time].append(member)
    _place_waiting(expected, groups, waiting, watermarks, window_ms)
    for (search_id, search_time), members in groups.items():
        _close(expected, partition, (search_id, search_time), search_time + window_ms, members)
    for search in expected.searches.values():
        _pair(expected, search, looks)
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
    if event["type"] != "tick" and event["event_time"] > entry.append_ms + FUTURE_MS:
        return None, "too_far_ahead"
    if event["type"] == "purchase" and len(event["items"]) > 1:
        return None, "unsplit_purchase"
    return event, None


def _tick_time(entry: LogEntry, event_time: int, newest: int, moved: int) -> int:
    """Return the time of a tick: what passed between Kafka's stamps, if the tick says something else."""
    expected = newest + max(0, entry.append_ms - moved)
    wrong = moved >= 0 and abs(event_time - expected) > 250
    return min(expected if wrong else event_time, entry.append_ms)


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


def _place_waiting(
    expected: Expected,
    groups: dict[tuple[str, int], list[Member]],
    waiting: list[Member],
    watermarks: list[int],
    window_ms: int,
) -> None:
    """Give each event without `search_time` to the latest list before it that shows its product, else call it orphan.

    A list that came after an earlier one had closed came too late to be preferred to it.
    """
    lists: dict[str, list[tuple[int, list[Member]]]] = defaultdict(list)
    for (search_id, search_time), members in sorted(groups.items()):
        shown = [member for member in members if member.event["type"] == "impression"]
        if shown:
            lists[search_id].append((search_time, shown))
    for member in waiting:
        search_id = _search(member.event)[0] or ""
        products = _products(member.event)
        fitting: list[tuple[int, int]] = []
        for search_time, shown in lists[search_id]:
            came = [one.number for one in shown if not products or products & _products(one.event)]
            if came and search_time <= member.event["event_time"] and member.happened <= search_time + window_ms:
                fitting.append((search_time, min(came)))
        for search_time, _ in fitting:
            closes = next((n for n, mark in enumerate(watermarks) if mark > search_time + window_ms), len(watermarks))
            later = any(other > search_time and came < closes for other, came in fitting)
            if member.number < closes and not later:
                groups[search_id, search_time].append(member)
                break
        else:
            _aside(expected, member.entry, "orphan", "no_impression")


def _parts(event: Json) -> list[Json]:
    """Return the parts of an event that name a product."""
    parts = event.get("slots", event.get("items"))
    return [event] if parts is None else list(parts)


def _products(event: Json) -> set[str]:
    """Return the products that an event names."""
    return {part["product_id"] for part in _parts(event)}


def _close(expected: Expected, partition: int, search: tuple[str, int], deadline: int, members: list[Member]) -> None:
    """Decide on the events of one search."""
    once: dict[tuple[str, str], Member] = {}
    for member in sorted(members, key=lambda one: (one.event["event_time"], one.number)):
        once.setdefault((member.event["type"], member.event["event_id"]), member)
    impressions = [member for member in once.values() if member.event["type"] == "impression"]
    others = [member for member in once.values() if member.event["type"] != "impression"]
    expected.outcomes["duplicate"] += len(members) - len(once)
    if not impressions:
        for member in others:
            _aside(expected, member.entry, "orphan", "no_impression")
        return
    pages, slots = _pages(impressions)
    counted = _orders_once(others)
    expected.outcomes["duplicate"] += len(once) - len(pages) - len(counted)
    expected.outcomes["joined"] += len(pages) + len(counted)
    expected.searches[search] = _joined(partition, deadline, pages, slots, counted)


def _pages(impressions: list[Member]) -> tuple[list[Member], list[Json]]:
    """Return the impressions that are pages of one list, and the slots of that list."""
    pages: list[Member] = []
    shown: dict[int, Json] = {}
    by_place = sorted(
        impressions,
        key=lambda one: (min([slot["position"] for slot in one.event["slots"]] or [10**9]), one.event["event_id"]),
    )
    for page in by_place:
        slots = {slot["position"]: slot for slot in page.event["slots"]}
        contradicts = any(shown[n]["product_id"] != slots[n]["product_id"] for n in slots if n in shown)
        if not pages or (not contradicts and set(slots) - set(shown)):
            pages.append(page)
            shown.update({n: slot for n, slot in slots.items() if n not in shown})
    listed: list[Json] = []
    for _, slot in sorted(shown.items()):
        known = [one for one in listed if one["product_id"] == slot["product_id"] and not one.get("sponsored")]
        if slot.get("sponsored") or not known:
            listed.append(slot)
    return pages, listed


def _orders_once(events: list[Member]) -> list[Member]:
    """Leave out lines of an order that stood in another event before."""
    first: dict[tuple[str, str], str] = {}
    for member in sorted(events, key=lambda one: (one.event["event_time"], one.event["event_id"])):
        if member.event["type"] == "purchase":
            line = (member.event["order_id"], member.event["items"][0]["product_id"])
            first.setdefault(line, member.event["event_id"].split("#")[0])
    return [
        member
        for member in events
        if member.event["type"] != "purchase"
        or first[member.event["order_id"], member.event["items"][0]["product_id"]]
        == member.event["event_id"].split("#")[0]
    ]


def _joined(partition: int, deadline: int, pages: list[Member], listed: list[Json], others: list[Member]) -> Json:
    """Return a closed search."""
    impression = pages[0].event
    empty = {"sponsored": False, "pinned": False, "in_stock": True, "clicked": False}
    slots = [{**empty, "cart_quantity": 0, "purchase_quantity": 0, **slot} for slot in listed]
    unlisted = 0
    for member in sorted(others, key=lambda one: one.event["type"] != "click"):
        named = [(part, _slot_of(part, slots, member.event["type"])) for part in _parts(member.event)]
        unlisted += any(slot is None for _, slot in named)
        for part, slot in named:
            if slot is not None:
                _note(slot, member.event["type"], part, member.happened)
    everything = [*pages, *others]
    denied = any(member.event.get("consent") == "denied" for member in everything)
    persons = {name: impression[name] for name in PERSONS if impression.get(name) and not denied}
    return {
        "search_id": impression["search_id"],
        "search_time": impression["event_time"],
        "closed_at": deadline,
        "session_id": impression["session_id"],
        "persons": {name: _stand_in(person) for name, person in persons.items()},
        "query": impression["query"],
        "synthetic": any(member.event.get("synthetic", False) for member in everything),
        "denied": denied,
        "ranking": impression.get("ranking", {}),
        "cell": [
            impression.get("surface", ""),
            impression.get("device", ""),
            impression.get("layout", "list"),
            impression.get("columns", 1),
            "visible" if any("visible_ms" in slot for slot in slots) else "examined",
        ],
        "slots": slots,
        "unlisted": unlisted,
        "origins": [
            {"topic": "search-events", "partition": partition, "offset": offset}
            for offset in sorted(member.entry.offset for member in everything)
        ],
    }


def _stand_in(person: str) -> str:
    """Return what stands for a person: 64 hexadecimal digits do already."""
    is_one = len(person) == 64 and set(person) <= set("0123456789abcdef")
    return person if is_one else hmac.new(PERSON_KEY, person.encode(), hashlib.sha256).hexdigest()


def _slot_of(part: Json, slots: list[Json], kind: str) -> Json | None:
    """Return the slot that an event means: by position, else the one that was clicked, else the organic one."""
    same = [slot for slot in slots if slot["product_id"] == part["product_id"]]
    exact = [slot for slot in same if slot["position"] == part.get("position")]
    clicked = [slot for slot in same if slot["clicked"] and kind != "click"]
    usual = sorted(clicked or same, key=lambda slot: (slot["sponsored"], slot["position"]))
    return next(iter([*exact, *usual]), None)


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


def _pair(expected: Expected, search: Json, looks: Looks) -> None:
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
    pairs = _pairs(search, slots, max(slot["position"] for slot in engaged), looks)
    expected.search_outcomes["paired" if pairs else "unpaired/no_rejected"] += 1
    for pair in pairs:
        expected.pairs[pair["pair_id"]] = pair


def _pairs(search: Json, slots: list[Json], last_click: int, looks: Looks) -> list[Json]:
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
    return [_pair_message(search, looks, *one) for one in found]


def _pair_id(search: Json, chosen: Json, rejected: Json) -> str:
    """Return the id of a pair."""
    identity = [search["search_id"], chosen["product_id"], rejected["product_id"], "click", 1]
    return hashlib.sha256(json.dumps(identity, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _pair_message(search: Json, looks: Looks, pair_id: str, chosen: Json, rejected: Json, rate: float) -> Json:
    """Return a pair as it stands on the topic."""
    (looked_at, version), (passed, _) = (looks.at(search, one["position"]) for one in (chosen, rejected))
    value, ratio = VALUE[_grade(chosen)], min(1.0, passed / looked_at)
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
        "propensity_version": version,
        "filters": [],
        **releases,
        "arm": ranking.get("arm", "live"),
        "event_time": chosen.get("click_time", search["search_time"]),
        "closed_at": search["closed_at"],
        "origins": search["origins"],
        "rule_version": 1,
    }

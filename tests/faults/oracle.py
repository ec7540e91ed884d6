"""What join and pairs must say about a log, computed a second time from the words of the interfaces alone.

It shares no code with `streams/join`: no heap, no watermark object, no replay. It looks at the whole log at once, in
plain dictionaries, and may therefore be slow and simple.
"""

import hashlib
import hmac
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.faults.pair_oracle import Looks, pairs_of

FUTURE_MS = 300_000
PERSONS = ("client_id", "user_id")
PERSON_KEY = b"the key of the tests"

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
        outcome, pairs = pairs_of(search, looks)
        expected.search_outcomes[outcome] += 1
        expected.pairs |= {pair["pair_id"]: pair for pair in pairs}
    return expected


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

"""The log that the stream bench reads: one list and eight events for each search, the same bytes for the same seed."""

import random
from collections.abc import Iterator
from typing import Any, Final

import orjson

from contracts.topics import partition_for
from streams.transport.output import OutRecord

EVENTS_PER_SEARCH: Final = 9
SLOTS: Final = 10
SEARCH_EVERY_MS: Final = 10
"""Event time between two searches; with a window of seconds a few hundred are open at a time."""


def bench_log(searches: int, *, seed: int, start_ms: int, partitions: int) -> dict[int, list[OutRecord]]:
    """Return the records of each partition, in event time."""
    rng = random.Random(seed)
    timed = sorted(
        (
            (event["event_time"], number, event)
            for number in range(searches)
            for event in _search(rng, number, start_ms + number * SEARCH_EVERY_MS)
        ),
        key=lambda one: one[:2],
    )
    log: dict[int, list[OutRecord]] = {partition: [] for partition in range(partitions)}
    for _, _, event in timed:
        key = event["search_id"].encode()
        log[partition_for(key, partitions)].append(OutRecord(key, orjson.dumps(event)))
    return log


def _search(rng: random.Random, number: int, at_ms: int) -> Iterator[dict[str, Any]]:
    """Yield the events of one search."""
    search_id = f"bench-{number:08d}"
    listed = [f"P-{rng.randrange(100_000)}-{position}" for position in range(1, SLOTS + 1)]
    slots = [{"product_id": product, "position": n, "price": 499.0} for n, product in enumerate(listed, start=1)]
    ranking = {"ranker": "millrace", "query_release": 3, "product_release": 1, "arm": "live"}
    shown = {"query": f"quiet fridge {number % 500}", "slots": slots, "ranking": ranking}
    yield {**_envelope("impression", number, 0, at_ms), "search_id": search_id, **shown}
    for sequence in range(1, EVENTS_PER_SEARCH):
        kind = ("click", "dwell", "view", "cart")[sequence % 4]
        product = rng.choice(listed)
        what: dict[str, Any] = {"product_id": product}
        if kind == "view":
            what = {"slots": [{"product_id": one, "visible_ms": 1_800} for one in listed[:6]]}
        if kind == "dwell":
            what["dwell_ms"] = rng.randrange(60_000)
        envelope = _envelope(kind, number, sequence, at_ms + rng.randrange(1, 2_000))
        yield {**envelope, "search_id": search_id, "search_time": at_ms, **what}


def _envelope(kind: str, number: int, sequence: int, time_ms: int) -> dict[str, Any]:
    """Return what every event carries."""
    return {
        "schema_version": 1,
        "type": kind,
        "event_id": f"{number:08x}-{sequence}",
        "event_time": time_ms,
        "session_id": f"k{number % 5_000}",
        "client_id": f"c{number % 3_000}",
        "locale": "en-IN",
        "device": "mobile",
        "surface": "search",
    }

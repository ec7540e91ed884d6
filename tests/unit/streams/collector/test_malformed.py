"""Whatever is sent is answered: thousands of bodies that no careful site sends, the same ones in every run."""

import gzip
import json
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any, Final

import structlog

from contracts import structs, wire
from contracts.catalog import CATALOG_CHANGE
from contracts.pairs import CURATED_PAIR
from contracts.topics import CATALOG, CURATED_PAIRS, MOST_SENT_BYTES, SEARCH_EVENTS
from streams.collector.intake import OutgoingRecord
from tests.support.collector import NOW_MS, POLICY, SECRET, Running, click, impression, product, purchase

ITEMS: Final = 20_000
ITEMS_PER_BODY: Final = 20
BROKEN_BODIES: Final = 1_000

READERS: Final[dict[str, Callable[[bytes], Any]]] = {
    SEARCH_EVENTS: structs.SEARCH_RECORD.decode,
    CATALOG: lambda value: wire.decode(value, CATALOG_CHANGE),
    CURATED_PAIRS: lambda value: wire.decode(value, CURATED_PAIR),
}
GOOD: Final[dict[str, list[dict[str, Any]]]] = {
    "events": [
        click(sent_at=NOW_MS - 4_000, user_id="u1", consent="granted", campaign={"name": "diwali"}),
        impression(columns=4, ranking={"ranker": "own", "exploration": {"policy": "none", "seed": 1}}),
        purchase("s1", "s2", None, currency="INR"),
        {**click(type="view"), "slots": [{"product_id": "P-1", "position": 1, "visible_ms": 900}]},
        click(type="dwell", dwell_ms=9_000, click_id="e1"),
        click(type="cart", quantity=2, price=499.0, sent_at=NOW_MS - 3_600_000, event_time=NOW_MS - 3_604_000),
    ],
    "products": [
        product(category=["A", "B"], attributes={"litres": 190, "quiet": True}, brand="Kelto", in_stock=False),
        {"type": "product_deleted", "product_id": "P-1", "version": 9},
    ],
    "pairs": [{"query": "fridge", "chosen": "P-1", "rejected_text": "ice box", "weight": 2.0, "margin": 0.5}],
}


def nested(levels: int) -> Any:
    """Return lists and objects inside one another."""
    value: Any = "deep"
    for level in range(levels):
        value = [value] if level % 2 else {"inner": value}
    return value


BOMB: Final = gzip.compress(b"[" * 5_000_000)
HOSTILE: Final[list[Any]] = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**60, 1e308, -1e308,
    NOW_MS, NOW_MS * 1_000, NOW_MS // 1_000, -NOW_MS, 946_684_799_999, 4_102_444_800_001, "", " ", "\t", "\0", "a\0b",
    "\u200b", "\ufeff", "\u202e", "\x85", "\ud83d", "\ude00", "x\ud83d", "😀", "सस्ता", "1", "null", "NaN", "e" * 257,
    "q" * 70_000, "ann@example.com", "::1", [], {}, [None], {"a": None}, {"": 1}, [[]], [{}], {"type": "click"},
    nested(3), nested(15), nested(17), nested(200), ["\ud83d"], {"\ud83d": 1}, list(range(600)),
]  # fmt: skip
HOSTILE_NAMES: Final = (
    "", "type", "event_id", "search_time", "sent_at", "items", "slots", "schema_version", "consent", "client_id", "\0",
    "\ud83d", "__class__", "__dict__", "model_extra", "model_config", "copy", "self", "email", "x" * 5_000,
)  # fmt: skip
NAMES: Final = (*HOSTILE_NAMES, *sorted({name for items in GOOD.values() for item in items for name in item}))


def spoilt(item: dict[str, Any], random: Random) -> Any:
    """Return an item with one to three things about it changed, anywhere in it."""
    changed: Any = deepcopy(item)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        inner = _containers(changed)
        place = random.choice(inner) if inner and random.random() < 0.4 else changed
        if not place or not isinstance(place, dict | list) or random.random() < 0.02:
            return deepcopy(random.choice(HOSTILE))
        key = random.choice(list(place)) if isinstance(place, dict) else random.randrange(len(place))
        match random.randrange(6):
            case 0:
                del place[key]
            case 1 | 2 if isinstance(place, dict):
                place[random.choice(NAMES)] = deepcopy(random.choice([place[key], *HOSTILE]))
            case 3 if isinstance(place, dict):
                place[random.choice(NAMES)] = place.pop(key)
            case _:
                place[key] = deepcopy(random.choice(HOSTILE))
    return changed


def _containers(value: Any) -> list[Any]:
    """Return every list and object inside a value, at any depth."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for child in children if isinstance(child, dict | list) for found in (child, *_containers(child))]


def broken(body: bytes, random: Random) -> tuple[bytes, dict[str, str]]:
    """Return a body of which the bytes themselves are wrong, and the headers it comes with."""
    place = random.randrange(len(body))
    packed = {"Content-Encoding": random.choice(["gzip", "deflate"])}
    ways: list[tuple[bytes, dict[str, str]]] = [
        (body[:place], {}),
        (body[:place] + random.randbytes(random.randint(1, 8)) + body[place:], {}),
        (body.replace(b'"s1"', random.choice([b"NaN", b"-Infinity", b"1e999", b"01", b"'s1'", b"9" * 5_000])), {}),
        (body.replace(b"s1", random.choice([b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\\ud83d", b"\\u0000", b"\0"])), {}),
        (random.choice([b"[", b'{"events":', b'{"a":[', b"-", b'"\\']) * random.randint(1, 20_000), {}),
        (b'{"events":' + b"[" * place + b"]" * place + b"}", {}),
        (random.choice([gzip, zlib]).compress(body)[: place + 9], packed),
        (BOMB, packed),
        (random.randbytes(random.randint(0, 400)), random.choice([{}, packed])),
    ]
    return random.choice(ways)


def check(record: OutgoingRecord) -> None:
    """Check that a record is what readers of its topic take, and leaves nothing open."""
    assert READERS[record.topic](record.value) is not None
    assert len(record.value) <= MOST_SENT_BYTES
    assert record.key
    assert not _nulls(json.loads(record.value)), record.value


def _nulls(value: Any) -> bool:
    """Return whether any field is null."""
    parts = [value, *_containers(value)]
    return any(inner is None for part in parts if isinstance(part, dict) for inner in part.values())


async def test_every_item_has_an_outcome_and_none_sinks_its_neighbour(running: Running) -> None:
    """Of 20,000 spoilt items each is accepted or refused by itself, and what is accepted keeps its contract."""
    random = Random(20_000)
    outcomes: Counter[str] = Counter()
    with structlog.testing.capture_logs() as lines:
        for number in range(ITEMS // ITEMS_PER_BODY):
            name = random.choice(["events", "events", "events", "products", "pairs"])
            bad = [spoilt(random.choice(GOOD[name]), random) for _ in range(ITEMS_PER_BODY)]
            fresh = {"event_id": f"good-{number}"} if name == "events" else {}
            body = json.dumps({name: [*bad, {**GOOD[name][0], **fresh}]}).encode()
            response = await running.post(f"/v1/{name}", body, headers=SECRET)
            assert response.status == 200, (name, bad, await response.text())
            results = (await response.json())["results"]
            assert len(results) == ITEMS_PER_BODY + 1
            assert results[-1]["status"] == "accepted", results[-1]
            outcomes.update(result["reason"] or result["status"] for result in results)
            for record in running.log.records:
                check(record)
            running.log.records.clear()
    assert lines == []
    assert outcomes["accepted"] > ITEMS / 10
    assert {"wrong_type", "missing", "blank", "malformed_text", "too_deep", "out_of_range", "duplicate"} <= set(
        outcomes
    )


async def test_a_body_that_is_broken_is_refused_and_never_breaks_anything(running: Running) -> None:
    """Bytes that are no JSON, no UTF-8 or not what they are packed as: 4xx with a reason, and no line in the log."""
    random = Random(1_000)
    statuses: Counter[int] = Counter()
    whole = json.dumps({"events": GOOD["events"]}).encode()
    with structlog.testing.capture_logs() as lines:
        for _ in range(BROKEN_BODIES):
            body, headers = broken(whole, random)
            response = await running.post("/v1/events", body, headers={**SECRET, **headers})
            assert response.status in {200, 400, 413}, (body[:200], await response.text())
            assert response.status == 200 or (await response.json())["reason"]
            statuses[response.status] += 1
    for record in running.log.records:
        check(record)
    assert lines == []
    assert all(statuses[code] for code in (200, 400, 413))


async def peak_bytes(running: Running, body: bytes, **headers: str) -> int:
    """Return how much memory one request takes at most."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    response = await running.post("/v1/events", body, headers={**SECRET, **headers})
    assert response.status in {400, 413}, await response.text()
    return tracemalloc.get_traced_memory()[1] - before


async def test_no_body_takes_more_memory_than_its_limit_allows(running: Running) -> None:
    """A body that unpacks to a hundred megabytes, or opens millions of brackets, costs about as much as honest text."""
    limit = POLICY.limits.secret_body_bytes
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join(bomb.compress(bytes(1_000_000)) for _ in range(100)) + bomb.flush()
    tracemalloc.start()
    try:
        honest = await peak_bytes(running, b'"' + b"x" * (limit - 2) + b'"')
        for body, headers in ((packed, {"Content-Encoding": "gzip"}), (b"[" * limit, {}), (b"\xff" * limit, {})):
            assert await peak_bytes(running, body, **headers) < honest + 4 * limit
    finally:
        tracemalloc.stop()

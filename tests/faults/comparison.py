"""What join and pairs wrote under a fault, compared with what the oracle makes of the same log."""

import json
from collections import Counter
from typing import Any

from contracts.outcomes import filter_reason
from contracts.structs import JOINED_SEARCH, encode
from contracts.topics import (
    DEAD_LETTERS,
    LATE_EVENTS,
    ORPHAN_EVENTS,
    PREFERENCE_PAIRS,
    PROPENSITIES,
    SEARCH_EVENTS,
    TRAINING_SEARCHES,
)
from service.settings import Settings
from streams.pairs.training import training_search
from tests.faults.oracle import Expected, LogEntry, expect
from tests.faults.pair_oracle import Looks, rounded
from tests.support.topics import Records, decided, join_progress, pairs_progress, read_compacted, read_lists, read_topic


def is_settled(settings: Settings) -> bool:
    """Return whether nothing is pending and pairs has read all that join wrote."""
    joined = join_progress(settings)
    closed = all(progress.counts.pending == 0 for progress in joined.values())
    read = sum(map(decided, pairs_progress(settings).values()))
    written = sum(map(len, read_lists(settings).values()))
    seen = {number: progress.next_offset for number, progress in joined.items()}
    last_events = {n: last_event_offset(own) for n, own in read_topic(settings, SEARCH_EVENTS).items()}
    return closed and read == written and all(seen.get(n, 0) > last for n, last in last_events.items())


def last_event_offset(records: list[Any]) -> int:
    """Return the offset of the newest record that is no tick."""
    return max((record.offset for record in records if b'"type":"tick"' not in record.value), default=-1)


def compare(settings: Settings) -> dict[str, int]:
    """Compare what was written with what the oracle makes of the same log; return the figures."""
    log = read_topic(settings, SEARCH_EVENTS)
    progress = join_progress(settings)
    looks = Looks(json.loads(value) for value in read_compacted(settings, PROPENSITIES).values())
    window_ms, lateness_ms = settings.join_window_ms, settings.lateness_ms
    expected: dict[int, Expected] = {}
    for number, records in log.items():
        entries = [LogEntry(r.offset, r.timestamp, r.value) for r in records if r.offset < progress[number].next_offset]
        expected[number] = expect(number, entries, window_ms=window_ms, lateness_ms=lateness_ms, looks=looks)
        check_join_ledger(
            progress[number].counts.model_dump(exclude={"schema_version"}), expected[number], len(entries)
        )
        assert progress[number].searches_closed == len(expected[number].searches)
    check_aside(settings, expected)
    repeated_searches = check_searches(read_lists(settings), expected)
    check_pairs_ledger(settings, expected, repeated_searches)
    pairs = check_pairs(read_topic(settings, PREFERENCE_PAIRS), expected)
    weighed = Counter(pair["propensity_version"] for one in expected.values() for pair in one.pairs.values())
    check_training(settings)
    events = sum(sum(one.outcomes.values()) - one.outcomes["ticks"] for one in expected.values())
    return {"events": events, "repeated_searches": repeated_searches, **pairs, "versions": len(weighed)}


def check_join_ledger(counts: dict[str, int], expected: Expected, records: int) -> None:
    """Hold that each term is what the oracle counted and that together they are all records."""
    assert {name: n for name, n in counts.items() if n} == {name: n for name, n in expected.outcomes.items() if n}
    assert sum(counts.values()) == records


def check_aside(settings: Settings, expected: dict[int, Expected]) -> None:
    """Hold that every late, orphaned or refused record stands aside with its reason, and repeats carry one id."""
    for topic, outcome in ((LATE_EVENTS, "late"), (ORPHAN_EVENTS, "orphan"), (DEAD_LETTERS, "dead_lettered")):
        for number, records in read_topic(settings, topic).items():
            found = {
                (
                    r.headers["millrace.id"],
                    int(r.headers["millrace.origin.offset"]),
                    r.headers["millrace.reason"].decode(),
                )
                for r in records
            }
            wanted = {
                (f"join:search-events:{number}:{offset}".encode(), offset, reason)
                for offset, (one, reason) in expected[number].aside.items()
                if one == outcome
            }
            assert found == wanted


def check_searches(written: Records, expected: dict[int, Expected]) -> int:
    """Hold that every search was written, repeats byte for byte; return how many repeats there were."""
    values: dict[tuple[str, int], set[bytes]] = {}
    for record in (record for own in written.values() for record in own):
        search = json.loads(record.value)
        values.setdefault((search["search_id"], search["search_time"]), set()).add(record.value)
    wanted = {identity: search for one in expected.values() for identity, search in one.searches.items()}
    assert values.keys() == wanted.keys()
    assert all(len(different) == 1 for different in values.values())
    for identity, (value,) in values.items():
        search = json.loads(value)
        assert search["origins"] == wanted[identity]["origins"]
        assert search["slots"] == wanted[identity]["slots"]
        assert search["closed_at"] == wanted[identity]["closed_at"]
    return sum(len(own) for own in written.values()) - len(values)


def check_training(settings: Settings) -> None:
    """Hold that the learner is told of every list that may be learned from, and that repeats say the same."""
    wanted: dict[tuple[str, int], bytes] = {}
    for record in (record for own in read_lists(settings).values() for record in own):
        search = JOINED_SEARCH.decode(record.value)
        training = None if filter_reason(search) else training_search(search)
        if training is not None:
            wanted[search.search_id, search.search_time] = encode(training)
    found: dict[tuple[str, int], set[bytes]] = {}
    for record in (record for own in read_topic(settings, TRAINING_SEARCHES).values() for record in own):
        told = json.loads(record.value)
        found.setdefault((told["search_id"], told["search_time"]), set()).add(record.value)
    assert found == {identity: {value} for identity, value in wanted.items()}


def check_pairs_ledger(settings: Settings, expected: dict[int, Expected], repeated_searches: int) -> None:
    """Hold that every joined search has one outcome, that of the oracle, and every repeat was recognised."""
    found: Counter[str] = Counter()
    for progress in pairs_progress(settings).values():
        counts = progress.counts
        outcomes = {f"filtered/{reason}": n for reason, n in counts.filtered.items()}
        outcomes |= {f"unpaired/{reason}": n for reason, n in counts.unpaired.items()}
        assert decided(progress) + counts.watermarks == progress.next_offset
        assert counts.pending == 0
        found.update({"paired": counts.paired, **outcomes})
    assert found.pop("filtered/duplicate", 0) == repeated_searches
    assert +found == sum((one.search_outcomes for one in expected.values()), Counter())


def check_pairs(written: Records, expected: dict[int, Expected]) -> dict[str, int]:
    """Hold that every pair is there and right, and repeats say the same."""
    wanted = {pair_id: rounded(pair) for one in expected.values() for pair_id, pair in one.pairs.items()}
    found: dict[str, bytes] = {}
    wrong = repeated = 0
    for record in (record for own in written.values() for record in own):
        pair = json.loads(record.value)
        known = found.setdefault(pair["pair_id"], record.value)
        repeated += known is not record.value
        wrong += known != record.value or rounded(pair) != wanted.get(pair["pair_id"])
    missing = len(wanted.keys() - found.keys())
    assert (missing, wrong) == (0, 0)
    return {"pairs_expected": len(wanted), "missing": missing, "wrong": wrong, "repeated": repeated}

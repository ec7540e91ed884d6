"""Lists wait for all joins: another interleaving, or a restart anywhere, changes nothing of what is decided."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.joined import CLOSING_NUMBER_HEADER, WATERMARK_HEADER, ClosedWatermark, ClosingNumber, Watermark
from contracts.progress import PairsProgress
from contracts.topics import TRAINING_SEARCHES
from contracts.wire import encode
from streams.agents.spec import Emit, Plan
from streams.pairs import partition_pairs
from streams.pairs.partition_pairs import PairsOptions, PartitionPairs
from tests.support.search_events import T0, Record

JOINS = 3
OPTIONS = PairsOptions(joins=JOINS, silence_ms=60_000, look_ahead_ms=2_000)

Written = tuple[bytes, list[tuple[str, bytes]]]
"""A record that a join wrote: value and headers."""


def listed(join: int, number: int, after_ms: int, **fields: Any) -> Written:
    """Return a list that closes so long after T0, as a join writes it."""
    slots = [{"product_id": name, "position": place} for place, name in enumerate("abcdef", start=1)]
    for name in fields.pop("clicked", ""):
        slots["abcdef".index(name)]["clicked"] = True
    times = {"search_time": T0 + after_ms - 1_000, "closed_at": T0 + after_ms}
    message = {"search_id": f"s{join}-{number}", "query": "q", "slots": slots, **times, **fields}
    told = ClosedWatermark(join, T0 + after_ms)
    headers = [(CLOSING_NUMBER_HEADER, ClosingNumber(f"{join}-0", number).encode())]
    return orjson.dumps(message), [*headers, (WATERMARK_HEADER, told.encode())]


def mark(join: int, after_ms: int, *, idle: bool = False) -> Written:
    """Return a watermark record."""
    told = ClosedWatermark(join, T0 + after_ms, idle)
    value = Watermark(type="watermark", partition=join, watermark_ms=told.watermark_ms, idle=idle)
    return encode(value), [(WATERMARK_HEADER, told.encode())]


def log_of(written: Sequence[Written], *, every_ms: int = 1) -> list[Record]:
    """Return what was written as a log."""
    return [Record(n, T0 + n * every_ms, value, headers=headers) for n, (value, headers) in enumerate(written)]


def run(log: Sequence[Record], pairs: PartitionPairs | None = None) -> tuple[PartitionPairs, list[Emit]]:
    """Feed a log to a partition's state."""
    pairs, plan = pairs or PartitionPairs(0, options=OPTIONS), Plan()
    for record in log:
        pairs.take(record, plan)
    return pairs, [one for one in plan if isinstance(one, Emit)]


def learned(emitted: Sequence[Emit]) -> list[str]:
    """Return the searches that the learner is told of, in order."""
    return [orjson.loads(one.value)["search_id"] for one in emitted if one.topic == TRAINING_SEARCHES]


def told(emitted: Sequence[Emit]) -> dict[tuple[str, bytes], list[bytes]]:
    """Return what was written, by topic and search, without what tells only where a record stood."""
    found: dict[tuple[str, bytes], list[bytes]] = {}
    for one in emitted:
        found.setdefault((one.topic, one.key), []).append(one.value)
    return found


def test_a_list_waits_until_every_join_has_passed_it() -> None:
    """And until the look-ahead is over; lists are decided in the order in which they close."""
    late, early = listed(0, 1, 5_000), listed(1, 1, 4_000)
    pairs, emitted = run(log_of([late, early, mark(0, 8_000), mark(1, 7_001)]))
    assert (emitted, pairs.progress().counts.pending) == ([], 2)
    _, emitted = run(log_of([late, early, mark(0, 8_000), mark(1, 7_001), mark(2, 6_001)]))
    assert learned(emitted) == ["s1-1"]
    _, emitted = run(log_of([late, early, mark(0, 8_000), mark(1, 7_001), mark(2, 7_001)]))
    assert learned(emitted) == ["s1-1", "s0-1"]


def test_a_partition_that_holds_nothing_open_holds_nobody_up() -> None:
    """It says so, and is waited for again as soon as it says otherwise."""
    quiet = [mark(1, 0, idle=True), mark(2, 0, idle=True)]
    _, emitted = run(log_of([*quiet, listed(0, 1, 5_000), mark(0, 7_001)]))
    assert learned(emitted) == ["s0-1"]
    _, emitted = run(log_of([*quiet, mark(1, 4_000), listed(0, 1, 5_000), mark(0, 7_001)]))
    assert learned(emitted) == []


@pytest.mark.parametrize(("closed_at", "behind_time"), [(4_000, 1), (6_999, 1), (7_000, 0)])
def test_a_list_that_comes_when_it_could_have_changed_another_is_counted(closed_at: int, behind_time: int) -> None:
    """A join that was idle and stops holds nobody up; what its lists would have changed is told, by a look ahead."""
    quiet = [mark(1, 0, idle=True), mark(2, 0, idle=True)]
    pairs, emitted = run(log_of([*quiet, listed(0, 1, 5_000), mark(0, 7_001), listed(1, 1, closed_at)]))
    assert (learned(emitted)[0], pairs.progress().behind_time) == ("s0-1", behind_time)


def test_a_join_that_fell_silent_is_waited_for_no_longer_than_that() -> None:
    """A dead worker costs a minute, by the log's own clock, and what was decided without it is counted."""
    written = [mark(2, 0, idle=True), listed(0, 1, 5_000), *(mark(0, 8_000 + n) for n in range(70))]
    pairs, emitted = run(log_of(written[:60], every_ms=1_000))
    assert learned(emitted) == []
    pairs, emitted = run(log_of(written, every_ms=1_000))
    assert learned(emitted) == ["s0-1"]
    pairs, emitted = run(log_of([*written, listed(1, 1, 4_000), mark(1, 7_001)], every_ms=1_000))
    progress = pairs.progress()
    assert learned(emitted) == ["s0-1", "s1-1"]
    assert (progress.without_silent, progress.behind_time, progress.counts.pending) == (1, 1, 0)


@pytest.mark.parametrize("in_bytes", [False, True])
def test_so_many_lists_wait_and_no_more(monkeypatch: pytest.MonkeyPatch, in_bytes: bool) -> None:
    """A join that is far behind holds no memory without end, however long lists are; the first ones go, counted."""
    log = log_of([listed(0, n, 1_000 * n) for n in range(1, 6)])
    sizes = [len(record.value or b"") for record in log]
    bound = ("MOST_WAITING_BYTES", sum(sizes[2:])) if in_bytes else ("MOST_WAITING", 3)
    monkeypatch.setattr(partition_pairs, *bound)
    pairs, emitted = run(log)
    assert learned(emitted) == ["s0-1", "s0-2"]
    assert (pairs.progress().for_want_of_room, pairs.progress().counts.pending) == (2, 3)


def test_watermarks_are_no_lists() -> None:
    """They are counted apart, and every list has one outcome or waits."""
    pairs, _ = run(log_of([mark(0, 1), listed(0, 1, 2), mark(1, 3), listed(1, 1, 9_000, synthetic=True)]))
    counts = pairs.progress().counts
    assert (counts.watermarks, counts.pending, counts.filtered) == (2, 1, {"synthetic": 1})


steps = st.tuples(
    st.integers(0, 900),
    st.sampled_from(["k1", "k2"]),
    st.sampled_from(["red shoe", "red shoe cheap", "blue hat"]),
    st.sampled_from(["", "", "a", "b", "bd", "abcdef"]),
    st.booleans(),
)


@st.composite
def joins_and_orders(draw: st.DrawFn) -> tuple[list[list[Written]], list[list[int]]]:
    """Draw what each join writes, and two orders in which that comes to stand on one partition."""
    written: list[list[Written]] = []
    for join in range(JOINS):
        at_ms, own = 0, []
        for number, (gap_ms, session, query, clicked, marked) in enumerate(draw(st.lists(steps, max_size=9)), start=1):
            at_ms += gap_ms * (1 + number % 3)
            shopper = {"session_id": session, "client_id": session}
            own.append(listed(join, number, at_ms, query=query, clicked=clicked, **shopper))
            own += [mark(join, at_ms)] if marked else []
        written.append([*own, mark(join, 1_000_000)])
    turns = [join for join, own in enumerate(written) for _ in own]
    return written, [draw(st.permutations(turns)) for _ in range(2)]


def interleaved(written: list[list[Written]], order: list[int]) -> list[Record]:
    """Return the log in which joins take turns in an order."""
    rest = [iter(own) for own in written]
    return log_of([next(rest[join]) for join in order])


@given(drawn=joins_and_orders(), stops=st.lists(st.integers(1, 60), max_size=3))
@settings(max_examples=200, deadline=None)
def test_interleavings_and_restarts_change_nothing(
    drawn: tuple[list[list[Written]], list[list[int]]], stops: list[int]
) -> None:
    """The same lists in another order, with restarts anywhere: the same pairs and training searches, once each."""
    written, (one, other) = drawn
    whole, expected = run(interleaved(written, one))
    log = interleaved(written, other)
    pairs, made, read_from = PartitionPairs(0, options=OPTIONS), list[Emit](), 0
    for stop in sorted(min(stop, len(log)) for stop in stops):
        _, emitted = run(log[read_from:stop], pairs)
        made += emitted
        progress = PairsProgress.model_validate_json(encode(pairs.progress()))
        read_from, pairs = progress.hold_offset, PartitionPairs(0, progress, options=OPTIONS)
    _, emitted = run(log[read_from:], pairs)
    assert told(made + emitted) == told(expected)
    assert Counter(learned(made + emitted)) == Counter(learned(expected))
    assert pairs.progress().counts == whole.progress().counts
    assert pairs.progress().counts.pending == 0
    assert pairs.progress().behind_time == 0

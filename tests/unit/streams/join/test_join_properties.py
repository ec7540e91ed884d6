"""Properties of the join that hold for every log, not only for the ones we thought of."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from contracts.joined import JoinedSearch
from contracts.progress import JoinProgress
from contracts.telemetry import EventOutcome
from streams.agents.spec import Emit, Plan, SetAside
from streams.join.partition_join import PartitionJoin
from tests.faults.oracle import PERSON_KEY, LogEntry, expect
from tests.support.search_events import Record, cart, click, dwell, encoded, impression, log, purchase, tick, view

WINDOW_MS, LATENESS_MS = 1_000, 200
PAGES = [(1, "abcdef"), (1, "abcdef"), (1, "abc"), (1, "xbc"), (4, "defg"), (7, "ghAa"), (1, "AbaB"), (1, "AbaB")]
"""Where a page begins, and what it shows, sponsored in capitals: lists, repeats, further pages, contradictions."""
FIELDS = (
    "search_id", "search_time", "closed_at", "session_id", "query", "synthetic", "slots", "unlisted", "origins",
)  # fmt: skip

search_ids = st.sampled_from(["s1", "s1", "s2"])
products = st.sampled_from("abcz")
offsets_ms = st.integers(0, WINDOW_MS + 100)
searches = st.tuples(search_ids, st.integers(0, 5).map(lambda n: n * 400))


def _event(draw: st.DrawFn) -> dict[str, Any]:
    """Draw one event of one of a few searches, some without the search's time, some after its window."""
    search_id, search_time = draw(searches)
    kind = draw(st.sampled_from(["impression", "click", "click", "dwell", "view", "cart", "purchase", "tick", "none"]))
    time = search_time + draw(offsets_ms)
    named: dict[str, Any] = {
        "search_id": search_id,
        "search_time_ms": draw(st.sampled_from([search_time, search_time, None])),
    }
    event_id = draw(st.sampled_from([None, None, "again"]))
    product = draw(products)
    match kind:
        case "impression":
            first, shown = draw(st.sampled_from(PAGES))
            slots = [
                {"product_id": product.lower(), "position": position, "sponsored": product.isupper()}
                for position, product in enumerate(shown, first)
            ]
            names = st.sampled_from([None, "i-0", "i-9", "again"])
            return {**impression(search_id, search_time, event_id=draw(names), client_id="c1"), "slots": slots}
        case "click":
            position = draw(st.sampled_from([None, 1, 3, 9]))
            return {**click(product, time, **named, event_id=event_id), **({"position": position} if position else {})}
        case "dwell":
            return dwell(product, draw(st.integers(0, 50_000)), time, **named, event_id=event_id)
        case "view":
            seen = draw(st.sets(products, max_size=2))
            return view({one: draw(st.integers(0, 3_000)) for one in sorted(seen)}, time, **named)
        case "cart":
            return cart(product, time, **named, consent=draw(st.sampled_from([None, "denied"])))
        case "purchase":
            order = {"order_id": draw(st.sampled_from(["O-1", "O-2"])), "event_id": draw(st.sampled_from("pqr"))}
            order["event_id"] += draw(st.sampled_from(["", "#0", "#1"]))
            return {**purchase(product, time, **named, quantity=draw(st.integers(1, 3))), **order}
        case "none":
            return cart(product, time, search_id=None, search_time_ms=None)
        case _:
            return tick(time)


events = st.composite(_event)()
JITTER_MS = st.sampled_from([0, 0, 50, LATENESS_MS, LATENESS_MS, 3 * LATENESS_MS])


def _stream(draw: st.DrawFn) -> list[dict[str, Any] | bytes]:
    """Draw events roughly in the order in which they happened, some of them later than the join waits for."""
    drawn = draw(st.lists(st.tuples(events, JITTER_MS), min_size=draw(st.sampled_from([0, 12, 25])), max_size=40))
    ordered: list[dict[str, Any] | bytes] = [
        event for event, _ in sorted(drawn, key=lambda pair: pair[0]["event_time"] + pair[1])
    ]
    if draw(st.booleans()):
        ordered.insert(draw(st.integers(0, len(ordered))), b"not json")
    return ordered


streams = st.composite(_stream)()


def _event_time(event: dict[str, Any]) -> int:
    """Return when an event happened."""
    time: int = event["event_time"]
    return time


def ended(stream: Sequence[dict[str, Any] | bytes]) -> list[dict[str, Any] | bytes]:
    """Return a stream followed by a tick that closes whatever is open."""
    return [*stream, tick(100_000)]


def run(records: Sequence[Record], join: PartitionJoin | None = None) -> tuple[PartitionJoin, Plan]:
    """Feed records to a join."""
    join = join or new_join()
    plan: Plan = []
    for record in records:
        join.take(record, plan)
    return join, plan


def new_join(progress: JoinProgress | None = None) -> PartitionJoin:
    """Return a join with the windows of these tests."""
    return PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=progress, person_key=PERSON_KEY)


def content(plan: Plan) -> list[bytes]:
    """Return the bytes of what was emitted, in order, without where it came from."""
    messages = [orjson.loads(output.value) for output in plan if isinstance(output, Emit)]
    return [orjson.dumps({name: value for name, value in m.items() if name != "origins"}) for m in messages]


def raw(plan: Plan) -> list[tuple[object, ...]]:
    """Return a plan as values that can be compared."""
    return [
        (one.key, one.value) if isinstance(one, Emit) else (one.outcome, one.reason, one.record.offset) for one in plan
    ]


@given(stream=streams, moves=st.lists(st.integers(0, LATENESS_MS), min_size=40, max_size=40))
@settings(max_examples=150, deadline=None)
def test_disorder_within_the_lateness_changes_no_byte(stream: list[dict[str, Any] | bytes], moves: list[int]) -> None:
    """The same events in any order within the lateness give the same joined searches, origins aside."""
    ordered = sorted((event for event in stream if not isinstance(event, bytes)), key=_event_time)
    delayed = sorted(zip(ordered, moves, strict=False), key=lambda pair: _event_time(pair[0]) + pair[1])
    _, straight = run(log(ended(ordered), delay_ms=LATENESS_MS))
    _, shuffled = run(log(ended([event for event, _ in delayed]), delay_ms=LATENESS_MS))
    assert content(shuffled) == content(straight)


@given(stream=streams, at=st.integers(0, 40), later=st.integers(0, 40))
@settings(max_examples=250, deadline=None)
def test_a_restart_anywhere_changes_nothing(stream: list[dict[str, Any] | bytes], at: int, later: int) -> None:
    """A process that starts from written progress and reads from the held offset goes on as if it had never stopped."""
    records = log(ended(stream))
    uninterrupted, expected = run(records)
    first, second = sorted((min(at, len(records)), min(later, len(records))))
    before, plan = run(records[:first])
    if first:
        before, between = run(
            records[before.progress().hold_offset :][: second - before.progress().hold_offset],
            new_join(before.progress()),
        )
        plan += between
        after, rest = run(records[before.progress().hold_offset :], new_join(before.progress()))
    else:
        after, rest = run(records)
    assert raw(plan + rest) == raw(expected)
    assert after.progress() == uninterrupted.progress()
    assert not after.replay_mismatch


@given(
    stream=streams,
    changed=st.integers(1, 40),
    further=st.lists(st.integers(1, 40), max_size=2),
    windows=st.sampled_from([(300, LATENESS_MS), (3_000, LATENESS_MS), (WINDOW_MS, 0), (300, 500), (3_000, 0)]),
)
@settings(max_examples=300, deadline=None)
def test_other_windows_change_nothing_about_what_was_shown_before(
    stream: list[dict[str, Any] | bytes], changed: int, further: list[int], windows: tuple[int, int]
) -> None:
    """After a restart with other windows no search is emitted a second time, and further restarts change nothing."""
    records = log(ended(stream))
    before, plan = run(records[:changed])
    expected_join, rest = _restarted(records, before, windows)
    expected = plan + rest
    identities = [(one["search_id"], one["search_time"]) for one in map(orjson.loads, content(expected))]
    assert len(set(identities)) == len(identities)
    join, stop = before, changed
    for more in further:
        stop += more
        join, between = _restarted(records[:stop], join, windows)
        plan += between
        assert not join.replay_mismatch
    join, between = _restarted(records, join, windows)
    assert raw(plan + between) == raw(expected)
    assert join.progress() == expected_join.progress()
    assert not join.replay_mismatch


def _restarted(
    records: Sequence[Record], before: PartitionJoin, windows: tuple[int, int]
) -> tuple[PartitionJoin, Plan]:
    """Go on from what a process wrote last, with windows of its own."""
    progress = before.progress()
    window_ms, lateness_ms = windows
    join = PartitionJoin(0, window_ms=window_ms, lateness_ms=lateness_ms, progress=progress)
    return run(records[progress.hold_offset :], join)


@given(stream=streams, early=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_reading_from_before_the_held_offset_changes_nothing(stream: list[dict[str, Any] | bytes], early: int) -> None:
    """A commit that trails the held offset only makes a restart read records that it skips."""
    records = log(ended(stream))
    before, plan = run(records[:early])
    after, rest = run(records, new_join(before.progress()) if records[:early] else new_join())
    _, expected = run(records)
    assert raw(plan + rest) == raw(expected)
    assert after.skipped_offsets == 0


@given(stream=streams)
@settings(max_examples=100, deadline=None)
def test_every_record_has_exactly_one_outcome(stream: list[dict[str, Any] | bytes]) -> None:
    """At every offset the counts, pending included, sum to the records read, and the plan agrees with them."""
    join, plan = new_join(), Plan()
    for number, record in enumerate(log(ended(stream)), start=1):
        join.take(record, plan)
        counts = join.counts()
        assert sum(counts.values()) == number
        assert counts["pending"] == _held(join)
    outcomes = Counter(output.outcome for output in plan if isinstance(output, SetAside))
    for outcome in (EventOutcome.LATE, EventOutcome.ORPHAN, EventOutcome.DEAD_LETTERED):
        assert join.counts()[outcome] == outcomes[outcome]
    origins = [JoinedSearch.model_validate_json(one.value).origins for one in plan if isinstance(one, Emit)]
    assert join.counts()["joined"] == sum(map(len, origins))


@given(stream=streams)
@settings(max_examples=100, deadline=None)
def test_nothing_is_left_after_the_window(stream: list[dict[str, Any] | bytes]) -> None:
    """Once event time has passed every window, nothing is pending and a restart has nothing to read again."""
    join, _ = run(log(ended(stream)))
    progress = join.progress()
    assert (progress.counts.pending, progress.open_searches) == (0, 0)
    assert progress.hold_offset == progress.next_offset


@given(stream=streams)
@settings(max_examples=100, deadline=None)
def test_a_repeated_log_repeats_its_outputs(stream: list[dict[str, Any] | bytes]) -> None:
    """The same log gives the same plan, byte for byte."""
    assert raw(run(log(ended(stream)))[1]) == raw(run(log(ended(stream)))[1])


@given(stream=streams, late=events)
@settings(max_examples=100, deadline=None)
def test_a_straggler_never_reopens_a_closed_search(stream: list[dict[str, Any] | bytes], late: dict[str, Any]) -> None:
    """An event that arrives when its search was closed opens nothing, whatever it is."""
    records = log(ended(stream))
    join, _ = run(records)
    join.take(Record(len(records), records[-1].timestamp, encoded(late)), [])
    assert join.open_searches == 0
    assert join.progress().counts.pending == 0


def _held(join: PartitionJoin) -> int:
    """Count what is pending from the state itself."""
    return sum(search.size for search in join._searches) + len(list(join._waiting))


@given(stream=streams)
@settings(max_examples=300, deadline=None)
def test_every_log_gives_what_the_oracle_says(stream: list[dict[str, Any] | bytes]) -> None:
    """Outcomes, reasons, and every field of every joined search are those of a second reading of the rules."""
    known: dict[tuple[str, str, int], dict[str, Any]] = {}
    for event in (one for one in stream if not isinstance(one, bytes) and "event_id" in one):
        first = known.setdefault((event["type"], event["event_id"], event["event_time"]), event)
        assume(first == event)  # which of two different events of one id and time counts, the rules leave open
    records = log(ended(stream))
    join, plan = run(records)
    entries = [LogEntry(record.offset, record.timestamp, record.value or b"") for record in records]
    expected = expect(0, entries, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS)
    assert {name: n for name, n in join.counts().items() if n} == +expected.outcomes
    assert {one.record.offset: (one.outcome, one.reason) for one in plan if isinstance(one, SetAside)} == expected.aside
    assert {(one["search_id"], one["search_time"]): one for one in map(_read, plan) if one} == expected.searches


def _read(output: Emit | SetAside) -> dict[str, Any]:
    """Return a joined search in the oracle's form; nothing if it is none."""
    if isinstance(output, SetAside):
        return {}
    message = orjson.loads(output.value)
    persons = {name: message[name] for name in ("client_id", "user_id") if name in message}
    denied = message.get("consent") == "denied"
    seen = "visible" if any("visible_ms" in slot for slot in message["slots"]) else "examined"
    page = {"surface": "", "device": "", "layout": "list", "columns": 1}
    cell = [*(message.get(name, absent) for name, absent in page.items()), seen]
    read = {name: message[name] for name in FIELDS}
    return {**read, "persons": persons, "denied": denied, "ranking": {}, "cell": cell}


@given(stream=streams, at=st.integers(0, 40), later=st.integers(0, 40))
@settings(max_examples=250, deadline=None)
def test_a_saved_state_is_worth_a_replay(stream: list[dict[str, Any] | bytes], at: int, later: int) -> None:
    """A process that takes over a saved state, old or fresh, goes on byte for byte like one that never stopped."""
    records = log(ended(stream))
    uninterrupted, expected = run(records)
    first, second = sorted((1 + min(at, len(records) - 1), 1 + min(later, len(records) - 1)))
    saving, plan = run(records[:first])
    snapshot = saving.snapshot()
    stopped, between = run(records[first:second], saving)
    progress = stopped.progress()
    after = new_join(progress)
    assert snapshot is not None
    assert after.restore(snapshot) == (progress.hold_offset <= first and progress.hold_offset < second)
    after, rest = run(records[after.next_offset :], after)
    assert raw(plan + between + rest) == raw(expected)
    assert after.progress() == uninterrupted.progress()
    assert not after.replay_mismatch

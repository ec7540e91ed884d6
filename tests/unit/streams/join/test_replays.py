"""What a restart reads again, and what moves a quiet partition. Window 1,000 ms, lateness 100 ms."""

import pytest

from contracts.joined import CLOSING_NUMBER_HEADER
from streams.agents.spec import Emit, Plan, SetAside
from streams.join.partition_join import PartitionJoin
from tests.support.search_events import T0, Record, at, cart, click, encoded, impression, log, tick

WINDOW_MS, LATENESS_MS = 1_000, 100
CLOSES_ALL = tick(10_000)


def run(records: list[Record]) -> tuple[PartitionJoin, Plan]:
    """Feed records to a join."""
    join, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS), Plan()
    for record in records:
        join.take(record, plan)
    return join, plan


def test_the_watermark_never_runs_backwards() -> None:
    """An old event changes nothing about how far event time has come."""
    join, _ = run(log([tick(5_000), click(time_ms=100)]))
    assert join.progress().watermark_ms == at(5_000) - LATENESS_MS


def test_ticks_count_on_from_the_newest_event() -> None:
    """A tick's time is the newest event time plus what has passed since that record arrived."""
    join = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS)
    assert join.tick_time_ms(T0) is None
    join.take(Record(0, T0 + 70, encoded(impression(time_ms=20))), [])
    join.take(Record(1, T0 + 90, encoded(click(time_ms=10))), [])
    assert join.tick_time_ms(T0 + 2_070) == T0 + 2_020


def test_no_tick_is_written_while_nothing_is_undecided() -> None:
    """Ticks close searches; where none is open and no event waits, the log stays as it is."""
    join, _ = run(log([impression(), CLOSES_ALL]))
    assert join.tick_time_ms(at(20_000)) is None
    join.take(Record(2, at(20_000), encoded(click("a", time_ms=20_000, search_time_ms=None))), [])
    assert join.tick_time_ms(at(21_000)) == at(21_000)


@pytest.mark.parametrize("ahead_ms", [-360_000, -100, 0, 100, 100_000, 360_000])
def test_a_worker_whose_clock_is_wrong_closes_searches_neither_early_nor_late(ahead_ms: int) -> None:
    """Ticks move event time by what passed between Kafka's stamps, though it may be far behind them itself."""
    join, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS), Plan()
    join.take(Record(0, at(50_000), encoded(impression())), plan)
    for offset, now_ms in enumerate((at(50_900), at(57_000)), start=1):
        tick_ms = join.tick_time_ms(now_ms + ahead_ms)
        assert tick_ms is not None
        join.take(Record(offset, now_ms + 10, encoded(tick(tick_ms - T0))), plan)
        assert len(plan) == offset - 1
        assert abs(join.progress().watermark_ms - (now_ms - 50_000 - LATENESS_MS)) <= 250
    assert join.counts()["dead_lettered"] == 0


def test_a_hold_stands_at_the_oldest_open_search() -> None:
    """A restart reads again from the first record of the oldest search that is not closed."""
    join, _ = run(log([impression("s1"), impression("s2", 600), impression("s3", 1_150)]))
    assert (join.progress().hold_offset, join.progress().next_offset) == (1, 3)


def test_a_list_that_took_a_waiting_event_holds_the_log_while_the_event_might_wait() -> None:
    """A restart after it closed must not see its event wait for another list: the event's window holds the log."""
    events = [
        impression(),
        impression(time_ms=900, products="xyz"),
        click("a", time_ms=950, search_time_ms=None),
        tick(1_101),
        tick(2_000),
        tick(2_051),
    ]
    held = [run(log(events[:stop]))[0].progress().hold_offset for stop in range(1, 7)]
    assert held == [0, 0, 0, 0, 0, 6]
    whole, expected = run(log([*events, CLOSES_ALL]))
    for stop in range(1, len(events)):
        before, plan = run(log(events[:stop]))
        after = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=before.progress())
        for record in log([*events, CLOSES_ALL])[before.progress().hold_offset :]:
            after.take(record, plan)
        assert [one.value for one in plan if isinstance(one, Emit)] == [
            one.value for one in expected if isinstance(one, Emit)
        ]
        assert after.progress() == whole.progress()


def test_the_first_record_after_a_lost_replay_is_not_lost_too() -> None:
    """Where retention ate everything that was to be read again, what comes next is new and its outputs are written."""
    before, _ = run(log([impression("s1"), impression("s2", 10)]))
    after, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=before.progress()), Plan()
    after.take(Record(2, at(30), b"not json"), plan)
    assert [str(one.outcome) for one in plan if isinstance(one, SetAside)] == ["dead_lettered"]
    assert (after.replaying, after.replay_mismatch) == (False, True)


def test_what_was_closed_before_records_were_lost_is_not_written_again() -> None:
    """A replay that lacks the records which closed a search drops it where the last process had come."""
    events = [impression("s1"), impression("s2", 10), click("a", 20), tick(1_101), impression("s3", 1_200)]
    before, emitted = run(log(events))
    progress = before.progress().model_copy(update={"hold_offset": 0, "hold_watermark_ms": -1})
    after, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=progress), Plan()
    for record in (*log(events)[:3], Record(5, at(1_300), encoded(tick(900_000)))):
        after.take(record, plan)
    assert (len(emitted), plan, after.skipped_offsets) == (2, [], 2)
    assert (after.open_searches, after.replay_mismatch) == (0, True)
    assert after.progress().watermark_ms == at(1_200)


def test_lost_records_are_noticed() -> None:
    """A hole in the offsets means that Kafka deleted what nobody had read, and what was pending cannot be rebuilt."""
    before, _ = run(log([impression("s1"), impression("s2", 10)]))
    after = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=before.progress())
    after.take(Record(5, T0 + 20, encoded(impression("s3", 20))), [])
    assert after.skipped_offsets == 5
    assert after.replay_mismatch


def test_a_restart_repeats_what_ticks_did() -> None:
    """How far they moved event time depends on records before the held offset: the progress says what is needed."""
    stamped = [
        (50_000, impression("s1")),
        (50_100, cart(time_ms=500, search_id=None)),
        (50_300, impression("s2", 300)),
        (50_400, impression("s3", 90)),
        (50_800, tick(900_000)),
        (50_810, click("a", 900, "s3", None, "too late for it")),
        (50_900, click("a", 900, "s2", 300)),
        (60_000, tick(900_000)),
    ]
    records = [Record(offset, at(append_ms), encoded(event)) for offset, (append_ms, event) in enumerate(stamped)]
    whole, expected = run(records)
    assert [one.reason for one in expected if isinstance(one, SetAside)] == ["no_search", "no_impression"]
    for stop in range(1, len(records)):
        before, plan = run(records[:stop])
        after = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=before.progress())
        for record in records[before.progress().hold_offset :]:
            after.take(record, plan)
        assert plan == expected
        assert after.progress() == whole.progress()


def test_what_a_killed_join_sets_aside_again_has_the_numbers_that_it_had() -> None:
    """Whoever counts late events and orphans knows a repeat by its number; each outcome has numbers of its own."""
    records = log([
        impression("s1"),
        click("a", time_ms=5_000),
        cart("b", search_id=None, search_time_ms=None, time_ms=5_100),
        click("c", search_id="s9", time_ms=5_200, search_time_ms=5_150),
        impression("s2", 5_300),
        cart("d", search_id="s1", time_ms=5_400),
        CLOSES_ALL,
    ])  # fmt: skip
    _, at_once = run(records)
    first, before = run(records[:3])
    again, plan = PartitionJoin(0, window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, progress=first.progress()), Plan()
    for record in records[first.progress().hold_offset :]:
        again.take(record, plan)
    numbers = [(one.outcome, one.record.offset, one.headers) for one in at_once if isinstance(one, SetAside)]
    assert [(one.outcome, one.record.offset, one.headers) for one in [*before, *plan] if isinstance(one, SetAside)] == (
        numbers
    )
    told = [(outcome, dict(headers)[CLOSING_NUMBER_HEADER].rpartition(b":")[2]) for outcome, _, headers in numbers]
    assert told == [("late", b"1"), ("orphan", b"1"), ("late", b"2"), ("orphan", b"2")]

"""Windows that change at a restart: what was shown before keeps its own. Window 1,000 ms, lateness 100 ms at first."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from contracts.progress import JoinProgress
from streams.agents.spec import Emit, Plan, SetAside
from streams.join.partition_join import PartitionJoin
from tests.support.search_events import Record, at, click, encoded, impression, log, tick

WINDOW_MS, LATENESS_MS = 1_000, 100


def joined(
    records: Sequence[Record],
    *,
    window_ms: int = WINDOW_MS,
    lateness_ms: int = LATENESS_MS,
    progress: JoinProgress | None = None,
) -> tuple[PartitionJoin, Plan]:
    """Feed records to the join of a process that has these settings."""
    join, plan = PartitionJoin(0, window_ms=window_ms, lateness_ms=lateness_ms, progress=progress), Plan()
    for record in records:
        join.take(record, plan)
    return join, plan


def closed(plan: Plan) -> dict[str, int]:
    """Return search -> deadline of what was emitted."""
    messages: list[dict[str, Any]] = [orjson.loads(one.value) for one in plan if isinstance(one, Emit)]
    return {message["search_id"]: message["closed_at"] for message in messages}


def test_other_windows_after_a_restart_do_not_rewrite_the_past() -> None:
    """What was open keeps its deadline; only lists shown from then on have the new one."""
    records = log([impression("s1"), tick(500), impression("s2", 600), tick(1_101)])
    before, _ = joined(records[:2])
    after, plan = joined(records, window_ms=5_000, progress=before.progress())
    assert closed(plan) == {"s1": at(1_000)}
    assert after.open_searches == 1


def test_a_longer_window_after_a_restart_opens_no_closed_search_again() -> None:
    """A search that was closed under the old window stays closed: what comes for it is late, its impression too."""
    stragglers = [impression(event_id="again"), click("b", 900), click("c", 900, search_time_ms=None)]
    records = log([impression(), click(), tick(1_101), *stragglers, tick(20_000)])
    before, emitted = joined(records[:3])
    _, plan = joined(records, window_ms=5_000, progress=before.progress())
    assert [str(one.outcome) for one in plan if isinstance(one, SetAside)] == ["late", "late", "orphan"]
    assert (len(emitted), closed(plan)) == (1, {})


@pytest.mark.parametrize("window_ms", [300, 5_000])
def test_a_search_keeps_its_window_over_further_restarts(window_ms: int) -> None:
    """What was open when the setting changed closes as before, though the process that rebuilds it never had it."""
    records = log([impression("s1"), impression("s2", 500), impression("s3", 700), tick(10_000)])
    before, _ = joined(records[:2])
    changed, _ = joined(records[:3], window_ms=window_ms, progress=before.progress())
    again, plan = joined(records, window_ms=window_ms, progress=changed.progress())
    assert closed(plan) == {"s1": at(1_000), "s2": at(1_500), "s3": at(700 + window_ms)}
    assert not again.replay_mismatch


def test_an_earlier_window_is_forgotten_once_nothing_of_it_can_be_open() -> None:
    """Progress names it only as long as a restart might need it."""
    records = log([impression("s1"), impression("s2", 600)])
    before, _ = joined(records[:1])
    after, _ = joined(records, window_ms=5_000, lateness_ms=50, progress=before.progress())
    (earlier,) = after.progress().earlier_windows or ()
    assert (earlier.until_ms, earlier.until_offset) == (at(1), 1)
    assert (earlier.window_ms, earlier.lateness_ms) == (WINDOW_MS, LATENESS_MS)
    after.take(Record(2, at(90_000), encoded(tick(90_000))), [])
    assert after.progress().earlier_windows is None


def test_ticks_never_run_ahead_of_arrivals_after_lateness_was_raised() -> None:
    """The watermark stands still for a while then: restarts in that time must not take it for a later newest event."""
    records = log([impression("s1"), tick(2_000)])
    first, _ = joined(records)
    second, _ = joined([], lateness_ms=900, progress=first.progress())
    third, _ = joined([], lateness_ms=900, progress=second.progress())
    now_ms = records[-1].timestamp + 10
    assert first.tick_time_ms(now_ms) == second.tick_time_ms(now_ms) == third.tick_time_ms(now_ms)


def fast(event: dict[str, Any], offset: int) -> Record:
    """Return an event of a sender whose clock is two minutes ahead."""
    return Record(offset, event["event_time"] - 120_000, encoded(event))


@pytest.mark.parametrize("waits", [False, True], ids=["list", "waiting event"])
def test_what_a_fast_clock_sent_keeps_its_window_too(waits: bool) -> None:
    """Its times are ahead of event time; a changed window must not hold for them in one restart and not in the next."""
    event = click("a", 120_000, search_time_ms=None) if waits else impression("s1", 120_000)
    records = [fast(event, 0), *log([tick(120_000), impression("s2", 124_000), tick(140_000)], first_offset=1)]
    before, _ = joined(records[:1])
    once, expected = joined(records, window_ms=5_000, progress=before.progress())
    changed, plan = joined(records[:2], window_ms=5_000, progress=before.progress())
    again, rest = joined(records[changed.progress().hold_offset :], window_ms=5_000, progress=changed.progress())
    assert [one.record.offset if isinstance(one, SetAside) else one.value for one in plan + rest] == [
        one.record.offset if isinstance(one, SetAside) else one.value for one in expected
    ]
    assert again.progress() == once.progress()
    assert len([one for one in expected if isinstance(one, SetAside)]) == waits


def test_an_event_waits_for_a_list_whose_window_was_longer() -> None:
    """After the window was shortened, its list may close long after the event's own window is over."""
    records = log([impression(), click("a", 800, search_time_ms=None), tick(1_050), tick(2_000)])
    before, _ = joined(records[:1])
    after, plan = joined(records, window_ms=100, progress=before.progress())
    assert (closed(plan), after.counts()["joined"]) == ({"s1": at(1_000)}, 2)

"""Lag is measured from the log's end and the group's own position, with held records apart."""

from contracts.progress import JoinProgress
from contracts.topics import CATALOG, PREFERENCE_PAIRS, SEARCH_EVENTS
from millrace.watch.facts import KafkaFacts
from millrace.watch.lag import lag_report, partition_lags
from service.kafka import Committed, OffsetRange


def test_the_join_is_measured_by_its_progress_not_by_its_held_commit() -> None:
    """The join commits below what it read; its lag ends at what it read, the rest is held."""
    progress = JoinProgress(partition=0, next_offset=90, hold_offset=60, watermark_ms=1)
    facts = KafkaFacts(
        ends={(SEARCH_EVENTS, 0): OffsetRange(0, 100)},
        committed={"join": {(SEARCH_EVENTS, 0): Committed(60, "")}},
        progress={"join": {0: progress}},
    )
    (row,) = partition_lags(facts)
    assert (row.group, row.lag, row.held) == ("join", 10, 30)


def test_a_group_that_never_committed_lags_by_everything_kept() -> None:
    """Records that retention deleted are not lag."""
    (row,) = partition_lags(KafkaFacts(ends={(PREFERENCE_PAIRS, 0): OffsetRange(40, 100)}))
    assert (row.position, row.lag) == (40, 60)


def test_totals_name_the_worst_partition() -> None:
    """A group's total is the sum, and the worst partition is not hidden by an average."""
    ends = {(CATALOG, 0): OffsetRange(0, 10), (CATALOG, 1): OffsetRange(0, 100)}
    committed = {"indexer": {(CATALOG, 0): Committed(10, ""), (CATALOG, 1): Committed(50, "")}}
    report = lag_report(KafkaFacts(ends=ends, committed=committed))
    assert report["groups"]["indexer"] == {"records": 50, "held": 0, "worst_partition": 50}
    assert report["groups"]["trainer"]["records"] == 0

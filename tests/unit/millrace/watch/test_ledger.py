"""Lag goes from the log's end to the group's position; ledgers balance exactly when every record is accounted for."""

from dataclasses import replace

import pytest

from contracts.errors import DependencyDown
from contracts.progress import CatalogCounts, EventCounts, JoinProgress, PairsProgress, SearchCounts
from contracts.topics import (
    CATALOG,
    CURATED_PAIRS,
    JOIN_PROGRESS,
    JOINED_SEARCHES,
    LATE_EVENTS,
    PAIRS_PROGRESS,
    PREFERENCE_PAIRS,
    SEARCH_EVENTS,
    TRAINING_SEARCHES,
)
from millrace.watch.kafka_view import COUNTS, UNREAD, KafkaView, Tail, catalog_counts
from millrace.watch.ledger import (
    agent_ledger,
    event_ledger,
    lag_report,
    ledger_report,
    partition_lags,
    unknown_report,
)
from service.kafka import Committed, OffsetRange
from streams.attribution.conversions import LATE, AttributionProgress
from streams.pairs.partition_pairs import PAIRS
from streams.registry import group_topics
from tests.support.deployment import busy_kafka


def join_progress(**changes: object) -> JoinProgress:
    """Return a join that read 100 records: 90 events and 10 ticks."""
    counts = EventCounts(joined=70, late=5, orphan=4, duplicate=3, dead_lettered=2, pending=6, ticks=10)
    values = {"partition": 0, "next_offset": 100, "hold_offset": 90, "watermark_ms": 1, "counts": counts, **changes}
    return JoinProgress.model_validate(values)


def kafka(**changes: object) -> KafkaView:
    """Return a view in which everything is accounted for."""
    metadata = CatalogCounts(catalogue=48, dead_lettered=2).model_dump_json()
    values: dict[str, object] = {
        "ends": {(SEARCH_EVENTS, 0): OffsetRange(0, 107), (CATALOG, 0): OffsetRange(0, 60)},
        "committed": {"indexer": {(CATALOG, 0): Committed(50, metadata)}},
        "progress": {"join": {0: join_progress()}},
        "tails": {0: Tail(events=4, ticks=3)},
        **changes,
    }
    return KafkaView(**values)  # type: ignore[arg-type]  # a test builder takes any field


def test_every_event_is_accounted_for() -> None:
    """Accepted events are the log's records without ticks, and their outcomes sum to them."""
    ledger = event_ledger(kafka())
    assert ledger["accepted"] == (107 - 13) + 60
    assert ledger["pending"] == 6 + 4 + 10
    assert ledger["dead_lettered"] == 2 + 2
    assert ledger["balance"] == 0


def test_a_lost_event_shows_in_the_balance() -> None:
    """An event that no outcome counts leaves a balance of one."""
    counts = EventCounts(joined=69, late=5, orphan=4, duplicate=3, dead_lettered=2, pending=6, ticks=10)
    assert event_ledger(kafka(progress={"join": {0: join_progress(counts=counts)}}))["balance"] == 1


def test_an_event_counted_twice_shows_in_the_balance() -> None:
    """A double count makes the balance negative."""
    metadata = CatalogCounts(catalogue=49, dead_lettered=2).model_dump_json()
    assert event_ledger(kafka(committed={"indexer": {(CATALOG, 0): Committed(50, metadata)}}))["balance"] == -1


def test_events_before_the_first_progress_are_pending() -> None:
    """Where the join has not written yet, all it could read is pending by count of the tail."""
    ledger = event_ledger(kafka(progress={}, tails={0: Tail(events=100, ticks=7)}, committed={}))
    assert (ledger["pending"], ledger["balance"]) == (100 + 60, 0)


def test_retention_does_not_unbalance_the_ledger() -> None:
    """A group that began at offset 40 counts from there, whatever was deleted before."""
    progress = join_progress(start_offset=40, next_offset=140)
    moved = kafka(ends={(SEARCH_EVENTS, 0): OffsetRange(90, 147)}, progress={"join": {0: progress}}, committed={})
    assert event_ledger(moved)["balance"] == 0


def test_every_closed_search_is_accounted_for() -> None:
    """Joined searches are paired, held out, filtered, unpaired or not read yet."""
    counts = SearchCounts(paired=20, held_out=1, filtered={"duplicate": 2}, unpaired={"no_click": 6, "bounced": 1})
    progress = PairsProgress(partition=0, next_offset=30, hold_offset=30, counts=counts)
    ends = {(JOINED_SEARCHES, 0): OffsetRange(0, 33), (JOINED_SEARCHES, 1): OffsetRange(0, 5)}
    ledger = agent_ledger(KafkaView(ends=ends, progress={"pairs": {0: progress}}), PAIRS)
    assert (ledger["closed"], ledger["pending"], ledger["balance"]) == (38, 8, 0)
    assert ledger["unpaired"] == {"bounced": 1, "no_click": 6}


def test_catalog_counts_survive_as_commit_metadata() -> None:
    """What the indexer commits beside its offset reads back unchanged."""
    counts = CatalogCounts(catalogue=7, dead_lettered=1, start_offset=3)
    assert catalog_counts(counts.model_dump_json()) == counts


def test_the_join_is_measured_by_its_progress_not_by_its_held_commit() -> None:
    """The join commits below what it read; its lag ends at what it read, the rest is held."""
    progress = JoinProgress(partition=0, next_offset=90, hold_offset=60, watermark_ms=1)
    kafka = KafkaView(
        ends={(SEARCH_EVENTS, 0): OffsetRange(0, 100)},
        committed={"join": {(SEARCH_EVENTS, 0): Committed(60, "")}},
        progress={"join": {0: progress}},
    )
    (row,) = partition_lags(kafka)
    assert (row.group, row.lag, row.held) == ("join", 10, 30)


def test_a_group_that_never_committed_lags_by_everything_kept() -> None:
    """Records that retention deleted are not lag."""
    (row,) = partition_lags(KafkaView(ends={(CURATED_PAIRS, 0): OffsetRange(40, 100)}))
    assert (row.position, row.lag) == (40, 60)


def test_totals_name_the_worst_partition() -> None:
    """A group's total is the sum, and the worst partition is not hidden by an average."""
    ends = {(CATALOG, 0): OffsetRange(0, 10), (CATALOG, 1): OffsetRange(0, 100)}
    committed = {"indexer": {(CATALOG, 0): Committed(10, ""), (CATALOG, 1): Committed(50, "")}}
    report = lag_report(KafkaView(ends=ends, committed=committed))
    assert report["groups"]["indexer"] == {"records": 50, "held": 0, "worst_partition": 50}
    assert report["groups"]["trainer"]["records"] == 0


def without(*parts: str) -> KafkaView:
    """Return the view of a busy deployment of which some parts are not known."""
    return replace(busy_kafka(), unknown={part: DependencyDown(f"{part} is gone") for part in parts})


@pytest.mark.parametrize(
    ("part", "groups"),
    [
        (SEARCH_EVENTS, {"join"}),
        (JOIN_PROGRESS, {"join"}),
        (JOINED_SEARCHES, {group for group, read in group_topics().items() if JOINED_SEARCHES in read}),
        (TRAINING_SEARCHES, {"trainer"}),
        (PAIRS_PROGRESS, {"pairs"}),
        (PREFERENCE_PAIRS, {"trainer", "attribution-pairs"}),
        ("millrace-indexer", {"indexer"}),
        (UNREAD, set()),
        ("kafka", set(group_topics())),
    ],
)
def test_lag_that_is_not_known_is_no_lag_of_zero(part: str, groups: set[str]) -> None:
    """The groups that need the part have no figure and no rows; the others have theirs."""
    report = lag_report(without(part))
    assert {group for group, totals in report["groups"].items() if totals["records"] is None} == groups
    with_ends = {
        group for group, read in group_topics().items() if read[0] in {topic for topic, _ in busy_kafka().ends}
    }
    assert {row["group"] for row in report["partitions"]} == with_ends - groups


@pytest.mark.parametrize(
    ("part", "known"),
    [
        (JOIN_PROGRESS, {"attributed", "catalogue"}),
        (SEARCH_EVENTS, {"attributed", "catalogue"}),
        (UNREAD, {"attributed", "catalogue"}),
        (CATALOG, {"attributed", "joined", "late", "orphan", "duplicate"}),
        (COUNTS, {"attributed", "joined", "late", "orphan", "duplicate"}),
        ("millrace-indexer", {"attributed", "joined", "late", "orphan", "duplicate"}),
        ("kafka", set()),
    ],
)
def test_a_term_that_is_not_known_leaves_no_balance(part: str, known: set[str]) -> None:
    """What does not hang on the part is shown; a balance over less than everything would be a lie."""
    report = ledger_report(without(part))
    assert {term for term, value in report["events"].items() if value is not None} == known
    assert (report["searches"]["balance"] is None) is (part == "kafka")


def test_closed_searches_need_the_progress_of_the_pairs_agent() -> None:
    """The other ledger stands."""
    report = ledger_report(without(PAIRS_PROGRESS))
    assert set(report["searches"].values()) == {None}
    assert report["events"]["balance"] == 0


def attribution(raised: int, *, read: int) -> AttributionProgress:
    """Return the progress of attribution in a partition of what was set aside."""
    counts = {"attributed/raised": raised - 1, "attributed/unchanged": 1, "unmatched/no_pair": read - raised}
    return AttributionProgress(partition=0, next_offset=read, hold_offset=read, counts=counts)


def test_an_attributed_event_is_in_one_term_only() -> None:
    """It is no longer late or orphan; the sum stays, and attribution has a balance of its own."""
    progress = {"attribution": {0: attribution(3, read=5)}, "attribution-orphans": {0: attribution(2, read=4)}}
    seen = kafka(progress={"join": {0: join_progress()}, **progress})
    ledger = event_ledger(seen)
    assert (ledger["late"], ledger["orphan"], ledger["attributed"], ledger["balance"]) == (2, 2, 5, 0)
    late = agent_ledger(replace(seen, ends={**seen.ends, (LATE_EVENTS, 0): OffsetRange(0, 7)}), LATE)
    assert (late["read"], late["attributed"], late["pending"], late["balance"]) == (
        7, {"raised": 2, "unchanged": 1}, 2, 0,
    )  # fmt: skip


def test_without_the_progress_of_attribution_what_it_moves_is_not_known() -> None:
    """The other terms stand."""
    ledger = event_ledger(without("attribution-progress"))
    assert {term for term, value in ledger.items() if value is None} == {"late", "attributed", "balance"}


def test_counts_that_cannot_be_read_are_not_taken_for_zero() -> None:
    """Somebody moved the indexer's offset with a text of his own."""
    moved = {"indexer": {(CATALOG, 0): Committed(50, "moved by hand")}}
    ledger = event_ledger(kafka(committed=moved, unknown={COUNTS: DependencyDown("no counts")}))
    assert (ledger["catalogue"], ledger["balance"], ledger["joined"]) == (None, None, 70)


def test_reasons_are_told_as_text() -> None:
    """JSON says why."""
    assert unknown_report(without(CATALOG)) == {CATALOG: "catalog is gone"}

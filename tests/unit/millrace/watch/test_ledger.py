"""The ledgers balance exactly when every record is accounted for, and say so when one is not."""

from contracts.progress import CatalogCounts, EventCounts, JoinProgress, PairsProgress, SearchCounts
from contracts.topics import CATALOG, JOINED_SEARCHES, SEARCH_EVENTS
from millrace.watch.facts import KafkaFacts, Tail, catalog_counts
from millrace.watch.ledger import agent_ledger, event_ledger
from service.kafka import Committed, OffsetRange
from streams.pairs.partition_pairs import PAIRS


def join_progress(**changes: object) -> JoinProgress:
    """Return a join that read 100 records: 90 events and 10 ticks."""
    counts = EventCounts(joined=70, late=5, orphan=4, duplicate=3, dead_lettered=2, pending=6, ticks=10)
    values = {"partition": 0, "next_offset": 100, "hold_offset": 90, "watermark_ms": 1, "counts": counts, **changes}
    return JoinProgress.model_validate(values)


def facts(**changes: object) -> KafkaFacts:
    """Return facts in which everything is accounted for."""
    metadata = CatalogCounts(catalogue=48, dead_lettered=2).model_dump_json()
    values: dict[str, object] = {
        "ends": {(SEARCH_EVENTS, 0): OffsetRange(0, 107), (CATALOG, 0): OffsetRange(0, 60)},
        "committed": {"indexer": {(CATALOG, 0): Committed(50, metadata)}},
        "progress": {"join": {0: join_progress()}},
        "tails": {0: Tail(events=4, ticks=3)},
        **changes,
    }
    return KafkaFacts(**values)  # type: ignore[arg-type]  # a test builder takes any field


def test_every_event_is_accounted_for() -> None:
    """Accepted events are the log's records without ticks, and their outcomes sum to them."""
    ledger = event_ledger(facts())
    assert ledger["accepted"] == (107 - 13) + 60
    assert ledger["pending"] == 6 + 4 + 10
    assert ledger["dead_lettered"] == 2 + 2
    assert ledger["balance"] == 0


def test_a_lost_event_shows_in_the_balance() -> None:
    """An event that no outcome counts leaves a balance of one."""
    counts = EventCounts(joined=69, late=5, orphan=4, duplicate=3, dead_lettered=2, pending=6, ticks=10)
    assert event_ledger(facts(progress={"join": {0: join_progress(counts=counts)}}))["balance"] == 1


def test_an_event_counted_twice_shows_in_the_balance() -> None:
    """A double count makes the balance negative."""
    metadata = CatalogCounts(catalogue=49, dead_lettered=2).model_dump_json()
    assert event_ledger(facts(committed={"indexer": {(CATALOG, 0): Committed(50, metadata)}}))["balance"] == -1


def test_events_before_the_first_progress_are_pending() -> None:
    """Where the join has not written yet, all it could read is pending by count of the tail."""
    ledger = event_ledger(facts(progress={}, tails={0: Tail(events=100, ticks=7)}, committed={}))
    assert (ledger["pending"], ledger["balance"]) == (100 + 60, 0)


def test_retention_does_not_unbalance_the_ledger() -> None:
    """A group that began at offset 40 counts from there, whatever was deleted before."""
    progress = join_progress(start_offset=40, next_offset=140)
    moved = facts(ends={(SEARCH_EVENTS, 0): OffsetRange(90, 147)}, progress={"join": {0: progress}}, committed={})
    assert event_ledger(moved)["balance"] == 0


def test_every_closed_search_is_accounted_for() -> None:
    """Joined searches are paired, held out, filtered, unpaired or not read yet."""
    counts = SearchCounts(paired=20, held_out=1, filtered={"duplicate": 2}, unpaired={"no_click": 6, "bounced": 1})
    progress = PairsProgress(partition=0, next_offset=30, hold_offset=30, counts=counts)
    ends = {(JOINED_SEARCHES, 0): OffsetRange(0, 33), (JOINED_SEARCHES, 1): OffsetRange(0, 5)}
    ledger = agent_ledger(KafkaFacts(ends=ends, progress={"pairs": {0: progress}}), PAIRS)
    assert (ledger["closed"], ledger["pending"], ledger["balance"]) == (38, 8, 0)
    assert ledger["unpaired"] == {"bounced": 1, "no_click": 6}


def test_catalog_counts_survive_as_commit_metadata() -> None:
    """What the indexer commits beside its offset reads back unchanged."""
    counts = CatalogCounts(catalogue=7, dead_lettered=1, start_offset=3)
    assert catalog_counts(counts.model_dump_json()) == counts

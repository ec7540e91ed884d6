"""What the facts say: how far each consumer group is behind, and what became of every event and every closed search.

Lag is measured from outside: a consumer that hangs reports whatever it last knew. Both sides of a ledger are counted
apart: what was accepted is Kafka's own offsets (less the ticks); what became of it is counted by the agents and kept
with their positions. The balance is their difference, and anything but 0 is a fault.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from contracts.progress import CatalogCounts
from contracts.telemetry import EventOutcome
from contracts.topics import (
    CATALOG,
    GROUP_PREFIX,
    GROUP_TOPICS,
    JOIN_PROGRESS,
    JOINED_SEARCHES,
    PAIRS_PROGRESS,
    SEARCH_EVENTS,
)
from millrace.watch.facts import COUNTS, UNREAD, KafkaFacts, catalog_counts
from service.kafka import Committed, OffsetRange

BUILT_GROUPS: Final = ("join", "pairs", "trainer", "indexer")
_OF_THE_JOIN: Final = (SEARCH_EVENTS, JOIN_PROGRESS, UNREAD)
_OF_THE_INDEXER: Final = (CATALOG, f"{GROUP_PREFIX}indexer", COUNTS)
_EVENTS: Final = (*_OF_THE_JOIN, *_OF_THE_INDEXER)
_NEEDED: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys((EventOutcome.JOINED, EventOutcome.LATE, EventOutcome.ORPHAN), _OF_THE_JOIN),
    EventOutcome.DUPLICATE: _OF_THE_JOIN,
    EventOutcome.ATTRIBUTED: (),
    EventOutcome.CATALOGUE: _OF_THE_INDEXER,
}
"""The parts of the facts that a term of the event ledger is made of; all of them for the others."""


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Lag of one group in one partition, in records."""

    group: str
    topic: str
    partition: int
    position: int
    end: int
    lag: int
    held: int
    """Read already, but to be read again after a restart."""


def partition_lags(facts: KafkaFacts) -> list[PartitionLag]:
    """Return the lag of every group that this version runs, partition by partition."""
    return [
        _lag(facts, group, topic, partition, ends)
        for group in BUILT_GROUPS
        if facts.knows(*_parts(group))
        for topic in GROUP_TOPICS[group]
        for partition, ends in facts.partitions(topic)
    ]


def _parts(group: str) -> tuple[str, ...]:
    progress = {"join": (JOIN_PROGRESS,), "pairs": (PAIRS_PROGRESS,)}.get(group, ())
    return (f"{GROUP_PREFIX}{group}", *GROUP_TOPICS[group], *progress)


def _lag(facts: KafkaFacts, group: str, topic: str, partition: int, ends: OffsetRange) -> PartitionLag:
    committed = facts.committed.get(group, {}).get((topic, partition), Committed(ends.begin, "")).offset
    position, hold = _progress(facts, topic, partition) or (committed, committed)
    position = max(position, ends.begin)
    lag, held = max(ends.end - position, 0), max(position - hold, 0)
    return PartitionLag(group, topic, partition, position, ends.end, lag, held)


def _progress(facts: KafkaFacts, topic: str, partition: int) -> tuple[int, int] | None:
    if topic == SEARCH_EVENTS and partition in facts.join:
        return facts.join[partition].next_offset, facts.join[partition].hold_offset
    if topic == JOINED_SEARCHES and partition in facts.pairs:
        return facts.pairs[partition].next_offset, facts.pairs[partition].hold_offset
    return None


def lag_report(facts: KafkaFacts) -> dict[str, Any]:
    """Return the lag as stable JSON: totals per group, None if they are not known, and every partition that is."""
    rows = partition_lags(facts)
    groups = {}
    for group in BUILT_GROUPS:
        lags = [row.lag for row in rows if row.group == group]
        known = facts.knows(*_parts(group))
        groups[group] = {
            "records": sum(lags) if known else None,
            "held": sum(row.held for row in rows if row.group == group) if known else None,
            "worst_partition": max(lags, default=0) if known else None,
        }
    return {"groups": groups, "partitions": [asdict(row) for row in rows]}


def unknown_report(facts: KafkaFacts) -> dict[str, str]:
    """Return what is not known, and why, as stable JSON."""
    return {part: error.message for part, error in facts.unknown.items()}


def event_ledger(facts: KafkaFacts) -> dict[str, int | None]:
    """Return accepted events, the terms they fell into, and the balance; None for what is not known."""
    terms: Counter[str] = Counter({outcome.value: 0 for outcome in EventOutcome})
    accepted = 0
    for partition, ends in facts.partitions(SEARCH_EVENTS):
        accepted += _add_search_events(facts, partition, ends, terms)
    for partition, ends in facts.partitions(CATALOG):
        accepted += _add_catalog(facts, partition, ends.end, terms)
    ledger = {"accepted": accepted, **terms, "balance": accepted - sum(terms.values())}
    return {term: value if facts.knows(*_NEEDED.get(term, _EVENTS)) else None for term, value in ledger.items()}


def _add_search_events(facts: KafkaFacts, partition: int, ends: OffsetRange, terms: Counter[str]) -> int:
    progress = facts.join.get(partition)
    tail = facts.tails.get(partition)
    ticks = tail.ticks if tail else 0
    terms[EventOutcome.PENDING] += tail.events if tail else 0
    if progress is None:
        return ends.end - ends.begin - ticks
    counts = progress.counts
    for outcome in ("joined", "late", "orphan", "duplicate", "dead_lettered", "pending"):
        terms[outcome] += getattr(counts, outcome)
    return ends.end - progress.start_offset - counts.ticks - ticks


def _add_catalog(facts: KafkaFacts, partition: int, end: int, terms: Counter[str]) -> int:
    committed = facts.committed.get("indexer", {}).get((CATALOG, partition), Committed(0, ""))
    counts = catalog_counts(committed.metadata) if facts.knows(COUNTS) else CatalogCounts()
    terms[EventOutcome.CATALOGUE] += counts.catalogue
    terms[EventOutcome.DEAD_LETTERED] += counts.dead_lettered
    terms[EventOutcome.PENDING] += end - committed.offset
    return end - counts.start_offset


def search_ledger(facts: KafkaFacts) -> dict[str, Any]:
    """Return closed searches, the terms they fell into, and the balance; None for what is not known."""
    paired = held_out = pending = closed = dead_lettered = 0
    filtered: Counter[str] = Counter()
    unpaired: Counter[str] = Counter()
    for partition, ends in facts.partitions(JOINED_SEARCHES):
        progress = facts.pairs.get(partition)
        start, position = (progress.start_offset, progress.next_offset) if progress else (ends.begin, ends.begin)
        closed += ends.end - start
        pending += ends.end - position
        if progress:
            paired += progress.counts.paired
            held_out += progress.counts.held_out
            dead_lettered += progress.counts.dead_lettered
            filtered.update(progress.counts.filtered)
            unpaired.update(progress.counts.unpaired)
    accounted = paired + held_out + dead_lettered + pending + filtered.total() + unpaired.total()
    ledger = {
        "closed": closed,
        "paired": paired,
        "held_out": held_out,
        "filtered": dict(sorted(filtered.items())),
        "unpaired": dict(sorted(unpaired.items())),
        "dead_lettered": dead_lettered,
        "pending": pending,
        "balance": closed - accounted,
    }
    return ledger if facts.knows(JOINED_SEARCHES, PAIRS_PROGRESS) else dict.fromkeys(ledger)


def ledger_report(facts: KafkaFacts) -> dict[str, Any]:
    """Return both ledgers as stable JSON."""
    return {"events": event_ledger(facts), "searches": search_ledger(facts)}

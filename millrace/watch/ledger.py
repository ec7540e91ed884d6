"""The two ledgers: every accepted event and every closed search is accounted for under a named outcome.

Both sides are counted apart. What was accepted is Kafka's own offsets (less the ticks, which the join counts); what
became of it is counted by the agents and kept with their positions, so a crash cannot separate the two; what is
pending is counted by reading. The balance is their difference, and anything but 0 is a fault.
"""

from collections import Counter
from typing import Any

from contracts.telemetry import EventOutcome
from contracts.topics import CATALOG, JOINED_SEARCHES, SEARCH_EVENTS
from millrace.watch.facts import KafkaFacts, catalog_counts
from service.kafka import Committed, OffsetRange


def event_ledger(facts: KafkaFacts) -> dict[str, int]:
    """Return accepted events, the terms they fell into, and the balance."""
    terms: Counter[str] = Counter({outcome.value: 0 for outcome in EventOutcome})
    accepted = 0
    for partition, ends in facts.partitions(SEARCH_EVENTS):
        accepted += _add_search_events(facts, partition, ends, terms)
    for partition, ends in facts.partitions(CATALOG):
        accepted += _add_catalog(facts, partition, ends.end, terms)
    return {"accepted": accepted, **terms, "balance": accepted - sum(terms.values())}


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
    counts = catalog_counts(committed.metadata)
    terms[EventOutcome.CATALOGUE] += counts.catalogue
    terms[EventOutcome.DEAD_LETTERED] += counts.dead_lettered
    terms[EventOutcome.PENDING] += end - committed.offset
    return end - counts.start_offset


def search_ledger(facts: KafkaFacts) -> dict[str, Any]:
    """Return closed searches, the terms they fell into, and the balance."""
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
    return {
        "closed": closed,
        "paired": paired,
        "held_out": held_out,
        "filtered": dict(sorted(filtered.items())),
        "unpaired": dict(sorted(unpaired.items())),
        "dead_lettered": dead_lettered,
        "pending": pending,
        "balance": closed - accounted,
    }


def ledger_report(facts: KafkaFacts) -> dict[str, Any]:
    """Return both ledgers as stable JSON."""
    return {"events": event_ledger(facts), "searches": search_ledger(facts)}

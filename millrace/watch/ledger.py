"""What a view of Kafka says: how far each group is behind, and what became of every event and every closed search.

Lag is measured from outside: a consumer that hangs reports whatever it last knew. Both sides of a ledger are counted
apart: what was accepted is Kafka's own offsets (less the ticks); what became of it is counted by the agents and kept
with their positions. The balance is their difference, and anything but 0 is a fault.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from contracts.progress import CatalogCounts
from contracts.telemetry import EventOutcome
from contracts.topics import CATALOG, GROUP_PREFIX, SEARCH_EVENTS
from millrace.watch.kafka_view import COUNTS, UNREAD, KafkaView, Tail, catalog_counts
from service.kafka import Committed, OffsetRange
from streams import registry
from streams.agents.spec import ASIDE_TOPICS, AgentSpec, outcome_counts
from streams.attribution.conversions import LATE, ORPHANS
from streams.join.spec import JOIN

_ATTRIBUTING: Final = {
    term: spec for term, topic in ASIDE_TOPICS.items() for spec in (LATE, ORPHANS) if spec.source == topic
}
"""Late and orphan: which agent takes events out of the term."""
_OF_THE_INDEXER: Final = (CATALOG, f"{GROUP_PREFIX}indexer", COUNTS)


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


def partition_lags(seen: KafkaView) -> list[PartitionLag]:
    """Compute the lag of every group, partition by partition."""
    return [
        _lag(seen, group, topic, partition, ends)
        for group, read in registry.group_topics().items()
        if seen.knows(*_lag_needs(group))
        for topic in read
        for partition, ends in seen.partitions(topic)
    ]


def _lag_needs(group: str) -> tuple[str, ...]:
    progress = [spec.progress_topic for spec in registry.AGENTS if spec.name == group]
    return (f"{GROUP_PREFIX}{group}", *registry.group_topics()[group], *progress)


def _lag(seen: KafkaView, group: str, topic: str, partition: int, ends: OffsetRange) -> PartitionLag:
    committed = seen.committed.get(group, {}).get((topic, partition), Committed(ends.begin, "")).offset
    progress = seen.progress_of(group, partition)
    position, hold = (committed, committed) if progress is None else (progress.next_offset, progress.hold_offset)
    position = max(position, ends.begin)
    lag, held = max(ends.end - position, 0), max(position - hold, 0)
    return PartitionLag(group, topic, partition, position, ends.end, lag, held)


def lag_report(seen: KafkaView) -> dict[str, Any]:
    """Put the lag into stable JSON: totals per group, None if they are not known, and every partition that is."""
    rows = partition_lags(seen)
    groups = {}
    for group in registry.group_topics():
        lags = [row.lag for row in rows if row.group == group]
        known = seen.knows(*_lag_needs(group))
        groups[group] = {
            "records": sum(lags) if known else None,
            "held": sum(row.held for row in rows if row.group == group) if known else None,
            "worst_partition": max(lags, default=0) if known else None,
        }
    return {"groups": groups, "partitions": [asdict(row) for row in rows]}


def unknown_report(seen: KafkaView) -> dict[str, str]:
    """Put what is not known, and why, into stable JSON."""
    return {part: error.message for part, error in seen.unknown.items()}


def agent_ledger(seen: KafkaView, spec: AgentSpec[Any]) -> dict[str, Any]:
    """Count what an agent was given to read, the terms that became of it, and the balance; None for the unknown."""
    ledger = _count(seen, spec)
    return ledger if seen.knows(*_ledger_needs(spec)) else dict.fromkeys(ledger)


def _ledger_needs(spec: AgentSpec[Any]) -> tuple[str, ...]:
    return (spec.source, spec.progress_topic, *((UNREAD,) if spec.source == SEARCH_EVENTS else ()))


def _count(seen: KafkaView, spec: AgentSpec[Any]) -> dict[str, Any]:
    read = pending = 0
    counts: Counter[tuple[str, str]] = Counter()
    for partition, ends in seen.partitions(spec.source):
        progress = seen.progress_of(spec.name, partition)
        start, position = (progress.start_offset, progress.next_offset) if progress else (ends.begin, ends.begin)
        unread = Tail(ends.end - position, 0)
        if spec.source == SEARCH_EVENTS:
            unread = seen.tails.get(partition, Tail(0, 0))
        found = outcome_counts(progress) if progress else {}
        uncounted = sum(n for (outcome, _), n in found.items() if outcome in spec.uncounted)
        read += ends.end - start - uncounted - unread.ticks
        pending += unread.events + found.get((EventOutcome.PENDING, ""), 0)
        counts.update(found)
    terms = {
        outcome: {reason: n for (of, reason), n in sorted(counts.items()) if of == outcome}
        if reasons
        else counts[outcome, ""]
        for outcome, reasons in spec.outcomes.items()
    }
    accounted = pending + sum(n for (outcome, _), n in counts.items() if outcome in spec.outcomes)
    return {spec.ledger[1]: read, **terms, "pending": pending, "balance": read - accounted}


def event_ledger(seen: KafkaView) -> dict[str, int | None]:
    """Count accepted events, the terms they fell into, and the balance; None for what is not known.

    Changes of the catalogue are events too, which the indexer counts. What attribution took of the events that the join
    had set aside is no longer late or orphan; whether attribution counts right is told by its own balance.
    """
    joined = _count(seen, JOIN)
    terms = {outcome.value: joined.get(outcome, 0) for outcome in EventOutcome}
    for term, spec in _ATTRIBUTING.items():
        found = [count for own in seen.progress.get(spec.name, {}).values() for count in outcome_counts(own).items()]
        taken = sum(n for (outcome, _), n in found if outcome == EventOutcome.ATTRIBUTED)
        terms[term] -= taken
        terms[EventOutcome.ATTRIBUTED] += taken
    accepted = joined["accepted"]
    for partition, ends in seen.partitions(CATALOG):
        committed = seen.committed.get("indexer", {}).get((CATALOG, partition), Committed(0, ""))
        counts = catalog_counts(committed.metadata) if seen.knows(COUNTS) else CatalogCounts()
        terms[EventOutcome.CATALOGUE] += counts.catalogue
        terms[EventOutcome.DEAD_LETTERED] += counts.dead_lettered
        terms[EventOutcome.PENDING] += ends.end - committed.offset
        accepted += ends.end - counts.start_offset
    ledger = {"accepted": accepted, **terms, "balance": accepted - sum(terms.values())}
    of_the_join = _ledger_needs(JOIN)
    needs: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(JOIN.outcomes, of_the_join),
        **{term: (*of_the_join, spec.progress_topic) for term, spec in _ATTRIBUTING.items()},
        EventOutcome.ATTRIBUTED: tuple(spec.progress_topic for spec in _ATTRIBUTING.values()),
        EventOutcome.CATALOGUE: _OF_THE_INDEXER,
        EventOutcome.DEAD_LETTERED: (*of_the_join, *_OF_THE_INDEXER),
    }
    everything = (*of_the_join, *_OF_THE_INDEXER)
    needs["balance"] = (*everything, *needs[EventOutcome.ATTRIBUTED])
    return {term: value if seen.knows(*needs.get(term, everything)) else None for term, value in ledger.items()}


def ledger_report(seen: KafkaView) -> dict[str, Any]:
    """Put every ledger into stable JSON."""
    others = {spec.ledger[0]: agent_ledger(seen, spec) for spec in registry.AGENTS if spec is not JOIN}
    return {JOIN.ledger[0]: event_ledger(seen), **others}

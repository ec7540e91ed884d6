"""The ledgers: every accepted event and every closed search is accounted for under a named outcome.

Both sides are counted apart. What was accepted is Kafka's own offsets (less the ticks, which the join counts); what
became of it is counted by the agents and kept with their positions, so a crash cannot separate the two; what is
pending is counted by reading. The balance is their difference, and anything but 0 is a fault.
"""

from collections import Counter
from typing import Any

from contracts.telemetry import EventOutcome
from contracts.topics import CATALOG, SEARCH_EVENTS
from millrace.watch.facts import KafkaFacts, Tail, catalog_counts
from service.kafka import Committed
from streams import registry
from streams.agents.spec import AgentSpec, outcome_counts
from streams.join.spec import JOIN


def agent_ledger(facts: KafkaFacts, spec: AgentSpec[Any]) -> dict[str, Any]:
    """Return what an agent was given to read, the terms that became of it, and the balance."""
    read = pending = 0
    counts: Counter[tuple[str, str]] = Counter()
    for partition, ends in facts.partitions(spec.source):
        progress = facts.progress_of(spec.name, partition)
        start, position = (progress.start_offset, progress.next_offset) if progress else (ends.begin, ends.begin)
        unread = Tail(ends.end - position, 0)
        if spec.source == SEARCH_EVENTS:
            unread = facts.tails.get(partition, Tail(0, 0))
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


def event_ledger(facts: KafkaFacts) -> dict[str, int]:
    """Return accepted events, the terms they fell into, and the balance; changes of the catalogue are events too."""
    joined = agent_ledger(facts, JOIN)
    terms = {outcome.value: joined.get(outcome, 0) for outcome in EventOutcome}
    accepted = joined["accepted"]
    for partition, ends in facts.partitions(CATALOG):
        committed = facts.committed.get("indexer", {}).get((CATALOG, partition), Committed(0, ""))
        counts = catalog_counts(committed.metadata)
        terms[EventOutcome.CATALOGUE] += counts.catalogue
        terms[EventOutcome.DEAD_LETTERED] += counts.dead_lettered
        terms[EventOutcome.PENDING] += ends.end - committed.offset
        accepted += ends.end - counts.start_offset
    return {"accepted": accepted, **terms, "balance": accepted - sum(terms.values())}


def ledger_report(facts: KafkaFacts) -> dict[str, Any]:
    """Return every ledger as stable JSON."""
    others = {spec.ledger[0]: agent_ledger(facts, spec) for spec in registry.AGENTS if spec is not JOIN}
    return {JOIN.ledger[0]: event_ledger(facts), **others}

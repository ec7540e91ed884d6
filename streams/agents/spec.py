"""What an agent is made of: the language of its rules, and the spec that everything else about it is derived from.

Rules take the records of one partition in order and plan what is written; they know no client, clock or setting. A
spec is declared beside its rules and listed in `streams/registry.py`: metrics, lag, ledger, topics and documentation
follow from it.
"""

from abc import ABC, abstractmethod
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from prometheus_client import Counter

from contracts.errors import ContractError
from contracts.joined import closed_watermark_of
from contracts.progress import AgentProgress, PartitionProgress
from contracts.telemetry import EventOutcome
from contracts.topics import DEAD_LETTERS, LATE_EVENTS, ORPHAN_EVENTS, TopicSpec
from service.settings import Settings

Headers = Sequence[tuple[str, bytes]]
"""Headers that we write."""

ASIDE_TOPICS: Final = {
    EventOutcome.LATE: LATE_EVENTS,
    EventOutcome.ORPHAN: ORPHAN_EVENTS,
    EventOutcome.DEAD_LETTERED: DEAD_LETTERS,
}


WATERMARKS: Final = "watermarks"
"""What became of a watermark record: nothing, it only tells how far a join has come."""


class LogRecord(Protocol):
    """A record as Kafka keeps it; the clients' own record types fit."""

    @property
    def offset(self) -> int:
        """Its place in its partition."""

    @property
    def timestamp(self) -> int:
        """When Kafka appended it, epoch milliseconds."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its value."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Its headers; anyone may have written them, and Kafka allows null as a value."""


class SetAside(NamedTuple):
    """Put a record on the topic of its outcome, unchanged, with the reason."""

    outcome: EventOutcome
    reason: str
    record: LogRecord
    error: str = ""
    headers: Headers = ()


class Emit(NamedTuple):
    """Write a message to a topic, in the partition of its key."""

    topic: str
    """Without the deployment's prefix."""
    key: bytes
    value: bytes
    headers: Headers = ()


Plan = list[SetAside | Emit]
"""What rules decided about the records they were given."""

P = TypeVar("P", bound=PartitionProgress)
P_co = TypeVar("P_co", bound=PartitionProgress, covariant=True)


class PartitionState(Protocol[P_co]):
    """What the rules of an agent know of one partition."""

    next_offset: int
    """Offset after the last record taken; -1 before the first."""
    skipped_offsets: int
    """Offsets at which there was no record: marks of transactions, or what Kafka had deleted."""

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the next record and add what follows from it to the plan; one taken before adds nothing."""

    def progress(self) -> P_co:
        """Return how far it has come, with everything that a restart needs."""


class RecordRules(ABC):
    """Rules that decide on a partition record by record: their position, their counts, and what is malformed.

    Watermark records are counted and passed over.

    Args:
        partition: of the source.
        past: what the last process that had this partition wrote; None if none ever had.
    """

    def __init__(self, partition: int, past: PartitionProgress | None = None) -> None:
        self.partition = partition
        self.start_offset = self.next_offset = -1
        self.skipped_offsets = 0
        self.counts: Counts[str] = Counts()
        """Records by what became of them: `outcome`, or `outcome/reason`."""
        if past is not None:
            self.start_offset, self.next_offset = past.start_offset, past.next_offset
            self.counts.update({"/".join(filter(None, key)): n for key, n in outcome_counts(past).items()})

    @abstractmethod
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Add what follows from a record to the plan and return what became of it.

        Raises:
            ContractError: it breaks the contract of its topic: a dead letter.
        """

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the partition's next record and add what follows from it to the plan; one taken before adds nothing."""
        if record.offset < self.next_offset:
            return
        if self.start_offset < 0:
            self.start_offset = record.offset
        elif record.offset > self.next_offset:
            self.skipped_offsets += record.offset - self.next_offset
        told = closed_watermark_of(record.headers)
        try:
            outcome = self.decide(record, plan) if told is None or told.idle is None else WATERMARKS
        except ContractError as error:
            outcome = EventOutcome.DEAD_LETTERED
            plan.append(SetAside(outcome, error.reason, record, str(error)))
        self.counts[outcome] += 1
        self.next_offset = record.offset + 1

    def progress(self) -> Any:
        """Return how far it has come and what became of every record so far; rules that know more override it."""
        return AgentProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            next_offset=self.next_offset,
            hold_offset=self.next_offset,
            counts=dict(self.counts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec(Generic[P]):
    """One agent.

    Args:
        name: names its consumer group, its progress topic, and itself in settings, logs and metrics.
        source: the topic it reads, without the deployment's prefix.
        outputs: the topics it writes, beside its progress.
        progress: its progress message.
        new_state: makes the state of a partition from its number, the progress found (None if there is none) and the
            settings, of which rules see plain values only.
        outcomes: what may become of a record -> the reasons; the terms of its ledger.
        ledger: the name of its balance, and what the records it reads are called there.
        uncounted: counts of records that are no business of the ledger.
        counter: the metric of its outcomes, with labels `outcome` and, if there are reasons, `reason`.
        totals: other fields of the progress message that only grow -> the series on which they are shown.
        event_time: the field of the progress message that holds the event time up to which it is done; none if empty.
        needs: settings without which it cannot run.
        written_at: header that carries the wall clock of its writing, epoch milliseconds; none if empty.
        topics: topics that no other service shares; the worker creates them.
        follows: compacted topics that it reads beside its source, without a group and from their beginning.
        agent: module and class that run it, if it does more than carry out what its rules plan.
    """

    name: str
    source: str
    outputs: tuple[str, ...]
    progress: type[P]
    new_state: Callable[[int, P | None, Settings], PartitionState[P]]
    outcomes: Mapping[str, Iterable[str]]
    ledger: tuple[str, str]
    counter: Counter
    totals: Mapping[str, tuple[Counter, tuple[str, ...]]] = field(default_factory=dict)
    event_time: str = ""
    uncounted: tuple[str, ...] = (WATERMARKS,)
    needs: tuple[str, ...] = ()
    written_at: str = ""
    topics: tuple[TopicSpec, ...] = ()
    follows: tuple[str, ...] = ()
    agent: str = "streams.agents.partition_agent:PartitionAgent"

    @property
    def progress_topic(self) -> str:
        """The topic on which it writes how far it has come."""
        return f"{self.name}-progress"

    @property
    def written_topics(self) -> tuple[str, ...]:
        """Every topic it writes to."""
        return (*self.outputs, self.progress_topic)

    def labels(self, outcome: str, reason: str) -> tuple[str, ...]:
        """Return the labels of one series of its counter."""
        return (outcome, reason)[: len(self.counter._labelnames)]

    def outcome_labels(self) -> list[tuple[str, ...]]:
        """Return the labels of every series of its counter."""
        return [
            self.labels(outcome, reason) for outcome, of in self.outcomes.items() for reason in (tuple(of) or ("",))
        ]


def outcome_counts(progress: PartitionProgress) -> dict[tuple[str, str], int]:
    """Return the counts of a progress message as (outcome, reason) -> number; without reasons the reason is empty.

    >>> from contracts.progress import AgentProgress
    >>> outcome_counts(AgentProgress(partition=0, next_offset=3, hold_offset=3, counts={"kept": 2, "left/small": 1}))
    {('kept', ''): 2, ('left', 'small'): 1}
    """
    counts: Any = getattr(progress, "counts", {})
    found: dict[tuple[str, str], int] = {}
    for name, count in (counts if isinstance(counts, dict) else counts.model_dump()).items():
        if isinstance(count, dict):
            found |= {(name, reason): n for reason, n in count.items()}
        else:
            outcome, _, reason = name.partition("/")
            found[outcome, reason] = count
    return found

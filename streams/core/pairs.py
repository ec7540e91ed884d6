"""The pairs agent's state in one partition of `joined-searches`: what was seen lately, and what became of each search.

A search that was seen among the last records is a repeat, written again by a join that was killed between its output
and its progress. How far back that looks is counted in records of the log, so that a restart that reads as far back
decides as the process before it did.
"""

from typing import Final

from contracts.errors import ContractError
from contracts.progress import PairsProgress, SearchCounts
from contracts.telemetry import EventOutcome, FilterReason, UnpairedReason
from streams.core.joined_search import JoinedSearch, decode
from streams.core.outputs import Emit, LogRecord, Plan, SetAside
from streams.core.pairing import filter_reason, pairs_of

MEMORY_RECORDS: Final = 5_000
"""How far back a repeat is recognised. A killed join repeats what it wrote since its last progress: a chunk or two."""


class PartitionPairs:
    """Pairing of one partition.

    Args:
        partition: of `joined-searches`.
        progress: what the last process that had this partition wrote; None where none ever had.
        memory_records: how far back a repeat is recognised.
    """

    def __init__(
        self, partition: int, *, progress: PairsProgress | None = None, memory_records: int = MEMORY_RECORDS
    ) -> None:
        self.partition = partition
        self.memory_records = memory_records
        self.closed_at_ms = -1
        """Deadline of the newest search seen."""
        self.start_offset = self.next_offset = -1
        self.lost_records = 0
        self.paired = self.dead_lettered = self.pairs = 0
        self.filtered: dict[str, int] = {}
        self.unpaired: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._resume_at = -1
        if progress is not None:
            self._resume(progress)

    @property
    def replaying(self) -> bool:
        """Whether records are still being read a second time."""
        return self.next_offset < self._resume_at

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the partition's next record and add what follows from it to the plan; one seen before adds nothing."""
        if record.offset < self.next_offset:
            return
        if self.start_offset < 0:
            self.start_offset = record.offset
        elif record.offset > self.next_offset:
            self.lost_records += record.offset - self.next_offset
        replayed = record.offset < self._resume_at
        try:
            search = decode(record.value)
            repeated = self._remember(search.search_id, record.offset)
            if not replayed:
                self._decide(search, record, plan, repeated=repeated)
        except ContractError as error:
            if not replayed:
                self.dead_lettered += 1
                plan.append(SetAside(EventOutcome.DEAD_LETTERED, error.reason, record, str(error)))
        self.next_offset = record.offset + 1

    def progress(self) -> PairsProgress:
        """Return how far the agent has come and what became of every search so far."""
        return PairsProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            next_offset=self.next_offset,
            hold_offset=max(self.start_offset, self.next_offset - self.memory_records),
            counts=SearchCounts(
                paired=self.paired,
                filtered=dict(self.filtered),
                unpaired=dict(self.unpaired),
                dead_lettered=self.dead_lettered,
            ),
            pairs=self.pairs,
        )

    def _decide(self, search: JoinedSearch, record: LogRecord, plan: Plan, *, repeated: bool) -> None:
        """Filter a search or make its pairs."""
        self.closed_at_ms = max(self.closed_at_ms, search.closed_at)
        filtered = FilterReason.DUPLICATE if repeated else filter_reason(search)
        if filtered is not None:
            self.filtered[filtered] = self.filtered.get(filtered, 0) + 1
            return
        made = pairs_of(search)
        if isinstance(made, UnpairedReason):
            self.unpaired[made] = self.unpaired.get(made, 0) + 1
            return
        self.paired += 1
        self.pairs += len(made)
        key = search.search_id.encode()
        plan.extend(Emit(key, value, record) for value in made)

    def _remember(self, search_id: str, offset: int) -> bool:
        """Note a search id and return whether it stood among the last records."""
        oldest = offset - self.memory_records
        last = self._seen.pop(search_id, -1)
        self._seen[search_id] = offset
        while self._seen and (first := next(iter(self._seen))) != search_id and self._seen[first] < oldest:
            del self._seen[first]
        return last >= max(0, oldest)

    def _resume(self, progress: PairsProgress) -> None:
        """Go on where the last process had come to, once its memory is rebuilt."""
        self.start_offset, self._resume_at = progress.start_offset, progress.next_offset
        self.next_offset = progress.hold_offset
        counts = progress.counts
        self.paired, self.dead_lettered, self.pairs = counts.paired, counts.dead_lettered, progress.pairs
        self.filtered, self.unpaired = dict(counts.filtered), dict(counts.unpaired)

"""The pairs agent's state in one partition of `joined-searches`: how far each join was seen, what became of searches.

A search whose turn was seen before is a repeat, written again by a join that was killed between its output and its
progress. The turns seen are part of the progress, so a restart reads nothing twice and decides as before.
"""

from contracts.errors import ContractError
from contracts.progress import PairsProgress, SearchCounts
from contracts.structs import JOINED_SEARCH, JoinedSearch
from contracts.telemetry import EventOutcome, FilterReason, UnpairedReason
from streams.agents.outputs import Emit, LogRecord, Plan, SetAside, turn_of
from streams.pairs.pairing import filter_reason, pairs_of


class PartitionPairs:
    """Pairing of one partition.

    Args:
        partition: of `joined-searches`.
        progress: what the last process that had this partition wrote; None where none ever had.
    """

    def __init__(self, partition: int, *, progress: PairsProgress | None = None) -> None:
        self.partition = partition
        self.closed_at_ms = -1
        """Deadline of the newest search seen."""
        self.start_offset = self.next_offset = -1
        self.skipped_offsets = 0
        self.paired = self.dead_lettered = self.pairs = 0
        self.filtered: dict[str, int] = {}
        self.unpaired: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        if progress is not None:
            self._resume(progress)

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the partition's next record and add what follows from it to the plan; one seen before adds nothing."""
        if record.offset < self.next_offset:
            return
        if self.start_offset < 0:
            self.start_offset = record.offset
        elif record.offset > self.next_offset:
            self.skipped_offsets += record.offset - self.next_offset
        try:
            self._decide(JOINED_SEARCH.decode(record.value), record, plan, repeated=self._note_turn(record))
        except ContractError as error:
            self.dead_lettered += 1
            plan.append(SetAside(EventOutcome.DEAD_LETTERED, error.reason, record, str(error)))
        self.next_offset = record.offset + 1

    def progress(self) -> PairsProgress:
        """Return how far the agent has come and what became of every search so far."""
        return PairsProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            next_offset=self.next_offset,
            hold_offset=self.next_offset,
            counts=SearchCounts(
                paired=self.paired,
                filtered=dict(self.filtered),
                unpaired=dict(self.unpaired),
                dead_lettered=self.dead_lettered,
            ),
            pairs=self.pairs,
            turns=dict(self._turns),
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

    def _note_turn(self, record: LogRecord) -> bool:
        """Note a record's turn and return whether it was seen before."""
        turn = turn_of(record.headers)
        if turn is None:
            return False
        repeated = turn.number <= self._turns.get(turn.join, 0)
        if not repeated:
            self._turns[turn.join] = turn.number
        return repeated

    def _resume(self, progress: PairsProgress) -> None:
        """Go on where the last process had come to, once its memory is rebuilt."""
        self.start_offset, self.next_offset = progress.start_offset, progress.next_offset
        self._turns = dict(progress.turns)
        counts = progress.counts
        self.paired, self.dead_lettered, self.pairs = counts.paired, counts.dead_lettered, progress.pairs
        self.filtered, self.unpaired = dict(counts.filtered), dict(counts.unpaired)

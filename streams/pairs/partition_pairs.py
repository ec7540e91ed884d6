"""The pairs agent's state in one partition of `joined-searches`, and the agent's spec.

Two things must not make a pair twice. A search whose closing number was seen is a repeat, written by a join that was
killed between its output and its progress. A list shown again under the same search id gives pairs of the same ids: it
makes only those that no list remembered here would make. Both memories are functions of the log: a restart reads the
remembered lists again and decides as before.
"""

import heapq
from collections import Counter as Counts
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

from typing_extensions import override

from contracts.errors import ContractError
from contracts.joined import CLOSED_AT_HEADER, PAIRED_AT_HEADER, ClosedSearches, closing_number_of
from contracts.outcomes import filter_reason
from contracts.progress import PairsProgress, SearchCounts
from contracts.structs import JOINED_SEARCH, JoinedSearch, encode
from contracts.telemetry import FilterReason, UnpairedReason
from contracts.topics import DEAD_LETTERS, JOINED_SEARCHES, PREFERENCE_PAIRS, TRAINING_SEARCHES
from service import metrics
from service.settings import Settings
from streams.agents.spec import AgentSpec, Emit, Headers, LogRecord, Plan, RecordRules
from streams.pairs.pairing import SOURCE, Pair, encode_pairs, pairs_of
from streams.pairs.training import training_search

REMEMBERED_MS: Final = 900_000
"""How long, in event time, a list that is shown again is recognised: shoppers come back within minutes."""
REMEMBERED_LISTS: Final = 20_000
"""Most lists remembered in a partition, about 20 MB."""
MAX_TIME_DIGITS: Final = 16

Key = TypeVar("Key")


class PairedList(NamedTuple):
    """A list that makes pairs, whether or not an earlier one had made them."""

    search_id: str
    search_time: int
    closed_at: int
    pair_ids: tuple[str, ...]


class RecentLists:
    """The lists of a partition that make pairs, as far back as they are remembered: a function of the log alone.

    Args:
        newest_closed_ms: newest deadline seen in the partition.
    """

    def __init__(self, newest_closed_ms: int = -1) -> None:
        self.newest_closed_ms = newest_closed_ms
        self._lists: dict[int, PairedList] = {}
        self._offsets: deque[int] = deque()
        """Of the lists, oldest first; here and in the heap, what was forgotten out of turn may stay for a while."""
        self._by_closing: list[tuple[int, int]] = []
        self._shown: Counts[tuple[str, int]] = Counts()
        self._pair_ids: Counts[str] = Counts()
        """Pair id -> how many lists make it: the id says which search it is of."""

    @property
    def oldest_offset(self) -> int | None:
        """Offset of the oldest list remembered."""
        return self._offsets[0] if self._offsets else None

    @property
    def size(self) -> int:
        """How much is kept, in entries."""
        return sum(map(len, (self._lists, self._offsets, self._by_closing, self._shown, self._pair_ids)))

    def make(self, pair_id: str) -> bool:
        """Whether a list that is remembered makes a pair."""
        return pair_id in self._pair_ids

    def hold(self, search: JoinedSearch) -> bool:
        """Whether the very same list is remembered."""
        return (search.search_id, search.search_time) in self._shown

    def advance(self, closed_at: int) -> None:
        """Move event time on and forget what is too old."""
        self.newest_closed_ms = max(self.newest_closed_ms, closed_at)
        while self._by_closing and self._by_closing[0][0] < self.newest_closed_ms - REMEMBERED_MS:
            _, offset = heapq.heappop(self._by_closing)
            self._forget(offset)

    def add(self, offset: int, search: JoinedSearch, pairs: list[Pair]) -> None:
        """Remember a list with the pairs that it makes, and no more lists than there is room for."""
        pair_ids = tuple(pair.pair_id for pair in pairs)
        self._lists[offset] = PairedList(search.search_id, search.search_time, search.closed_at, pair_ids)
        self._offsets.append(offset)
        self._shown[search.search_id, search.search_time] += 1
        self._pair_ids.update(pair_ids)
        heapq.heappush(self._by_closing, (search.closed_at, offset))
        if len(self._lists) > REMEMBERED_LISTS:
            self._forget(self._offsets[0])
        if max(len(self._offsets), len(self._by_closing)) > 2 * REMEMBERED_LISTS:
            self._offsets = deque(self._lists)
            self._by_closing = sorted((one.closed_at, offset) for offset, one in self._lists.items())
        self.advance(search.closed_at)

    def _forget(self, offset: int) -> None:
        forgotten = self._lists.pop(offset, None)
        if forgotten is None:
            return
        _count_down(self._shown, (forgotten.search_id, forgotten.search_time))
        for pair_id in forgotten.pair_ids:
            _count_down(self._pair_ids, pair_id)
        while self._offsets and self._offsets[0] not in self._lists:
            self._offsets.popleft()


def _count_down(counts: Counts[Key], key: Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


class PartitionPairs(RecordRules):
    """Pairing of one partition.

    Args:
        partition: of `joined-searches`.
        past: what the last process that had this partition wrote; None if none ever had.
    """

    def __init__(self, partition: int, past: PairsProgress | None = None) -> None:
        super().__init__(partition, past)
        self.pairs = 0
        self.lists = RecentLists()
        self._closed = ClosedSearches()
        self._remembers_from = self.next_offset
        if past is not None:
            self.pairs, self._closed = past.pairs, ClosedSearches(past.turns)
            self.lists.newest_closed_ms = past.newest_closed_ms
            self._remembers_from = past.hold_offset

    @override
    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the next record; of one that an earlier process took, remember the list again."""
        if self._remembers_from <= record.offset < self.next_offset:
            self._remember_again(record)
        super().take(record, plan)

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Filter a search or make its pairs."""
        search = JOINED_SEARCH.decode(record.value)
        closing = closing_number_of(record.headers)
        repeated = closing is not None and self._closed.is_repeat(closing)
        made = self._pairs(search)
        if not isinstance(made, list):
            kept_out = "filtered" if isinstance(made, FilterReason) else "unpaired"
            if kept_out == "unpaired" and not repeated:
                self._emit_training(search, record, plan)
            return f"filtered/{FilterReason.DUPLICATE}" if repeated else f"{kept_out}/{made}"
        new = [pair for pair in made if not self.lists.make(pair.pair_id)]
        written_before = repeated or self.lists.hold(search)
        self.lists.add(record.offset, search, made)
        if repeated or not new:
            return f"filtered/{FilterReason.DUPLICATE if written_before else FilterReason.RELOAD}"
        self.pairs += len(new)
        key, headers = search.search_id.encode(), _stage_times(record)
        plan.extend(Emit(PREFERENCE_PAIRS, key, value, headers) for value in encode_pairs(search, new))
        self._emit_training(search, record, plan)
        return "paired"

    @override
    def progress(self) -> PairsProgress:
        """Return how far the agent has come and what became of every search so far."""
        oldest = self.lists.oldest_offset
        return PairsProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            next_offset=self.next_offset,
            hold_offset=self.next_offset if oldest is None else oldest,
            counts=SearchCounts(
                paired=self.counts["paired"],
                filtered=self._by_reason("filtered"),
                unpaired=self._by_reason("unpaired"),
                dead_lettered=self.counts["dead_lettered"],
            ),
            pairs=self.pairs,
            turns=dict(self._closed.newest),
            newest_closed_ms=self.lists.newest_closed_ms,
        )

    def _pairs(self, search: JoinedSearch) -> list[Pair] | FilterReason | UnpairedReason:
        """Move event time on and return the pairs that a list makes by itself, or why none."""
        self.lists.advance(search.closed_at)
        return filter_reason(search) or pairs_of(search)

    def _emit_training(self, search: JoinedSearch, record: LogRecord, plan: Plan) -> None:
        """Plan what the learner gets to know of a list."""
        training = training_search(search)
        if training is not None:
            plan.append(Emit(TRAINING_SEARCHES, search.search_id.encode(), encode(training), _stage_times(record)))

    def _remember_again(self, record: LogRecord) -> None:
        """Remember a list once more, a repeat too: whoever reads the log again cannot tell which lists those were."""
        self._remembers_from = record.offset + 1
        with suppress(ContractError):
            search = JOINED_SEARCH.decode(record.value)
            if isinstance(made := self._pairs(search), list):
                self.lists.add(record.offset, search, made)

    def _by_reason(self, outcome: str) -> dict[str, int]:
        prefix = f"{outcome}/"
        return {name.removeprefix(prefix): n for name, n in self.counts.items() if name.startswith(prefix)}


def _stage_times(record: LogRecord) -> Headers:
    """Return the times that earlier stages put on a record; anyone may write headers, so only what is a time."""
    return [
        (name, value)
        for name, value in record.headers
        if name == CLOSED_AT_HEADER and value is not None and len(value) <= MAX_TIME_DIGITS and value.isdigit()
    ]


def _new_state(partition: int, progress: PairsProgress | None, _: Settings) -> PartitionPairs:
    return PartitionPairs(partition, progress)


PAIRS: Final = AgentSpec(
    name="pairs",
    source=JOINED_SEARCHES,
    outputs=(PREFERENCE_PAIRS, TRAINING_SEARCHES, DEAD_LETTERS),
    progress=PairsProgress,
    new_state=_new_state,
    outcomes={"paired": (), "held_out": (), "filtered": FilterReason, "unpaired": UnpairedReason, "dead_lettered": ()},
    ledger=("searches", "closed"),
    counter=metrics.SEARCH_OUTCOMES,
    totals={"pairs": (metrics.PAIRS_BUILT, (SOURCE,))},
    event_time="newest_closed_ms",
    written_at=PAIRED_AT_HEADER,
)

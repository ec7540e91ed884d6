"""The pairs agent's state in one partition of `joined-searches`, and the agent's spec.

A list waits until all joins have come as far in event time; then it is judged by its shopper's other lists and told
to the learner, with its pairs. A list that is known already, or whose closing number was seen, is a repeat, written by
a join that was killed between its output and its progress. Of a list shown again under the same search id what was
chosen before does not count again, so no pair is made twice. What waits and what is remembered is a function of the
log: a restart reads it again and decides as before.
"""

import heapq
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from typing_extensions import override

from contracts.errors import ContractError, MalformedMessage
from contracts.joined import (
    CLOSED_AT_HEADER,
    PAIRED_AT_HEADER,
    ClosedSearches,
    closed_watermark_of,
    closing_number_of,
)
from contracts.outcomes import Theta, filter_reason, prior
from contracts.progress import PairsProgress, SearchCounts
from contracts.structs import JOINED_SEARCH, JoinedSearch, encode
from contracts.telemetry import FILTERS_ON, EventOutcome, Filter, FilterReason, OutOfTime, SlotReason, UnpairedReason
from contracts.topics import DEAD_LETTERS, HOLDOUT_SEARCHES, JOINED_SEARCHES, PREFERENCE_PAIRS, TRAINING_SEARCHES
from service import metrics
from service.settings import Settings
from streams.agents.spec import WATERMARKS, AgentSpec, Emit, Headers, LogRecord, Plan, RecordRules
from streams.pairs.filters import LOOK_AHEAD, is_held_out, judge
from streams.pairs.pairing import SOURCE, encode_pairs, pairs_of
from streams.pairs.recent_lists import REMEMBERED_MS, ListKey, RecentLists, facts_of
from streams.pairs.training import training_search
from streams.pairs.waiting import JoinWatermarks

MOST_WAITING: Final = 5_000
"""Most lists that wait in a partition; one join that is far behind the others could hold up any number."""
MOST_WAITING_BYTES: Final = 64 * 2**20
"""Likewise, by their records: a list may have a thousand slots."""
MAX_TIME_DIGITS: Final = 16


class WaitingList(NamedTuple):
    """A list that waits until it can be decided."""

    key: ListKey
    offset: int
    search: JoinedSearch
    headers: Headers
    held_out: bytes | None
    """The list itself if it is one that is never learned from."""
    record_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsOptions:
    """How lists are judged.

    Args:
        joins: partitions of the join that are waited for; 0 if lists are decided as they come.
        silence_ms: for how long one that says nothing is waited for.
        look_ahead_ms: how much later the lists close that a decision may look at.
        filters: those that are on.
        holdout_share: share of shoppers, and of queries, whose lists are never learned from.
    """

    joins: int = 0
    silence_ms: int = 60_000
    look_ahead_ms: int = 0
    filters: frozenset[Filter] = frozenset(FILTERS_ON)
    holdout_share: float = 0.0


class PartitionPairs(RecordRules):
    """Pairing of one partition.

    Args:
        partition: of `joined-searches`.
        past: what the last process that had this partition wrote; None if none ever had.
        options: how lists are judged.
        theta: propensities by cell, position and moment.
    """

    def __init__(
        self,
        partition: int,
        past: PairsProgress | None = None,
        *,
        options: PairsOptions | None = None,
        theta: Theta = prior,
    ) -> None:
        super().__init__(partition, past)
        self._options = options or PairsOptions()
        self.theta = theta
        self.pairs = self.without_silent = self.for_want_of_room = self.behind_time = 0
        self.lists = RecentLists()
        self._closed = ClosedSearches()
        self._waiting: list[WaitingList] = []
        """A heap, by key."""
        self._waiting_bytes = 0
        self._read_again_from = self.next_offset
        self._waited: frozenset[int] = frozenset()
        """Offsets of the lists that waited when the last process wrote its progress."""
        joins, silence_ms = self._options.joins, self._options.silence_ms
        if past is None:
            self.joins = JoinWatermarks(joins, silence_ms)
            return
        self.joins = JoinWatermarks(joins, silence_ms, past.joins, newest_ms=past.newest_written_ms)
        self._closed = ClosedSearches(past.turns)
        self.pairs, self.without_silent = past.pairs, past.without_silent
        self.for_want_of_room, self.behind_time = past.for_want_of_room, past.behind_time
        self.lists.newest_closed_ms = past.newest_closed_ms
        self._read_again_from, self._waited = past.hold_offset, frozenset(past.waiting)

    @override
    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the next record and decide on what can be decided now; one that was taken before is known again."""
        if record.offset < self.next_offset:
            if record.offset >= self._read_again_from:
                self._read_again_from = record.offset + 1
                self._know_again(record)
            return
        self.joins.note_time(record.timestamp)
        if (told := closed_watermark_of(record.headers)) is not None:
            self.joins.note(told, record.timestamp)
        super().take(record, plan)
        self._decide_due(plan)

    @override
    def decide(self, record: LogRecord, plan: Plan) -> str:
        """Let a list wait, unless what it says itself keeps it out."""
        search = _list_of(record)
        repeated = self._closed.is_repeat(closing_number_of(record.headers))
        if repeated or self.lists.knows(search):
            if filter_reason(search) is None:
                self._remember(search, record.offset)
            return f"filtered/{FilterReason.DUPLICATE}"
        if reason := filter_reason(search):
            return f"filtered/{reason}"
        looked_at = max(-1, search.closed_at - self._options.look_ahead_ms) < self.lists.newest_closed_ms
        self.behind_time += self._options.joins > 0 and looked_at
        self._wait(search, record)
        return EventOutcome.PENDING

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
                held_out=self.counts["held_out"],
                filtered=self._by_reason("filtered"),
                unpaired=self._by_reason("unpaired"),
                dead_lettered=self.counts["dead_lettered"],
                pending=len(self._waiting),
                watermarks=self.counts[WATERMARKS],
            ),
            pairs=self.pairs,
            turns=dict(self._closed.newest),
            newest_closed_ms=self.lists.newest_closed_ms,
            joins=self.joins.known(),
            newest_written_ms=self.joins.newest_ms,
            waiting=tuple(sorted(one.offset for one in self._waiting)),
            without_silent=self.without_silent,
            for_want_of_room=self.for_want_of_room,
            behind_time=self.behind_time,
        )

    def _wait(self, search: JoinedSearch, record: LogRecord) -> None:
        """Let a list wait for its decision."""
        facts = facts_of(search, record.offset)
        self.lists.add(facts)
        held_out = record.value if is_held_out(facts, self._options.holdout_share) else None
        size = len(record.value or b"")
        waiting = WaitingList(facts.key, record.offset, search, _stage_times(record), held_out, size)
        heapq.heappush(self._waiting, waiting)
        self._waiting_bytes += size

    def _remember(self, search: JoinedSearch, offset: int) -> None:
        """Remember a list that is decided, unless it is known: whoever reads the log again cannot tell repeats."""
        if not self.lists.knows(search):
            facts = facts_of(search, offset)
            self.lists.add(facts)
            self.lists.settle(facts.key)

    def _know_again(self, record: LogRecord) -> None:
        """Bring back what was known of a list, and let it wait again if it waited."""
        with suppress(ContractError):
            told = closed_watermark_of(record.headers)
            if told is not None and told.idle is not None:
                return
            search = _list_of(record)
            if record.offset in self._waited:
                self._wait(search, record)
            elif filter_reason(search) is None:
                self._remember(search, record.offset)

    def _decide_due(self, plan: Plan) -> None:
        """Decide on the lists that nothing can precede any more, in the order of event time."""
        if not self._waiting:
            return
        least, heard = self.joins.least(), self.joins.least_heard()
        while self._waiting:
            closes = self._waiting[0].key.closed_at + self._options.look_ahead_ms
            is_due = closes < least
            has_room = len(self._waiting) <= MOST_WAITING and self._waiting_bytes <= MOST_WAITING_BYTES
            if not is_due and closes >= heard and has_room:
                return
            self.without_silent += not is_due and closes < heard
            self.for_want_of_room += not is_due and closes >= heard
            waiting = heapq.heappop(self._waiting)
            self._waiting_bytes -= waiting.record_bytes
            self.lists.advance(waiting.key.closed_at)
            self.counts[EventOutcome.PENDING] -= 1
            self.counts[self._judge(waiting, plan)] += 1
            self.lists.settle(waiting.key)

    def _judge(self, waiting: WaitingList, plan: Plan) -> str:
        """Plan what follows from a list and return what became of it."""
        search, facts, options = waiting.search, self.lists[waiting.key], self._options
        judgement = judge(search, facts, self.lists, filters=options.filters, look_ahead_ms=options.look_ahead_ms)
        if judgement.reason is not None:
            return f"filtered/{judgement.reason}"
        if waiting.held_out is not None:
            plan.append(Emit(HOLDOUT_SEARCHES, search.search_id.encode(), waiting.held_out, waiting.headers))
            return "held_out"
        chosen_before = [one for one in facts.counted if self.lists.chose(one, facts.key)]
        if chosen_before and len(chosen_before) == len(facts.counted):
            return f"filtered/{FilterReason.RELOAD}"
        excluded = {**judgement.excluded, **dict.fromkeys(chosen_before, SlotReason.REPEATED_CLICK)}
        cap, made = judgement.cap, pairs_of(search, excluded=excluded)
        if isinstance(made, list):
            self.pairs += len(made)
            reasons = [reason.value for reason in excluded.values()]
            values = encode_pairs(search, made, theta=self.theta, cap=cap, filters=reasons)
            key = search.search_id.encode()
            plan.extend(Emit(PREFERENCE_PAIRS, key, value, waiting.headers) for value in values)
        training = training_search(search, theta=self.theta, excluded=excluded, cap=cap)
        if training is not None:
            plan.append(Emit(TRAINING_SEARCHES, search.search_id.encode(), encode(training), waiting.headers))
        return "paired" if isinstance(made, list) else f"unpaired/{made}"

    def _by_reason(self, outcome: str) -> dict[str, int]:
        prefix = f"{outcome}/"
        return {name.removeprefix(prefix): n for name, n in self.counts.items() if name.startswith(prefix)}


def _list_of(record: LogRecord) -> JoinedSearch:
    """Decode a list; one that closes long after it was written would make all others too old to be remembered."""
    search = JOINED_SEARCH.decode(record.value)
    if search.closed_at > record.timestamp + REMEMBERED_MS:
        raise MalformedMessage("too_far_ahead", "closed_at: lies days after the list was written", field="closed_at")
    return search


def _stage_times(record: LogRecord) -> Headers:
    """Return the times that earlier stages put on a record; anyone may write headers, so only what is a time."""
    return [
        (name, value)
        for name, value in record.headers
        if name == CLOSED_AT_HEADER and value is not None and len(value) <= MAX_TIME_DIGITS and value.isdigit()
    ]


def options_of(settings: Settings) -> PairsOptions:
    """Return how a deployment judges lists; they wait for later ones only if a filter looks at those."""
    filters = settings.filter_set()
    looks_ahead = bool(filters & LOOK_AHEAD)
    return PairsOptions(
        joins=settings.partitions,
        silence_ms=round(1000 * settings.join_silence_s),
        look_ahead_ms=round(1000 * settings.look_ahead_s) if looks_ahead else 0,
        filters=filters,
        holdout_share=settings.holdout_share,
    )


def _new_state(partition: int, progress: PairsProgress | None, settings: Settings) -> PartitionPairs:
    return PartitionPairs(partition, progress, options=options_of(settings))


PAIRS: Final = AgentSpec(
    name="pairs",
    source=JOINED_SEARCHES,
    outputs=(PREFERENCE_PAIRS, TRAINING_SEARCHES, HOLDOUT_SEARCHES, DEAD_LETTERS),
    progress=PairsProgress,
    new_state=_new_state,
    outcomes={"paired": (), "held_out": (), "filtered": FilterReason, "unpaired": UnpairedReason, "dead_lettered": ()},
    ledger=("searches", "closed"),
    counter=metrics.SEARCH_OUTCOMES,
    totals={
        "pairs": (metrics.PAIRS_BUILT, (SOURCE,)),
        **{name: (metrics.LISTS_OUT_OF_TIME, (name,)) for name in OutOfTime},
    },
    event_time="newest_closed_ms",
    written_at=PAIRED_AT_HEADER,
    agent="streams.pairs.agent:PairsAgent",
)

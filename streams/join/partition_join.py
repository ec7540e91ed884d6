"""The event-time join of one partition: impressions and what followed them become joined searches.

A search is identified by (search_id, search_time), so its deadline is a function of any of its events alone: a replayed
straggler can never re-open a search that was closed. It closes when the watermark has passed the deadline, record by
record in the log's order: what was decided up to an offset depends on the log alone, not on how it was cut into chunks.

A restart repeats the log from the oldest undecided record, with the watermark of that moment, up to where it had come:
the same decisions are made again and thrown away, and the state is the same as without the restart.
"""

import heapq
from enum import IntEnum
from itertools import count

from contracts.errors import ContractError, MalformedMessage
from contracts.joined import CLOSING_NUMBER_HEADER, ClosingNumber
from contracts.progress import EventCounts, JoinProgress
from contracts.structs import SEARCH_RECORD, Purchase, ShopEvent, Tick
from contracts.telemetry import AsideReason, EventOutcome
from contracts.topics import JOINED_SEARCHES
from streams.agents.spec import Emit, LogRecord, Plan, SetAside
from streams.join.hold import Hold
from streams.join.open_search import Held, OpenSearch, joined_search, search_of
from streams.join.strays import Stray, Strays
from streams.join.watermark import BEFORE_FIRST_MS, Watermark, record_time_ms
from streams.join.windows import Windows


class _Due(IntEnum):
    """What happens at a moment of event time; at the same moment in this order."""

    CLOSE = 0
    EXPIRE = 1
    RELEASE = 2


class PartitionJoin:
    """The join of one partition.

    Args:
        partition: of `search-events`.
        window_ms: how long after a search its events count.
        lateness_ms: how much disorder is waited for.
        progress: what the last process that had this partition wrote; None where none ever had.
    """

    def __init__(
        self, partition: int, *, window_ms: int, lateness_ms: int, progress: JoinProgress | None = None
    ) -> None:
        self.partition = partition
        self._windows = Windows(window_ms, lateness_ms)
        self.watermark = Watermark(lateness_ms)
        self.newest_ms = self.newest_append_ms = BEFORE_FIRST_MS
        self.start_offset = self.next_offset = -1
        self.skipped_offsets = 0
        """Offsets at which there was no record: marks of transactions, or what Kafka had deleted."""
        self.replay_mismatch = False
        """Whether the last restart could not rebuild what had been pending, because records were gone."""
        self._counts = dict.fromkeys(EventOutcome, 0)
        self._ticks = self._searches_closed = self._open = 0
        self._searches: dict[str, list[OpenSearch]] = {}
        self._strays = Strays()
        self._hold = Hold()
        self._due: list[tuple[int, _Due, str, int, OpenSearch | Stray]] = []
        self._sequence = count()
        self._past: JoinProgress | None = None
        self._first_append_ms: int | None = None
        if progress is not None:
            self._begin_replay(progress)

    @property
    def replaying(self) -> bool:
        """Whether records are still being read a second time."""
        return self._past is not None

    @property
    def open_searches(self) -> int:
        """Searches whose window is open."""
        return self._open

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the partition's next record and add what follows from it to the plan; one seen before adds nothing."""
        if record.offset < self.next_offset:
            return
        self._note_position(record.offset, record.timestamp)
        if self._windows.earlier:
            self.watermark.lateness_ms = self._windows.lateness_at(record.offset)
        plan = [] if self.replaying else plan
        try:
            self._take(SEARCH_RECORD.decode(record.value), record, plan)
        except ContractError as error:
            self._set_aside(EventOutcome.DEAD_LETTERED, error.reason, record, plan, error=str(error))
        self.next_offset = record.offset + 1
        self._maybe_end_replay()

    def progress(self) -> JoinProgress:
        """Return how far the join has come and what became of every record so far."""
        low_water = self._hold.low_water(self.next_offset, self.watermark.at_ms)
        return JoinProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            first_append_ms=self._first_append_ms,
            next_offset=self.next_offset,
            hold_offset=low_water.offset,
            watermark_ms=self.watermark.at_ms,
            hold_watermark_ms=low_water.watermark_ms,
            newest_append_ms=self.newest_append_ms,
            window_ms=self._windows.window_ms,
            lateness_ms=self._windows.lateness_ms,
            earlier_windows=self._windows.needed_at(low_water.watermark_ms),
            counts=EventCounts(**self.counts()),
            searches_closed=self._searches_closed,
            open_searches=self._open,
        )

    def counts(self) -> dict[str, int]:
        """Return what became of the records so far, by outcome."""
        names = EventCounts.model_fields
        return {**{outcome: n for outcome, n in self._counts.items() if outcome in names}, "ticks": self._ticks}

    def tick_time_ms(self, now_ms: int) -> int | None:
        """Return the event time that a tick would carry now; None before the first record."""
        if self.newest_ms == BEFORE_FIRST_MS:
            return None
        return self.newest_ms + max(0, now_ms - self.newest_append_ms)

    @property
    def _name(self) -> str:
        """What tells this join from every other: an offset alone returns when a topic is made anew."""
        begun = "" if self._first_append_ms is None else f"-{self._first_append_ms}"
        return f"{self.partition}-{self.start_offset}{begun}"

    def _note_position(self, offset: int, append_ms: int) -> None:
        """Remember where reading began, and notice records that are gone."""
        if self.start_offset < 0:
            self.start_offset, self._first_append_ms = offset, append_ms
        elif offset > self.next_offset:
            self.skipped_offsets += offset - self.next_offset

    def _take(self, event: ShopEvent | Tick, record: LogRecord, plan: Plan) -> None:
        """Take one record whose form is right."""
        time_ms = record_time_ms(event.event_time, record.timestamp)
        if isinstance(event, Tick):
            self._advance(time_ms, record, plan)
            self._ticks += 1
            return
        search_id, search_time = search_of(event)
        if search_time is not None:
            record_time_ms(search_time, record.timestamp, field="search_time")
        if isinstance(event, Purchase) and len(event.items) > 1:
            raise MalformedMessage(AsideReason.UNSPLIT_PURCHASE, "items: one record per line, please", field="items")
        before = self.watermark.at_ms
        self._advance(time_ms, record, plan)
        held = Held(event, time_ms, record)
        if search_id is None:
            self._set_aside(EventOutcome.ORPHAN, AsideReason.NO_SEARCH, record, plan)
        elif search_time is None:
            self._wait(held, search_id, watermark_ms=before)
            self._settle(plan)
        else:
            self._attach(held, search_id, search_time, watermark_ms=before, plan=plan)

    def _advance(self, time_ms: int, record: LogRecord, plan: Plan) -> None:
        """Move event time on and do what has become due."""
        if time_ms > self.newest_ms:
            self.newest_ms, self.newest_append_ms = time_ms, record.timestamp
        self.watermark.advance(time_ms)
        self._settle(plan)

    def _settle(self, plan: Plan) -> None:
        """Do everything whose moment the watermark has passed, in the order of event time."""
        while self._due and self._due[0][0] < self.watermark.at_ms:
            _, kind, _, _, subject = heapq.heappop(self._due)
            if isinstance(subject, Stray):
                self._expire(subject, plan)
            elif kind is _Due.CLOSE:
                self._close(subject, plan)
            else:
                subject.released = True

    def _attach(self, held: Held, search_id: str, search_time: int, *, watermark_ms: int, plan: Plan) -> None:
        """Give an event to the search that it names, or set it aside as late."""
        search = self._find(search_id, search_time)
        deadline = search_time + self._windows.window_at(search_time) if search is None else search.deadline
        if held.time_ms > deadline:
            self._set_aside(EventOutcome.LATE, AsideReason.AFTER_DEADLINE, held.record, plan)
            return
        if search is None:
            if deadline < self.watermark.at_ms:
                self._set_aside(EventOutcome.LATE, AsideReason.AFTER_CLOSE, held.record, plan)
                return
            search = OpenSearch(search_id, search_time, deadline, held.record.offset, watermark_ms)
            self._open_search(search)
        self._counts[EventOutcome.PENDING if search.add(held) else EventOutcome.DUPLICATE] += 1

    def _find(self, search_id: str, search_time: int) -> OpenSearch | None:
        """Return an open search by its identity."""
        for search in self._searches.get(search_id, ()):
            if search.search_time == search_time:
                return search
        return None

    def _open_search(self, search: OpenSearch) -> None:
        """Open a search; from now on it holds the log."""
        self._searches.setdefault(search.search_id, []).append(search)
        self._open += 1
        self._hold.add(search)
        self._schedule(search.deadline, _Due.CLOSE, search.search_id, search)

    def _schedule(self, at_ms: int, kind: _Due, name: str, subject: OpenSearch | Stray) -> None:
        """Have something done once the watermark has passed a moment."""
        heapq.heappush(self._due, (at_ms, kind, name, next(self._sequence), subject))

    def _wait(self, held: Held, search_id: str, *, watermark_ms: int) -> None:
        """Let an event without `search_time` wait for an impression."""
        expires = held.time_ms + self._windows.window_at(held.time_ms)
        stray = Stray(search_id, held, expires, held.record.offset, watermark_ms)
        self._counts[EventOutcome.PENDING] += 1
        self._strays.add(stray)
        self._hold.add(stray)
        self._schedule(stray.expires, _Due.EXPIRE, held.event.event_id, stray)

    def _expire(self, stray: Stray, plan: Plan) -> None:
        """End an event's wait: a search that is open takes it, or it is an orphan."""
        if stray.bound:
            return
        self._strays.remove(stray)
        search = Strays.home(stray, self._searches.get(stray.search_id, ()))
        if search is None:
            stray.released = True
            self._counts[EventOutcome.PENDING] -= 1
            self._set_aside(EventOutcome.ORPHAN, AsideReason.NO_IMPRESSION, stray.held.record, plan)
        else:
            self._bind(stray, search)

    def _bind(self, stray: Stray, search: OpenSearch) -> None:
        """Add a waiting event to a search."""
        search.strays.append(stray)
        if not search.add(stray.held):
            self._counts[EventOutcome.PENDING] -= 1
            self._counts[EventOutcome.DUPLICATE] += 1

    def _close(self, search: OpenSearch, plan: Plan) -> None:
        """Close a search whose deadline the watermark has passed."""
        self._open -= 1
        same_id = self._searches[search.search_id]
        same_id.remove(search)
        if not same_id:
            del self._searches[search.search_id]
        if search.impressions:
            for stray in self._strays.take_for(search):
                self._bind(stray, search)
            self._emit(search, plan)
        else:
            self._orphan(search, plan)
        self._release(search)

    def _release(self, search: OpenSearch) -> None:
        """Let go of a closed search.

        One that took waiting events goes on holding the log until no list that could take them can be open any more: a
        restart that began after it would see them waiting and give them to another list.
        """
        for stray in search.strays:
            stray.released = True
        if not search.strays:
            search.released = True
            return
        until = max(stray.expires for stray in search.strays) + self._windows.longest_ms
        self._schedule(until, _Due.RELEASE, search.search_id, search)

    def _emit(self, search: OpenSearch, plan: Plan) -> None:
        """Plan a closed search's message."""
        shown, happened = search.close()
        key, value = joined_search(search, shown, happened, partition=self.partition)
        joined = 1 + len(happened)
        self._searches_closed += 1
        number = ClosingNumber(self._name, self._searches_closed)
        plan.append(Emit(JOINED_SEARCHES, key, value, [(CLOSING_NUMBER_HEADER, number.encode())]))
        self._counts[EventOutcome.PENDING] -= len(search.events)
        self._counts[EventOutcome.JOINED] += joined
        self._counts[EventOutcome.DUPLICATE] += len(search.events) - joined

    def _orphan(self, search: OpenSearch, plan: Plan) -> None:
        """Set the events of a search aside that never showed a list."""
        self._counts[EventOutcome.PENDING] -= len(search.events)
        for held in sorted(search.events.values(), key=lambda one: one.record.offset):
            self._set_aside(EventOutcome.ORPHAN, AsideReason.NO_IMPRESSION, held.record, plan)

    def _set_aside(self, outcome: EventOutcome, reason: str, record: LogRecord, plan: Plan, *, error: str = "") -> None:
        """Plan to put a record on the topic of its outcome."""
        self._counts[outcome] += 1
        plan.append(SetAside(outcome, reason, record, error))

    def _begin_replay(self, past: JoinProgress) -> None:
        """Stand where the oldest undecided record stands, with the windows of that time."""
        self._past = past
        configured = self._windows
        self._configured = (configured.window_ms, configured.lateness_ms)
        self._windows = Windows(
            configured.window_ms if past.window_ms is None else past.window_ms,
            configured.lateness_ms if past.lateness_ms is None else past.lateness_ms,
            earlier=past.earlier_windows or (),
        )
        self.watermark = Watermark(self._windows.lateness_ms, at_ms=past.hold_watermark_ms)
        self.start_offset, self.next_offset = past.start_offset, past.hold_offset
        self._first_append_ms = past.first_append_ms
        self._maybe_end_replay()

    def _maybe_end_replay(self) -> None:
        """Where the replay has come to where the last process had come: go on with its counts."""
        past = self._past
        if past is None or self.next_offset < past.next_offset:
            return
        self._past = None
        counted = past.counts.model_dump()
        pending = self._counts[EventOutcome.PENDING]
        self.replay_mismatch = (pending, self._open) != (counted["pending"], past.open_searches)
        self._counts = {outcome: counted.get(outcome, 0) for outcome in EventOutcome}
        self._counts[EventOutcome.PENDING] = pending
        self._ticks, self._searches_closed = past.counts.ticks, past.searches_closed
        # A watermark waits after lateness was raised; no record's time lies above its arrival.
        newest_ms = min(past.watermark_ms + self.watermark.lateness_ms, past.newest_append_ms)
        if past.watermark_ms > BEFORE_FIRST_MS and newest_ms >= self.newest_ms:
            self.newest_ms, self.newest_append_ms = newest_ms, past.newest_append_ms
        self.watermark.at_ms = max(self.watermark.at_ms, past.watermark_ms)
        self._change_windows()

    def _change_windows(self) -> None:
        """Let the configured windows hold for what comes now."""
        window_ms, lateness_ms = self._configured
        shown_ms = [search.search_time for same_id in self._searches.values() for search in same_id]
        self._windows.change(
            window_ms, lateness_ms, shown_from_ms=max(self.newest_ms, *shown_ms, -1) + 1, read_from=self.next_offset
        )

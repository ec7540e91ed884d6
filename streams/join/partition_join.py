"""The event-time join of one partition: impressions and what followed them become joined searches.

A search is identified by (search_id, search_time), so its deadline is a function of any of its events alone: a replayed
straggler can never re-open a search that was closed. It closes when the watermark has passed the deadline, record by
record in the log's order: what was decided up to an offset depends on the log alone, not on how it was cut into chunks.
A restart repeats the log from the oldest undecided record up to where it had come, and throws the decisions away.
"""

from collections.abc import Collection
from typing import Literal

import msgspec

from contracts.errors import ContractError, MalformedMessage
from contracts.joined import CLOSING_NUMBER_HEADER, WATERMARK_HEADER, ClosedWatermark, ClosingNumber, is_personal
from contracts.progress import EventCounts, JoinProgress
from contracts.structs import SEARCH_RECORD, ShopEvent, Tick
from contracts.telemetry import AsideReason, EventOutcome
from contracts.topics import JOINED_SEARCHES, belongs
from contracts.wire import within_bounds
from streams.agents.spec import Emit, LogRecord, Plan, SetAside
from streams.join.event_time import BEFORE_FIRST_MS, EventTime, Hold, LowWater, Windows, happened_ms
from streams.join.joined_search import joined_search
from streams.join.open_search import KeptRecord, OpenSearch, OpenSearches, held_event, packed_list, protected_record
from streams.join.waiting_events import WaitingEvent, WaitingEvents


class Snapshot(msgspec.Struct, array_like=True):
    """Everything that a replay up to an offset would rebuild."""

    form: Literal[2]
    join: str
    next_offset: int
    watermark_ms: int
    moved_append_ms: int
    newest_ms: int
    newest_append_ms: int
    named_ms: int
    pending: int
    searches: list[OpenSearch]
    waiting: list[WaitingEvent]
    hold: list[bytes]


class PartitionJoin:
    """The join of one partition.

    Args:
        partition: of `search-events`.
        window_ms: how long after a search its events count.
        lateness_ms: how much disorder is waited for.
        progress: what the last process that had this partition wrote; None if none ever had.
        partitions: how many the topic has; None if that is not known.
        person_key: replaces client and user ids that are not replaced yet; without it they are left out.
    """

    def __init__(
        self,
        partition: int,
        *,
        partitions: int | None = None,
        window_ms: int,
        lateness_ms: int,
        progress: JoinProgress | None = None,
        person_key: bytes | None = None,
    ) -> None:
        self.partition = partition
        self._partitions = partitions
        self._person_key = person_key
        self._windows = Windows(window_ms, lateness_ms)
        self.event_time = EventTime(lateness_ms)
        self.start_offset = self.next_offset = -1
        self.skipped_offsets = 0
        """Offsets at which there was no record: marks of transactions, or what Kafka had deleted."""
        self.replay_mismatch = False
        """Whether the last restart could not rebuild what had been pending, because records were gone."""
        self._counts = EventCounts().model_dump()
        self._name = ""
        """What tells this join from every other: an offset alone returns when a topic is made anew."""
        self._searches_closed = 0
        self._searches = OpenSearches()
        self._waiting = WaitingEvents()
        self._hold = Hold()
        self._named_ms = BEFORE_FIRST_MS
        """The latest time for which a window was looked up."""
        self._past: JoinProgress | None = None
        self._first_append_ms: int | None = None
        self.begun_in: str | None = None
        """Kafka's id of the progress topic in which this join began, if Kafka told one."""
        if progress is not None:
            self._begin_replay(progress)

    @property
    def replaying(self) -> bool:
        """Whether records are still being read a second time."""
        return self._past is not None

    @property
    def open_searches(self) -> int:
        """Searches whose window is open."""
        return len(self._searches)

    def take(self, record: LogRecord, plan: Plan) -> None:
        """Take the partition's next record and add what follows from it to the plan; one seen before adds nothing."""
        offset = record.offset
        if offset < self.next_offset:
            return
        if offset > self.next_offset:
            self._skip_to(record)
        if self._windows.earlier:
            self.event_time.lateness_ms = self._windows.lateness_at(offset)
        plan = plan if self._past is None else []
        try:
            self._take(SEARCH_RECORD.decode(within_bounds(record.value or b"")), record, plan)
        except ContractError as error:
            self._set_aside(EventOutcome.DEAD_LETTERED, error.reason, record, plan, error=str(error))
        self.next_offset = offset + 1
        if self._past is not None:
            self._maybe_end_replay(self.next_offset)

    def progress(self) -> JoinProgress:
        """Return how far the join has come and what became of every record so far."""
        watermark_ms = self.event_time.watermark_ms
        now = LowWater(self.next_offset, watermark_ms, self.event_time.moved_append_ms)
        low_water = self._hold.low_water(watermark_ms) or now
        newest_append_ms, held_append_ms = self.event_time.newest_append_ms, low_water.moved_append_ms
        return JoinProgress(
            partition=self.partition,
            start_offset=self.start_offset,
            first_append_ms=self._first_append_ms,
            begun_in=self.begun_in,
            next_offset=self.next_offset,
            hold_offset=low_water.offset,
            watermark_ms=watermark_ms,
            hold_watermark_ms=low_water.watermark_ms,
            hold_append_ms=None if held_append_ms == newest_append_ms else held_append_ms,
            newest_append_ms=newest_append_ms,
            window_ms=self._windows.window_ms,
            lateness_ms=self._windows.lateness_ms,
            earlier_windows=self._windows.needed_at(low_water.watermark_ms),
            counts=EventCounts(**self._counts),
            searches_closed=self._searches_closed,
            open_searches=self.open_searches,
        )

    def counts(self) -> dict[str, int]:
        """Return what became of the records so far, by outcome."""
        return dict(self._counts)

    def tick_time_ms(self, now_ms: int) -> int | None:
        """Return the event time that a tick would carry now; None while nothing waits for event time to move on."""
        undecided = self._hold.low_water(self.event_time.watermark_ms)
        return None if undecided is None else self.event_time.next_tick_ms(now_ms)

    def snapshot(self) -> bytes | None:
        """Return the state, for `restore`; None during a replay. Only what is acknowledged and counted may be saved."""
        if self.replaying:
            return None
        return msgspec.msgpack.encode(
            Snapshot(
                2,
                self._name,
                self.next_offset,
                self.event_time.watermark_ms,
                self.event_time.moved_append_ms,
                self.event_time.newest_ms,
                self.event_time.newest_append_ms,
                self._named_ms,
                self._counts["pending"],
                list(self._searches),
                list(self._waiting),
                self._hold.save(),
            )
        )

    def restore(self, snapshot: bytes) -> bool:
        """Take over a saved state in place of a replay, or of most of it.

        Returns:
            Whether it fits the progress from which this join began; if not, everything is as before.
        """
        past = self._past
        try:
            saved = msgspec.msgpack.decode(snapshot, type=Snapshot)
        except msgspec.DecodeError:
            return False
        if past is None or saved.join != self._name:
            return False
        if not self.next_offset <= saved.next_offset <= past.next_offset:
            return False
        self._searches, self._waiting = OpenSearches(saved.searches), WaitingEvents(saved.waiting)
        self._hold = Hold(saved.hold)
        time = self.event_time
        time.watermark_ms, time.moved_append_ms = saved.watermark_ms, saved.moved_append_ms
        time.newest_ms, time.newest_append_ms = saved.newest_ms, saved.newest_append_ms
        self._named_ms, self._counts["pending"] = saved.named_ms, saved.pending
        self.next_offset = saved.next_offset
        self._maybe_end_replay(self.next_offset)
        return True

    def _begin(self, start_offset: int, first_append_ms: int | None, begun_in: str | None) -> None:
        """Take the name that tells this join from every other.

        An offset returns if a topic is made anew, and a log that lost its end begins as before. What Kafka alone gives
        needs no record of it: a join that is killed before its first progress has the same name again.
        """
        self.start_offset, self._first_append_ms, self.begun_in = start_offset, first_append_ms, begun_in
        begun = (self.partition, start_offset, first_append_ms, begun_in)
        self._name = "-".join(str(part) for part in begun if part is not None)

    def _skip_to(self, record: LogRecord) -> None:
        """Begin at a record, or pass over offsets at which there is none."""
        if self.start_offset < 0:
            self._begin(record.offset, record.timestamp, self.begun_in)
            return
        self.skipped_offsets += record.offset - self.next_offset
        self._maybe_end_replay(record.offset)

    def _take(self, event: ShopEvent | Tick, record: LogRecord, plan: Plan) -> None:
        """Take one record whose form is right."""
        time, append_ms = self.event_time, record.timestamp
        if event.type == "tick":
            self._counts["ticks"] += 1
            time.advance(time.tick_happened_ms(event.event_time, append_ms), append_ms=append_ms)
            self._settle(plan)
            return
        time_ms = happened_ms(event.event_time, append_ms)
        search_id: str | None
        search_time: int | None
        if event.type == "impression":
            search_id, search_time = event.search_id, event.event_time
        else:
            named = event.items[0] if event.type == "purchase" else event
            search_id, search_time = named.search_id, named.search_time
            if search_time is not None and search_time > append_ms:
                happened_ms(search_time, append_ms, field="search_time")
            if event.type == "purchase" and len(event.items) > 1:
                raise MalformedMessage(
                    AsideReason.UNSPLIT_PURCHASE, "items: one record per line, please", field="items"
                )
        before = (time.watermark_ms, time.moved_append_ms)
        if time.advance(time_ms, append_ms=append_ms) > before[0]:
            self._settle(plan)
        if search_id is None:
            self._set_aside(EventOutcome.ORPHAN, AsideReason.NO_SEARCH, record, plan)
        elif search_time is None:
            self._wait(event, time_ms, record, search_id, before=before)
            self._settle(plan)
        else:
            self._attach(event, time_ms, record, search_id, search_time, before=before, plan=plan)

    def _settle(self, plan: Plan) -> None:
        """Do everything whose moment the watermark has passed."""
        watermark_ms = self.event_time.watermark_ms
        while (search := self._searches.pop_due(watermark_ms)) is not None:
            self._close(search, plan)
        while (expired := self._waiting.pop_expired(watermark_ms)) is not None:
            search_id, record = expired
            self._set_aside_orphans([record], search_id, plan)

    def _attach(
        self,
        event: ShopEvent,
        time_ms: int,
        record: LogRecord,
        search_id: str,
        search_time: int,
        *,
        before: tuple[int, int],
        plan: Plan,
    ) -> None:
        """Give an event to the search that it names, or set it aside as late."""
        search = self._searches.find(search_id, search_time)
        deadline = search_time + self._windows.window_at(search_time) if search is None else search.deadline
        if time_ms > deadline:
            self._set_aside(EventOutcome.LATE, AsideReason.AFTER_DEADLINE, record, plan)
            return
        if search is None:
            if deadline < self.event_time.watermark_ms:
                self._set_aside(EventOutcome.LATE, AsideReason.AFTER_CLOSE, record, plan)
                return
            search = OpenSearch(deadline, search_id, deadline - search_time)
            self._searches.add(search)
            self._hold.begin(record.offset, before, until_ms=deadline)
            self._named_ms = max(self._named_ms, search_time)
        if event.type == "impression":
            added = search.show(event.event_id, packed_list(event, record.offset, person_key=self._person_key))
        else:
            held = held_event(event, time_ms, record.offset)
            if not search.shown:
                held.record = KeptRecord.of(record)
            added = search.add(f"{held.kind} {event.event_id}", held)
        self._counts["pending" if added else "duplicate"] += 1

    def _wait(
        self, event: ShopEvent, time_ms: int, record: LogRecord, search_id: str, *, before: tuple[int, int]
    ) -> None:
        """Let an event without `search_time` wait for its list."""
        held = held_event(event, time_ms, record.offset)
        held.record = KeptRecord.of(record)
        until_ms = self._windows.last_deadline(event.event_time)
        self._waiting.add(WaitingEvent(until_ms, f"{held.kind} {event.event_id}", search_id, record.offset, held))
        self._hold.begin(record.offset, before, until_ms=until_ms)
        self._named_ms = max(self._named_ms, event.event_time)
        self._counts["pending"] += 1

    def _close(self, search: OpenSearch, plan: Plan) -> None:
        """Close a search whose deadline the watermark has passed."""
        if search.shown:
            if taken := self._waiting.take_for(search, self._searches):
                added = sum(search.add(waiting.event_id, event) for waiting, event in taken)
                self._counts["pending"] -= len(taken) - added
                self._counts["duplicate"] += len(taken) - added
                # a restart that began after the list would see the events wait, and give them to another one
                self._hold.extend(search.first_offset(), until_ms=max(waiting.until_ms for waiting, _ in taken))
            self._emit(search, plan)
        else:
            self._set_aside_orphans(search.records(), search.search_id, plan)

    def _emit(self, search: OpenSearch, plan: Plan) -> None:
        """Plan a closed search's message."""
        joined = joined_search(search, partition=self.partition)
        self._searches_closed += 1
        number = ClosingNumber(self._name, self._searches_closed)
        closed = ClosedWatermark(self.partition, int(min(self.event_time.watermark_ms, self._searches.next_deadline())))
        headers = [(CLOSING_NUMBER_HEADER, number.encode()), (WATERMARK_HEADER, closed.encode())]
        plan.append(Emit(JOINED_SEARCHES, joined.key, joined.value, headers))
        self._counts["pending"] -= joined.joined + joined.repeated
        self._counts["joined"] += joined.joined
        self._counts["duplicate"] += joined.repeated

    def _set_aside_orphans(self, records: Collection[LogRecord], search_id: str, plan: Plan) -> None:
        """Plan to put pending events aside whose search showed no list here."""
        is_elsewhere = self._partitions is not None and not belongs(
            search_id.encode(), self.partition, self._partitions
        )
        reason = AsideReason.WRONG_PARTITION if is_elsewhere else AsideReason.NO_IMPRESSION
        self._counts["pending"] -= len(records)
        for record in records:
            self._set_aside(EventOutcome.ORPHAN, reason, record, plan)

    def _set_aside(self, outcome: EventOutcome, reason: str, record: LogRecord, plan: Plan, *, error: str = "") -> None:
        """Plan to put a record on the topic of its outcome."""
        self._counts[outcome] += 1
        told = "" if is_personal(error) else error  # it may quote what was sent
        number = ClosingNumber(self._name, self._counts[outcome]).encode()
        protected = protected_record(record, self._person_key)
        plan.append(SetAside(outcome, reason, protected, told, [(CLOSING_NUMBER_HEADER, number)]))

    def _begin_replay(self, past: JoinProgress) -> None:
        """Begin at the oldest undecided record, with the windows of that time."""
        self._past = past
        configured = self._windows
        self._configured = (configured.window_ms, configured.lateness_ms)
        self._windows = Windows(
            configured.window_ms if past.window_ms is None else past.window_ms,
            configured.lateness_ms if past.lateness_ms is None else past.lateness_ms,
            earlier=past.earlier_windows or (),
        )
        moved_append_ms = past.newest_append_ms if past.hold_append_ms is None else past.hold_append_ms
        self.event_time = EventTime(
            self._windows.lateness_ms, watermark_ms=past.hold_watermark_ms, moved_append_ms=moved_append_ms
        )
        self._begin(past.start_offset, past.first_append_ms, past.begun_in)
        self.next_offset = past.hold_offset
        self._maybe_end_replay(self.next_offset)

    def _maybe_end_replay(self, offset: int) -> None:
        """If the replay has come to where the last process had come, go on with its counts."""
        past = self._past
        if past is None or offset < past.next_offset:
            return
        time = self.event_time
        if past.watermark_ms > time.watermark_ms:  # records are gone; what they closed is due now, and was written then
            time.watermark_ms, time.moved_append_ms = past.watermark_ms, past.newest_append_ms
            self._settle([])
        self._past = None
        pending = self._counts["pending"]
        self.replay_mismatch = (pending, self.open_searches) != (past.counts.pending, past.open_searches)
        self._counts = {**past.counts.model_dump(include=set(self._counts)), "pending": pending}
        self._searches_closed = past.searches_closed
        # A watermark waits after lateness was raised; no record's time lies above its arrival.
        newest_ms = min(past.watermark_ms + time.lateness_ms, past.newest_append_ms)
        if past.watermark_ms > BEFORE_FIRST_MS and newest_ms >= time.newest_ms:
            time.newest_ms, time.newest_append_ms = newest_ms, past.newest_append_ms
        window_ms, lateness_ms = self._configured
        self._windows.change(
            window_ms,
            lateness_ms,
            shown_from_ms=max(time.newest_ms, self._named_ms) + 1,
            read_from=past.next_offset,
        )

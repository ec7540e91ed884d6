"""The join agent: `search-events` -> `joined-searches`, with what could not be joined on topics of its own."""

import asyncio
import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from faust.types import TP
from typing_extensions import override

from contracts.events import Tick
from contracts.joined import WATERMARK_HEADER, ClosedWatermark, Watermark
from contracts.progress import JoinProgress
from contracts.topics import JOINED_SEARCHES
from contracts.wire import encode
from service import metrics
from service.machine import epoch_ms, write_atomically
from streams.agents.partition_agent import OwnedPartition, PartitionAgent
from streams.join.partition_join import PartitionJoin
from streams.transport.consumer import Chunk
from streams.transport.output import OutRecord

STILL_S: Final = 1.0
"""How long event time stands still before a tick is due."""
MARK_EVERY_S: Final = 1.0
MARKED_AT_ONCE: Final = 8
"""With more partitions each is marked more rarely: every one of them writes to all."""
"""How often a partition tells how far it has come, while it moves."""
REMIND_EVERY_S: Final = 20.0
"""How often it tells so while nothing moves: the log goes on, and a worker that is gone falls silent beside it."""
SAVE_AFTER_RECORDS: Final = 100_000
"""What a restart reads again in some seconds; with more than that, the open searches are saved."""
SAVE_EVERY_S: Final = 20.0
DIGEST_BYTES: Final = 32


class JoinAgent(PartitionAgent[PartitionJoin, JoinProgress]):
    """Joins impressions with what followed them.

    While event time stands still, ticks move it: else the last searches of an evening would stay open until the next
    morning. A tick is a record like any other: what it closed, every replay closes at the same place.

    How far each partition has come is told on every partition of what it writes: what the lists of a session mean
    depends on the lists of other partitions, which whoever reads them has to wait for.

    A restart reads a window of the log again. Where that is long, the open searches are kept on the local disk too, and
    it goes on from there; a file that is missing, broken or of another log costs the time of the longer way.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._still: dict[int, tuple[int, float]] = {}
        """Partition -> its newest event time, and since when that or its last tick is the newest."""
        self._marked: dict[int, tuple[ClosedWatermark, float]] = {}
        """Partition -> what was told last of how far it has come, and when."""
        self._saved_s: dict[int, float] = {}
        self._saving: dict[int, asyncio.Task[None]] = {}
        self._save_failed = False

    @override
    async def idle(self, owned: OwnedPartition[PartitionJoin, JoinProgress]) -> None:
        """Tell how far a partition is; append a tick if it was read to its end and event time stands still in it."""
        end = self.end(owned.tp)
        is_read = end is not None and self.read_to(owned) >= end
        await self._mark(owned, idle=is_read and owned.state.tick_time_ms(epoch_ms()) is None)
        number, newest_ms = owned.tp.partition, owned.state.event_time.newest_ms
        if self._still.get(number, (None,))[0] != newest_ms:
            self._still[number] = (newest_ms, owned.moved_s)
        tick_ms = owned.state.tick_time_ms(epoch_ms())
        if tick_ms is None or owned.state.replaying or not is_read:
            return
        if time.monotonic() - self._still[number][1] >= STILL_S:
            tick = OutRecord(None, encode(Tick(type="tick", event_time=tick_ms)))
            await self.output.send(owned.tp.topic, number, [tick])
            self._still[number] = (newest_ms, time.monotonic())

    @override
    async def _on_chunk(self, chunk: Chunk) -> None:
        """Carry out what follows from a chunk, and tell how far that is: under load no partition is ever idle."""
        await super()._on_chunk(chunk)
        owned = self.owned.get(chunk.tp.partition)
        if owned is not None:
            async with owned.lock:
                await self._mark(owned, idle=False)

    async def _mark(self, owned: OwnedPartition[PartitionJoin, JoinProgress], *, idle: bool) -> None:
        """Tell every partition of `joined-searches` how far a partition has come, if it is time to."""
        number, state, now_s = owned.tp.partition, owned.state, time.monotonic()
        last, told_s = self._marked.get(number, (None, -REMIND_EVERY_S))
        every_s = MARK_EVERY_S * max(1.0, self.settings.partitions / MARKED_AT_ONCE)
        if now_s - told_s < every_s or owned.owes_outputs or state.replaying:
            return
        closed = ClosedWatermark(number, max(0, state.event_time.watermark_ms), idle)
        if closed == last and now_s - told_s < REMIND_EVERY_S:
            return
        told = Watermark(type="watermark", partition=number, watermark_ms=closed.watermark_ms, idle=idle)
        mark = OutRecord(None, encode(told), [(WATERMARK_HEADER, closed.encode())])
        topic = self.settings.topic(JOINED_SEARCHES)
        await asyncio.gather(*(self.output.send(topic, to, [mark]) for to in range(self.settings.partitions)))
        self._marked[number] = closed, now_s

    @override
    def observe(self, owned: OwnedPartition[PartitionJoin, JoinProgress], progress: JoinProgress) -> None:
        """Show how many searches are open, and say if a restart could not rebuild them all."""
        metrics.JOIN_OPEN.set(sum(other.state.open_searches for other in self.owned.values()))
        if owned.state.replay_mismatch:
            owned.state.replay_mismatch = False
            self.log.error(
                "records_lost", partition=owned.tp.partition, open_searches=progress.open_searches,
                fix="Kafka deleted records that were still pending: raise the topic's retention",
            )  # fmt: skip

    @override
    def save_state(self, owned: OwnedPartition[PartitionJoin, JoinProgress]) -> None:
        """Save the open searches where a restart would read long; the disk is written beside the work."""
        number, now_s = owned.tp.partition, time.monotonic()
        replayed = owned.state.next_offset - owned.hold_offset
        if replayed < SAVE_AFTER_RECORDS or now_s - self._saved_s.get(number, -SAVE_EVERY_S) < SAVE_EVERY_S:
            return
        last = self._saving.get(number)
        content = owned.state.snapshot() if last is None or last.done() else None
        if content is not None:
            self._saved_s[number] = now_s
            self._saving[number] = asyncio.create_task(self._write_state(owned.tp, content))

    @override
    def restore_state(self, tp: TP, state: PartitionJoin) -> int:
        """Take up the saved open searches of a partition, if they fit its progress; without one the join begins."""
        if state.start_offset < 0:
            state.begun_in = self.progress_id
        with suppress(OSError):
            content = self._state_file(tp).read_bytes()
            digest, snapshot = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            if hashlib.sha256(snapshot).digest() == digest and state.restore(snapshot):
                self.log.info("join_state_restored", partition=tp.partition, next_offset=state.next_offset,
                              open_searches=state.open_searches)  # fmt: skip
        return state.next_offset

    async def _write_state(self, tp: TP, content: bytes) -> None:
        try:
            await asyncio.to_thread(self._write_file, self._state_file(tp), content)
            self._save_failed = False
        except OSError as error:
            if not self._save_failed:
                self.log.warning("join_state_not_saved", partition=tp.partition, error=str(error),
                                 fix="make data_dir writable: restarts read a whole window again")  # fmt: skip
            self._save_failed = True

    def _state_file(self, tp: TP) -> Path:
        return self.settings.data_dir / "join" / f"{tp.topic}-{tp.partition}.state"

    @staticmethod
    def _write_file(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(content).digest() + content, mode=0o600)

"""Faust's consumer, handing out one message per chunk and committing only what was finished.

Each fetch is cut into chunks of one partition; conductor, queue, stream and agent run unchanged, once per chunk. What
may be committed is read off the chunks themselves: those handed out, in order, as long as they are acknowledged, and
never above `hold`. Records fetched across a change of position (a rebalance, a seek) are forgotten and read again.

It leans on private names of faust-streaming 0.15.3, aiokafka 0.14.0 and mode-streaming 0.7.1, all by subclassing; the
versions are pinned and the kill test guards the bump.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from aiokafka.structs import ConsumerRecord
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.tuples import ConsumerMessage
from mode import Service
from typing_extensions import override

from service.logging import get_logger
from streams.transport.chunk import Chunk
from streams.transport.group import GroupThread

WATCH_S: Final = 0.5


class BatchConsumer(driver.Consumer):
    """The consumer of a `BatchApp`."""

    app: Any  # a BatchApp, which would be a circular import
    _thread: GroupThread

    @override
    def on_init(self) -> None:
        """Start without any position."""
        super().on_init()
        self.hold: dict[TP, int] = {}
        """Highest offset that may be committed, per partition; set by the agent before its body ends."""
        self.records_in = self.gaps = self.stale = 0
        self._epoch = self._sent_epoch = 0
        self._dirty = False
        self._sent: dict[TP, deque[Message]] = {}
        self._finished: dict[TP, int] = {}
        self._next: dict[TP, int] = {}
        self._passed: dict[TP, int] = {}

    @override
    def _new_consumer_thread(self) -> GroupThread:
        """Return the thread that can be asked for fatal errors."""
        return GroupThread(self, loop=self.loop, beacon=self.beacon)

    @Service.task
    async def _watch_group(self) -> None:
        """End the app where the group, a topic or a right is gone for good."""
        while not self.should_stop:
            await self.sleep(WATCH_S)
            error = self._thread.fatal_error()
            if error is not None and not self.should_stop:
                await self.crash(error)
                return

    @override
    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """Fetch, cut into chunks, and hand them out, a chunk of each partition in turn."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow.wait())
        epoch = self._epoch  # changes whenever positions may have been reset
        records, active = await self._wait_next_records(timeout)
        for tp in self._sent:
            self._advance(tp)  # lets go of finished chunks now, not at the next commit
        if self.should_stop:
            return
        if not records:
            if not self._dirty and epoch == self._epoch:
                self._note_passed()
            return
        if self._dirty or epoch != self._epoch or not self.flow_active:
            records, epoch = await self._forget(records), self._epoch
        work = {tp: self._cut(tp, fetched) for tp, fetched in records.items()}
        dirty, self._dirty = self._dirty, True  # stays set if this generator is left early
        for tp, piece in self.scheduler.iterate(work):
            if not self.flow_active or epoch != self._epoch:
                return
            if self._wanted(tp, active):
                yield tp, self._hand_out(tp, piece, epoch)
        self._dirty = dirty

    def read_past(self, tp: TP, offset: int) -> int:
        """Return up to where the log holds no more for one who has taken every record below an offset.

        The marks that transactions leave behind take offsets too, and nobody is handed them.
        """
        return offset if self._next.get(tp, 0) > offset else max(offset, self._passed.get(tp, 0))

    def _note_passed(self) -> None:
        """Remember how far all was handed out, as the client's positions say when a fetch came back empty."""
        if self._thread._consumer is None:
            return
        subscription = self._thread._consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None:
            return
        for tp in self.assignment():
            state = assignment.state_value(tp)
            position = None if state is None else state._position
            if position is not None:
                self._passed[tp] = position

    def _tracked(self, tp: TP) -> bool:
        """Return whether a partition's offsets are ours to commit (a changelog's are not)."""
        return bool(self.app.topics.acks_enabled_for(tp.topic))

    def _wanted(self, tp: TP, active: set[TP] | None) -> bool:
        """Return whether a fetched partition is still being read."""
        return self._tracked(tp) or active is None or tp in active or tp in self._buffered_partitions

    async def _forget(self, records: Mapping[TP, Any]) -> dict[TP, Any]:
        """Drop records fetched across a reset, or after an earlier fetch was not handed out, and read them again."""
        self.stale += 1
        self._dirty = True
        try:
            await self.perform_seek()
            self._dirty = False
        except Exception as error:  # noqa: BLE001 - fails where a rebalance overtakes it; stays dirty, so it is done again
            get_logger().warning("seek failed", error=repr(error))
        return {tp: fetched for tp, fetched in records.items() if not self._tracked(tp)}

    def _cut(self, tp: TP, fetched: list[ConsumerRecord]) -> list[Any]:
        """Return a fetch as chunks, or as it is where its topic is an ordinary one."""
        if tp.topic not in self.app.batch_topics:
            return fetched
        size = self.app.batch_size
        return [fetched[start : start + size] for start in range(0, len(fetched), size)]

    def _hand_out(self, tp: TP, piece: Any, epoch: int) -> Message:
        """Return a piece as a message, noted as handed out."""
        self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        records = piece if isinstance(piece, list) else [piece]
        message = self._chunk_message(tp, records) if isinstance(piece, list) else self._to_message(tp, piece)
        self.records_in += len(records)
        if self._tracked(tp):
            self._note_sent(tp, records, message, epoch)
        return message

    def _note_sent(self, tp: TP, records: list[ConsumerRecord], message: Message, epoch: int) -> None:
        """Remember a message until it is acknowledged; commits walk these in order."""
        if self._sent_epoch != epoch:  # the first after a seek
            self._sent_epoch = epoch
            self._sent.clear()
            self._next.clear()
        if records[0].offset != self._next.get(tp, records[0].offset):
            self.gaps += 1
            get_logger().debug(
                "offsets skipped",
                topic=tp.topic,
                partition=tp.partition,
                found=records[0].offset,
                expected=self._next[tp],
            )
        self._next[tp] = records[-1].offset + 1
        self._sent.setdefault(tp, deque()).append(message)

    def _chunk_message(self, tp: TP, records: list[ConsumerRecord]) -> ConsumerMessage:
        """Return the one message that stands for a chunk; its offset is the last record's."""
        first, last = records[0], records[-1]
        chunk: Any = Chunk(tp, records)
        return ConsumerMessage(
            tp.topic, tp.partition, last.offset, (first.timestamp or 0) / 1000.0, last.timestamp_type,
            None, None, chunk, None, 0, 0, tp, generation_id=self.app.consumer_generation_id,
        )  # fmt: skip

    @override
    def on_buffer_full(self, tp: TP) -> None:
        """Let a full queue of chunks simply block the fetch; stock un-fetches the partition and may sleep for 1 s."""
        if tp.topic not in self.app.batch_topics:
            super().on_buffer_full(tp)

    @override
    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: what was handed out is what must be acknowledged, gaps do not matter."""

    def _advance(self, tp: TP) -> None:
        """Move past every finished message at the head of what was handed out."""
        sent = self._sent.get(tp)
        while sent and sent[0].acked:
            self._finished[tp] = max(self._finished.get(tp, 0), sent.popleft().offset + 1)
        if tp in self._acked:  # stock's own lists, which nothing here reads
            self._acked[tp].clear()
            self._acked_index[tp].clear()

    @override
    def _new_offset(self, tp: TP) -> int | None:
        """Return what may be committed for a partition, if anything."""
        self._advance(tp)
        finished = self._finished.get(tp)
        return None if finished is None else min(finished, self.hold.get(tp, finished))

    @override
    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        """Return the partitions of which anything was handed out."""
        known = self._sent.keys() | self._finished.keys()
        return iter([tp for tp in known if topics is None or tp in topics or tp.topic in topics])

    @override
    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit what is finished, then forget the partitions."""
        self._epoch += 1
        for tp in revoked:
            self._advance(tp)  # the super call drops stock's lists before its last commit
        await super().on_partitions_revoked(revoked)  # waits for the running chunk, then commits
        for state in (self._sent, self._finished, self._next, self._passed, self.hold):
            for tp in revoked:
                state.pop(tp, None)

    @override
    async def perform_seek(self) -> None:
        """Go to the committed offsets, and to the beginning where there are none: aiokafka would stay where it is."""
        try:
            await super().perform_seek()
            uncommitted = [
                driver.ensure_aiokafka_TP(tp)
                for tp in self.assignment()
                if self._tracked(tp) and not self._committed_offset.get(tp)
            ]
            if uncommitted:
                await self._thread.seek_to_beginning(*uncommitted)
        finally:
            self._epoch += 1

    @override
    async def wait_empty(self) -> None:
        """Wait for the running chunk; one that failed will never finish, so do not wait for it."""
        if self.app.crashed:
            self._unacked_messages.clear()
        await super().wait_empty()

"""Faust's consumer and stream, handing out one event per chunk of records and committing only what was finished.

Faust's machinery costs about 60 microseconds an event; a few thousand records at a time make that vanish. Conductor,
queue, stream and agent run unchanged, once per chunk. Where reading begins is said by the owner of the partitions, not
by the group's commits. It leans on private names of faust-streaming 0.15.3, aiokafka 0.14.0 and mode-streaming 0.7.1,
all by subclassing; the versions are pinned and the kill test guards the bump.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any, Final

import faust
from aiokafka.structs import ConsumerRecord
from faust.serializers.codecs import Codec
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.tuples import ConsumerMessage
from mode import Service
from typing_extensions import override

from contracts.errors import MillraceError
from service.logging import get_logger
from streams.transport.group import GroupThread

WATCH_S: Final = 0.5


class Chunk(list[ConsumerRecord]):
    """Consecutive records of one partition.

    Args:
        tp: the partition.
        records: its records, in the log's order, at least one.
    """

    __slots__ = ("tp",)

    def __init__(self, tp: TP, records: list[ConsumerRecord]) -> None:
        super().__init__(records)
        self.tp = tp


class Untouched(Codec):
    """The "serializer" of chunks: hands over what it is given; decoding is the agent's, record by record."""

    @override
    def _loads(self, s: Any) -> Any:
        return s

    @override
    def _dumps(self, s: Any) -> Any:
        return s


class BatchStream(faust.Stream):
    """The stream of chunks that an agent reads; acknowledges one only when the agent asks for the next.

    Stock Faust acknowledges in a `finally`: an exception, a cancellation or a `break` inside the loop's body marks the
    event as done, and the next commit loses it. Here an event keeps one more reference until the body came to its end.
    """

    @override
    def __aiter__(self) -> AsyncIterator[Any]:
        consumer: Any = self.app.consumer
        progress = self._finished_only(super().__aiter__(), consumer.begun)
        self._active_agens.add(progress)
        return progress

    async def _finished_only(self, events: AsyncIterator[Any], begun: set[Message]) -> AsyncGenerator[Any, None]:
        async for value in events:
            event = self.current_event
            if event is not None:
                event.message.incref()
                begun.add(event.message)
            yield value
            if event is not None:
                begun.discard(event.message)
                event.ack()


class BatchConsumer(driver.Consumer):
    """The consumer of a `BatchApp`."""

    app: Any  # a BatchApp, which would be a circular import
    _thread: GroupThread

    @override
    def on_init(self) -> None:
        super().on_init()
        self.commit_limits: dict[TP, int] = {}
        """Highest offset that may be committed, per partition; set by the agent before its body ends."""
        self.begun: set[Message] = set()
        """Chunks that agents are in the middle of."""
        self.records_in = self.gaps = self.stale = 0
        self._epoch = 0
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
        """End the app if the group, a topic or a right is gone for good."""
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
            if not self.flow_active or epoch != self._epoch or self._jumped_back(tp, piece):
                return
            if self._wanted(tp, active):
                yield tp, self._hand_out(tp, piece)
        self._dirty = dirty

    def _jumped_back(self, tp: TP, piece: Any) -> bool:
        """Whether Kafka goes on below where reading had come: the log no longer holds what it held."""
        first = piece[0] if isinstance(piece, list) else piece
        return bool(self._tracked(tp) and first.offset < self._next.get(tp, 0))

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
        """Whether a partition's offsets are ours to commit (a changelog's are not)."""
        return bool(self.app.topics.acks_enabled_for(tp.topic))

    def _wanted(self, tp: TP, active: set[TP] | None) -> bool:
        return self._tracked(tp) or active is None or tp in active or tp in self._buffered_partitions

    async def _forget(self, records: Mapping[TP, Any]) -> dict[TP, Any]:
        """Drop records fetched across a reset, or after an earlier fetch was not handed out, and read them again."""
        self.stale += 1
        self._dirty = True
        try:
            await self.perform_seek()
            self._dirty = False
        except MillraceError:
            raise
        except Exception as error:  # noqa: BLE001 - fails if a rebalance overtakes it; stays dirty, so it is done again
            if not self.app.should_stop:  # else its thread is gone, and nothing will be read again
                get_logger().warning("seek_failed", error=repr(error))
        return {tp: fetched for tp, fetched in records.items() if not self._tracked(tp)}

    def _cut(self, tp: TP, fetched: list[ConsumerRecord]) -> list[Any]:
        """Return a fetch as chunks, or as it is if its topic is an ordinary one."""
        if tp.topic not in self.app.batch_topics:
            return fetched
        size = self.app.batch_size
        return [fetched[start : start + size] for start in range(0, len(fetched), size)]

    def _hand_out(self, tp: TP, piece: Any) -> Message:
        """Return a piece as a message; commits walk those handed out, in order, until one is not acknowledged."""
        self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        records = piece if isinstance(piece, list) else [piece]
        message = self._chunk_message(tp, records) if isinstance(piece, list) else self._to_message(tp, piece)
        self.records_in += len(records)
        if self._tracked(tp):
            self.gaps += records[0].offset > self._next.get(tp, records[0].offset)
            self._next[tp] = records[-1].offset + 1
            self._sent.setdefault(tp, deque()).append(message)
        return message

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
        return None if finished is None else min(finished, self.commit_limits.get(tp, finished))

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
        for known in (self._sent, self._finished, self._next, self._passed, self.commit_limits):
            for tp in revoked:
                known.pop(tp, None)

    @override
    async def perform_seek(self) -> None:
        """Go to where the owner of the partitions goes on; what the group has committed is for others to look at."""
        try:
            positions: Mapping[TP, int] = await self.app.owner.take_over(set(filter(self._tracked, self.assignment())))
            await self.seek_wait({driver.ensure_aiokafka_TP(tp): offset for tp, offset in positions.items()})
            self._sent.clear()
            self._next = dict(positions)
        finally:
            self._epoch += 1

    @override
    async def wait_empty(self) -> None:
        """Wait for the chunks that agents are in the middle of; those that wait in a queue are read again.

        One that failed will never finish. Stock also waits for the queued ones, and collects garbage meanwhile.
        """
        while self.begun and not self.app.crashed and not self.should_stop:
            await self._wait_for_ack(timeout=1)
        if not self.app.crashed:
            await self.app.owner.settle()
        await self.commit_and_end_transactions()

"""What may be committed: finished chunks in order, never above the hold, and none whose body did not end."""

from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from structlog.testing import capture_logs
from typing_extensions import override

from streams.transport.consumer import BatchConsumer, BatchStream, Chunk

PARTITION = TP("search-events", 0)


class Bare(BatchConsumer):
    """The consumer without its thread, its app or a broker."""

    def __init__(self, *, batch_size: int = 3) -> None:  # skips the service's constructor, which wants a whole app
        self.app = SimpleNamespace(
            batch_topics={PARTITION.topic},
            batch_size=batch_size,
            topics=SimpleNamespace(acks_enabled_for=lambda topic: True),
            monitor=SimpleNamespace(track_tp_end_offset=lambda tp, end: None),
            consumer_generation_id=1,
            should_stop=False,
        )
        self.commit_limits, self._sent, self._finished, self._next, self._passed = {}, {}, {}, {}, {}
        self._acked, self._acked_index = {}, {}
        self.records_in = self.gaps = self._epoch = self.stale = 0
        self.begun = set()
        self.sought: list[tuple[int, int]] = []

    @property
    @override
    def should_stop(self) -> bool:
        """Return False: nobody stops it."""
        return False

    @override
    def assignment(self) -> set[TP]:
        """Return the one partition."""
        return {PARTITION}

    @override
    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Note where reading goes on."""
        self.sought += [(tp.partition, offset) for tp, offset in partitions.items()]

    @override
    def highwater(self, tp: TP) -> int:
        """Return where the log ends."""
        return 100


def records(*offsets: int) -> list[Any]:
    """Return records at these offsets."""
    return [SimpleNamespace(offset=offset, timestamp=0, timestamp_type=0) for offset in offsets]


def hand_out(consumer: BatchConsumer, *offsets: int) -> Any:
    """Hand out one chunk."""
    return consumer._hand_out(PARTITION, records(*offsets))


def test_a_fetch_is_cut_into_chunks() -> None:
    """Each chunk is one message whose offset is its last record's."""
    consumer = Bare(batch_size=3)
    pieces = consumer._cut(PARTITION, records(*range(7)))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    message: Any = consumer._hand_out(PARTITION, pieces[0])
    assert isinstance(message.value, Chunk)
    assert (message.offset, message.value.tp, consumer.records_in) == (2, PARTITION, 3)


def test_topics_that_are_not_ours_are_left_as_they_are() -> None:
    """Only topics of chunks are cut."""
    fetched = records(1, 2)
    assert Bare()._cut(TP("other", 0), fetched) is fetched


def test_nothing_is_committed_while_the_first_chunk_runs() -> None:
    """A later chunk that is done does not carry an unfinished one with it."""
    consumer = Bare()
    first, second = hand_out(consumer, 0, 1), hand_out(consumer, 2, 3)
    second.acked = True
    assert consumer._new_offset(PARTITION) is None
    first.acked = True
    assert consumer._new_offset(PARTITION) == 4


def test_a_commit_never_passes_its_limit() -> None:
    """Finished chunks whose searches are open stay uncommitted."""
    consumer = Bare()
    hand_out(consumer, 0, 1).acked = True
    consumer.commit_limits[PARTITION] = 1
    assert consumer._new_offset(PARTITION) == 1
    consumer.commit_limits[PARTITION] = 9
    assert consumer._new_offset(PARTITION) == 2


class Owner:
    """Keeps the partition's state; notes when it is asked to write it down."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.settled = 0

    async def take_over(self, assigned: set[TP]) -> dict[TP, int]:
        """Say where reading goes on."""
        return dict.fromkeys(assigned, self.offset)

    async def settle(self) -> None:
        """Write down what is not written yet."""
        self.settled += 1


async def test_a_seek_goes_where_the_owner_goes_on_and_forgets_what_was_handed_out_before() -> None:
    """Chunks of before cannot be finished into a position of after; the group's commits say nothing about it."""
    consumer = Bare()
    consumer.app.owner = Owner(7)
    before = hand_out(consumer, 0, 1)
    await consumer.perform_seek()
    assert (consumer.sought, consumer._epoch) == ([(0, 7)], 1)
    before.acked = True
    assert consumer._new_offset(PARTITION) is None


async def test_records_from_below_where_reading_had_come_are_not_handed_out() -> None:
    """Kafka begins again from the start when its log no longer holds what it held: the owner is asked anew."""
    consumer = Bare()
    consumer.app.owner = Owner(7)
    await consumer.perform_seek()
    assert not consumer._jumped_back(PARTITION, records(7))
    assert consumer._jumped_back(PARTITION, records(0))
    hand_out(consumer, 7, 8)
    assert consumer._jumped_back(PARTITION, records(8, 9))
    assert not consumer._jumped_back(PARTITION, records(12))


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_seek_that_fails_is_told_unless_the_worker_stops(stopping: bool) -> None:
    """Positions that could not be set are set at the next fetch; of a worker that ends nothing is read any more."""
    consumer = Bare()
    consumer.app.should_stop = stopping

    async def closed(partitions: Mapping[TP, int]) -> None:
        """Fail as a thread does whose loop is closed."""
        raise RuntimeError("Event loop is closed")

    consumer.app.owner, consumer.seek_wait = Owner(7), closed  # type: ignore[method-assign]
    with capture_logs() as logs:
        assert await consumer._forget({PARTITION: records(1)}) == {}
    assert consumer._dirty
    assert [line["event"] for line in logs] == ([] if stopping else ["seek_failed"])


async def test_only_begun_chunks_are_waited_for_before_partitions_go() -> None:
    """What waits in a queue is read again by whoever comes next; what is begun ends, and then progress is written."""
    consumer, owner, committed = Bare(), Owner(0), list[int]()
    consumer.app.owner, consumer.app.crashed = owner, False
    running, _queued = hand_out(consumer, 0, 1), hand_out(consumer, 2, 3)
    consumer.begun = {running}
    waits = 0

    async def end_chunk(**_: float) -> None:
        """Let the running chunk end."""
        nonlocal waits
        waits += 1
        consumer.begun.discard(running)

    async def commit() -> None:
        """Note that progress was written before."""
        committed.append(owner.settled)

    bare: Any = consumer
    bare._wait_for_ack, bare.commit_and_end_transactions = end_chunk, commit
    await consumer.wait_empty()
    assert (waits, committed) == (1, [1])


async def test_a_crashed_app_waits_for_nothing_and_writes_nothing() -> None:
    """The chunk that failed will never end, and what it left half done must not be counted."""
    consumer, owner = Bare(), Owner(0)
    consumer.app.owner, consumer.app.crashed = owner, True
    consumer.begun = {hand_out(consumer, 0, 1)}

    async def commit() -> None:
        """Commit what is finished."""

    consumer.commit_and_end_transactions = commit  # type: ignore[method-assign] # no broker
    await consumer.wait_empty()
    assert owner.settled == 0


def test_skipped_offsets_are_counted() -> None:
    """They are marks of transactions, or records that Kafka deleted before they were read."""
    consumer = Bare()
    hand_out(consumer, 0, 1)
    hand_out(consumer, 4)
    assert consumer.gaps == 1


def fetch_nothing(consumer: BatchConsumer, *, position: int | None) -> None:
    """Let a fetch come back empty with the client's position there; None where it has none yet."""
    assignment = SimpleNamespace(state_value={PARTITION: SimpleNamespace(_position=position)}.get)
    subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    thread: Any = SimpleNamespace(_consumer=SimpleNamespace(_subscription=subscription))
    consumer._thread = thread
    consumer._note_passed()


def test_marks_of_transactions_are_passed_by_one_who_has_taken_all_before_them() -> None:
    """An agent that has records to take is not told that it is further; a position that is not known passes nothing."""
    consumer = Bare()
    hand_out(consumer, 0, 1)
    fetch_nothing(consumer, position=None)
    assert consumer.read_past(PARTITION, 2) == 2
    fetch_nothing(consumer, position=3)
    assert [consumer.read_past(PARTITION, offset) for offset in (1, 2, 3, 4)] == [1, 3, 3, 4]
    hand_out(consumer, 3, 4)
    assert [consumer.read_past(PARTITION, offset) for offset in (2, 5)] == [2, 5]


class Event:
    """An event whose acknowledgement can be seen."""

    def __init__(self) -> None:
        self.references = 1
        self.acked = False
        self.message = self

    def incref(self) -> None:
        """Take a reference."""
        self.references += 1

    def ack(self) -> None:
        """Drop a reference."""
        self.references -= 1


class Source:
    """A stream's own side: the events, as stock Faust would yield and acknowledge them."""

    def __init__(self, count: int) -> None:
        self.events = [Event() for _ in range(count)]
        self.current_event: Event | None = None
        self.begun: set[Event] = set()

    async def stock(self) -> AsyncIterator[int]:
        """Yield values; each event loses stock's reference whatever the loop does."""
        for number, event in enumerate(self.events):
            self.current_event = event
            try:
                yield number
            finally:
                event.ack()

    def finished_only(self) -> AsyncIterator[int]:
        """Return the values as `BatchStream` yields them."""
        begun: Any = self.begun
        return BatchStream._finished_only(self, self.stock(), begun)  # type: ignore[arg-type] # stands in for a stream


async def test_a_value_is_acknowledged_when_the_next_is_asked_for() -> None:
    """The last reference goes only once the body came to its end."""
    source = Source(2)
    seen = [(source.events[0].references, set(source.begun)) async for _ in source.finished_only()]
    assert seen[0][0] > 0
    assert [begun for _, begun in seen] == [{event} for event in source.events]
    assert [event.references for event in source.events] == [0, 0]
    assert source.begun == set()


async def fail_at(values: AsyncIterator[int], failing: int) -> None:
    """Read values as an agent whose body fails at one of them."""
    async for number in values:
        if number == failing:
            raise ValueError("broken")


async def test_a_value_whose_body_raised_is_never_acknowledged() -> None:
    """It comes back after the restart, and so does what follows it."""
    source = Source(3)
    with pytest.raises(ValueError, match="broken"):
        await fail_at(source.finished_only(), 1)
    assert source.events[0].references == 0
    assert source.events[1].references > 0
    assert source.events[2].references > 0
    assert source.begun == {source.events[1]}

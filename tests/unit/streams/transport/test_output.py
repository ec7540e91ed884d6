"""Writing in batches: every record acknowledged or an error, no batch above the brokers' limit."""

import asyncio
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder

from contracts.errors import DependencyDown, InvariantError
from contracts.topics import partition_for
from streams.transport.output import BATCH_BYTES, Output, OutRecord


class Broker:
    """Stands where the producer's sending half is: real batches, acknowledged or refused at will."""

    def __init__(self, *, refuse: int | None = None, silent: bool = False, batch_bytes: int = 2 * BATCH_BYTES) -> None:
        self._batch_bytes = batch_bytes
        self.batches: list[tuple[str, int, int, int]] = []
        self.headers: list[list[tuple[str, bytes]]] = []
        self._refuse = refuse
        self._silent = silent

    def create_batch(self) -> Any:
        """Return a real, empty batch that tells which headers it was given."""
        batch: Any = BatchBuilder(self._batch_bytes, 0)
        append = batch.append

        def note(**record: Any) -> Any:
            """Note a record's headers and add it."""
            self.headers.append(record["headers"])
            return append(**record)

        batch.append = note
        return batch

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> "asyncio.Future[None]":
        """Note a batch, and answer for it."""
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._refuse == len(self.batches):
            acknowledged.set_exception(OSError("refused"))
        elif not self._silent:
            acknowledged.set_result(None)
        self.batches.append((topic, partition, batch.record_count(), batch.size()))
        return acknowledged


def records(*sizes: int) -> list[OutRecord]:
    """Return records of these sizes."""
    return [OutRecord(b"k", b"v" * size) for size in sizes]


async def test_records_travel_in_one_batch() -> None:
    """What fits together goes together."""
    broker = Broker()
    await Output(broker).send("t", 3, records(10, 20, 30))
    assert [(topic, partition, n) for topic, partition, n, _ in broker.batches] == [("t", 3, 3)]


async def test_no_batch_is_larger_than_the_brokers_take() -> None:
    """Many records are spread over batches, and a single large one travels alone."""
    broker = Broker()
    await Output(broker).send("t", 0, records(*[300_000] * 7, 1_500_000, 5))
    assert [n for _, _, n, _ in broker.batches] == [2, 2, 2, 1, 1, 1]
    assert all(size <= 1_000_000 or n == 1 for _, _, n, size in broker.batches)


async def test_nothing_to_write_writes_nothing() -> None:
    """An empty plan costs no request."""
    broker = Broker()
    await Output(broker).send("t", 0, [])
    assert broker.batches == []


@pytest.mark.parametrize("refused", [0, 1])
async def test_a_refused_batch_is_raised(refused: int) -> None:
    """Whichever batch the broker refuses, the caller learns it before it commits its input."""
    with pytest.raises(OSError, match="refused"):
        await Output(Broker(refuse=refused)).send("t", 0, records(800_000, 800_000))


async def test_a_broker_that_says_nothing_is_given_up() -> None:
    """A hanging broker ends the worker with a line instead of holding it for ever."""
    with pytest.raises(DependencyDown, match="acknowledged nothing on t"):
        await Output(Broker(silent=True), patience_s=0.01).send("t", 0, records(1))


async def test_a_batch_that_is_full_too_early_is_a_bug_said_aloud() -> None:
    """A producer configured with smaller batches would lose records silently."""
    with pytest.raises(InvariantError):
        await Output(Broker(batch_bytes=200)).send("t", 0, records(150, 150))


async def test_headers_of_a_whole_send_stand_beside_each_records_own() -> None:
    """A stage writes its time once for all records; they still fit into their batches."""
    broker = Broker()
    own = [OutRecord(b"k", b"v", [("own", b"1")]), OutRecord(b"k", b"v")]
    await Output(broker).send("t", 0, own, headers=[("millrace.closed_at_ms", b"17")])
    assert broker.headers == [[("own", b"1"), ("millrace.closed_at_ms", b"17")], [("millrace.closed_at_ms", b"17")]]


async def test_keyed_records_go_to_the_partitions_of_their_keys() -> None:
    """Records of one key keep their order in one partition."""
    broker = Broker()
    await Output(broker).send_keyed("t", 4, [OutRecord(b"k%d" % (n % 3), b"v") for n in range(9)])
    assert {partition for _, partition, _, _ in broker.batches} == {partition_for(b"k%d" % n, 4) for n in range(3)}
    assert sum(n for _, _, n, _ in broker.batches) == 9

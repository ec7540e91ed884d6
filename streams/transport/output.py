"""Writing to Kafka in whole batches; a send returns when every record is acknowledged, and raises if one is not.

`await topic.send()` of stock Faust returns before the broker has answered, and a refusal later is only logged: the
input is committed although the output is lost. Agents write through `Output`. What Faust itself would write (table
changelogs, `topic.send`) is covered too: a flush waits for everything, and a refused record ends the process.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import aiokafka
import faust
from aiokafka.producer.message_accumulator import BatchBuilder
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from faust.types import FutureMessage
from typing_extensions import override

from contracts.errors import DependencyDown, InvariantError
from contracts.topics import partition_for
from service.machine import epoch_ms

BATCH_BYTES: Final = 900_000
"""Below the brokers' default limit of 1 MiB for a batch; a larger record travels alone."""
PATIENCE_S: Final = 60.0
"""Longer than a broker's restart; a client whose broker hangs would wait for ever."""
RECORD_OVERHEAD_BYTES: Final = 70
HEADER_OVERHEAD_BYTES: Final = 10
EXIT_OUTPUT_LOST: Final = 70
FLUSH_POLL_S: Final = 0.005

Headers = Sequence[tuple[str, bytes]]


class Writable(Protocol):
    """A record to write."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its value; None deletes what a compacted topic holds under its key."""

    @property
    def headers(self) -> Headers:
        """Its headers."""


class OutRecord(NamedTuple):
    """A record that is nothing but key, value and headers."""

    key: bytes | None
    value: bytes
    headers: Headers = ()


class Tombstone(NamedTuple):
    """A record that deletes what a compacted topic holds under its key."""

    key: bytes
    value: None = None
    headers: Headers = ()


class Output:
    """Writes records to partitions of one cluster.

    Args:
        producer: a started producer; closing it stays with its owner.
        patience_s: how long a send may take before it is given up.
    """

    def __init__(self, producer: aiokafka.AIOKafkaProducer, *, patience_s: float = PATIENCE_S) -> None:
        self.producer = producer
        self._patience_s = patience_s

    async def send(self, topic: str, partition: int, records: Iterable[Writable], *, headers: Headers = ()) -> None:
        """Write records to one partition in order and wait until all are acknowledged.

        Args:
            topic: its name on the cluster.
            partition: its number.
            records: what to write.
            headers: put on every record beside its own.

        Raises:
            KafkaError: one was not; which of the later ones were is then unknown.
            DependencyDown: Kafka neither acknowledged nor refused for longer than its restart takes.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                pending = [
                    await self.producer.send_batch(batch, topic, partition=partition)
                    for batch in self._batches(records, headers)
                ]
                for acknowledged in pending:
                    await acknowledged
        except TimeoutError as error:
            raise DependencyDown(
                f"Kafka acknowledged nothing on {topic} for {self._patience_s:g} s", fix="look at the brokers' log"
            ) from error

    async def send_keyed(
        self, topic: str, partitions: int, records: Iterable[Writable], *, headers: Headers = ()
    ) -> None:
        """Write records to the partitions of their keys, all at once, and wait until all are acknowledged."""
        by_partition: dict[int, list[Writable]] = {}
        for record in records:
            by_partition.setdefault(partition_for(record.key or b"", partitions), []).append(record)
        await asyncio.gather(
            *(self.send(topic, partition, own, headers=headers) for partition, own in by_partition.items())
        )

    def _batches(self, records: Iterable[Writable], common: Headers) -> Iterable[BatchBuilder]:
        """Yield closed batches, each below the brokers' limit unless a single record is above it."""
        now_ms = epoch_ms()
        batch, size = self.producer.create_batch(), 0
        for record in records:
            headers = [*record.headers, *common]
            bytes_needed = _size_bytes(record.key, record.value, headers)
            if size and size + bytes_needed > BATCH_BYTES:
                batch.close()
                yield batch
                batch, size = self.producer.create_batch(), 0
            added = batch.append(key=record.key, value=record.value, timestamp=now_ms, headers=headers)
            if added is None:
                raise InvariantError("a batch was full before its time: the producer's max_batch_size is too small")
            size += bytes_needed
        if size:
            batch.close()
            yield batch


def _size_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Return about how much of a batch a record takes, rather too much than too little."""
    in_headers = sum([len(name) + len(content) + HEADER_OVERHEAD_BYTES for name, content in headers])
    return len(key or b"") + len(value or b"") + in_headers + RECORD_OVERHEAD_BYTES


class PatientBuffer(ProducerBuffer):
    """A buffer whose flush waits until it is empty; stock gives up after 0.1 s and lets the commit go ahead."""

    busy = False

    @override
    async def _send_pending(self, fut: FutureMessage) -> None:
        try:
            self.busy = True
            await super()._send_pending(fut)
        finally:
            self.busy = False

    @override
    async def flush(self) -> None:
        """Wait until nothing is buffered or under way."""
        while self.size or self.busy:
            if self.state != "running":
                raise RuntimeError("cannot flush: the producer's buffer does not run")
            await asyncio.sleep(FLUSH_POLL_S)


class BatchProducer(driver.Producer):
    """Faust's producer on our settings; `Output` shares its connection."""

    app: Any  # a BatchApp, which would be a circular import

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop | None = None, **options: Any) -> None:
        super().__init__(transport, loop=loop, **options)
        self.buffer = PatientBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    @override
    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        """Return a producer on our settings: idempotent, acknowledged by all in-sync copies."""
        return aiokafka.AIOKafkaProducer(**self.app.producer_config)

    @property
    def client(self) -> aiokafka.AIOKafkaProducer:
        """The started client, for `Output`."""
        return self._ensure_producer()


class EndOnLostOutput(faust.Sensor):
    """Ends the process if a record of Faust's own producer was refused: its input must not be committed."""

    @override
    def on_send_error(self, producer: Any, exc: BaseException, state: Any) -> None:
        """End at once; any later moment could be after a commit."""
        os._exit(EXIT_OUTPUT_LOST)

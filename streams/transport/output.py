"""Writing to Kafka in whole batches; a send returns when every record is acknowledged, and raises where one is not.

`await topic.send()` of stock Faust returns before the broker has answered, and a refusal later is only logged: the
input is committed although the output is lost. Nothing here is written that way.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from contracts.errors import DependencyDown, InvariantError
from contracts.topics import partition_for

BATCH_BYTES: Final = 900_000
"""Below the brokers' default limit of 1 MiB for a batch; a larger record travels alone."""
PATIENCE_S: Final = 60.0
"""Longer than a broker's restart; a client whose broker hangs would wait for ever."""
RECORD_OVERHEAD_BYTES: Final = 70
HEADER_OVERHEAD_BYTES: Final = 10


class OutRecord(NamedTuple):
    """One record to write."""

    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


class Output:
    """Writes records to partitions of one cluster.

    Args:
        producer: a started producer; closing it stays with its owner.
        patience_s: how long a send may take before it is given up.
    """

    def __init__(self, producer: AIOKafkaProducer, *, patience_s: float = PATIENCE_S) -> None:
        self._producer = producer
        self._patience_s = patience_s

    async def send(self, topic: str, partition: int, records: Iterable[OutRecord]) -> None:
        """Write records to one partition in order and wait until all are acknowledged.

        Raises:
            KafkaError: one was not; which of the later ones were is then unknown.
            DependencyDown: Kafka neither acknowledged nor refused for longer than its restart takes.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                pending = [
                    await self._producer.send_batch(batch, topic, partition=partition)
                    for batch in self._batches(records)
                ]
                for acknowledged in pending:
                    await acknowledged
        except TimeoutError as error:
            raise DependencyDown(
                f"Kafka acknowledged nothing on {topic} for {self._patience_s:g} s", fix="look at the brokers' log"
            ) from error

    async def send_keyed(self, topic: str, partitions: int, records: Iterable[OutRecord]) -> None:
        """Write records to the partitions of their keys, all at once, and wait until all are acknowledged."""
        by_partition: dict[int, list[OutRecord]] = {}
        for record in records:
            by_partition.setdefault(partition_for(record.key or b"", partitions), []).append(record)
        await asyncio.gather(*(self.send(topic, partition, own) for partition, own in by_partition.items()))

    def _batches(self, records: Iterable[OutRecord]) -> Iterable[BatchBuilder]:
        """Yield closed batches, each below the brokers' limit unless a single record is above it."""
        now_ms = time.time_ns() // 1_000_000
        batch, size = self._producer.create_batch(), 0
        for record in records:
            if size and size + _size_bytes(record) > BATCH_BYTES:
                batch.close()
                yield batch
                batch, size = self._producer.create_batch(), 0
            added = batch.append(key=record.key, value=record.value, timestamp=now_ms, headers=list(record.headers))
            if added is None:
                raise InvariantError("a batch was full before its time: the producer's max_batch_size is too small")
            size += _size_bytes(record)
        if size:
            batch.close()
            yield batch


def _size_bytes(record: OutRecord) -> int:
    """Return about how much of a batch a record takes, rather too much than too little."""
    headers = sum(len(name) + len(value) + HEADER_OVERHEAD_BYTES for name, value in record.headers)
    return len(record.key or b"") + len(record.value) + headers + RECORD_OVERHEAD_BYTES

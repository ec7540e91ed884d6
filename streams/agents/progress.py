"""What the last process that had a partition wrote about it, read when a partition is assigned.

Progress is one record per partition on a compacted topic, in the partition of the same number. Only its tail is read: a
topic's newest segment is not compacted, and the newest progress is always at the end.
"""

from collections.abc import Iterable
from typing import Final, Generic, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from contracts.errors import InvariantError
from contracts.progress import JoinProgress, PairsProgress
from contracts.wire import decode
from service.kafka import aiokafka_consumer_config
from service.settings import Settings

TAIL_RECORDS: Final = 500
"""Enough to see past what a worker wrote that had already lost the partition."""
READ_TIMEOUT_MS: Final = 500

P = TypeVar("P", JoinProgress, PairsProgress)


class Standing(NamedTuple, Generic[P]):
    """Where a partition stands when it is assigned."""

    progress: P | None
    """What was written last; None where nobody ever had it."""
    begin_offset: int
    """First record of the source that Kafka still has."""
    end_offset: int
    """Offset of the source's next record."""


async def read_standings(
    settings: Settings, partitions: Iterable[int], *, source: str, progress_topic: str, contract: TypeAdapter[P]
) -> dict[int, Standing[P]]:
    """Return where partitions stand.

    Args:
        settings: the settings in force.
        partitions: their numbers.
        source: the topic that is read, without the deployment's prefix.
        progress_topic: where progress is written, likewise.
        contract: the progress message.

    Raises:
        InvariantError: progress lies beyond the source's end: the topic was replaced or lost records.
    """
    numbers = sorted(partitions)
    sources = [TopicPartition(settings.topic(source), number) for number in numbers]
    consumer = AIOKafkaConsumer(**aiokafka_consumer_config(settings))
    await consumer.start()
    try:
        begins, ends = await consumer.beginning_offsets(sources), await consumer.end_offsets(sources)
        newest = await _newest(consumer, settings.topic(progress_topic), numbers, contract)
    finally:
        await consumer.stop()
    standings = {tp.partition: Standing(newest.get(tp.partition), begins[tp], ends[tp]) for tp in sources}
    for number, standing in standings.items():
        _refuse_replaced_log(standing, f"{settings.topic(source)}-{number}", settings.topic(progress_topic))
    return standings


async def _newest(consumer: AIOKafkaConsumer, topic: str, numbers: list[int], contract: TypeAdapter[P]) -> dict[int, P]:
    """Return the progress with the highest offset of each partition."""
    partitions = [TopicPartition(topic, number) for number in numbers]
    consumer.assign(partitions)
    begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    unread = {tp for tp in partitions if begins[tp] < ends[tp]}
    for tp in partitions:
        consumer.seek(tp, max(begins[tp], ends[tp] - TAIL_RECORDS))
    newest: dict[int, P] = {}
    while unread:
        for tp, records in (await consumer.getmany(*unread, timeout_ms=READ_TIMEOUT_MS)).items():
            for progress in (decode(record.value, contract) for record in records if record.value):
                known = newest.get(tp.partition)
                if known is None or progress.next_offset >= known.next_offset:
                    newest[tp.partition] = progress
        unread = {tp for tp in unread if await consumer.position(tp) < ends[tp]}
    return newest


def _refuse_replaced_log(standing: Standing[P], source: str, progress_topic: str) -> None:
    """Raise where records that were counted are not there any more at the end of the log."""
    progress = standing.progress
    if progress is not None and progress.next_offset > standing.end_offset:
        raise InvariantError(
            f"{source} ends at {standing.end_offset}, but {progress_topic} says it was read to {progress.next_offset}",
            fix=f"the topic was replaced or lost records: delete {progress_topic} too, or choose another topic prefix",
        )

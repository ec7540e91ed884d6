"""Where the partitions that a worker is assigned go on: what was written last about each, held against its log.

Progress is one record per partition on a compacted topic, in the partition of the same number. Only its tail is read: a
topic's newest segment is not compacted, and the newest progress is always near the end.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from contracts.errors import ContractError, InvariantError, UnsupportedSchema
from contracts.progress import PartitionProgress
from contracts.wire import decode
from service.kafka import aiokafka_consumer_config, translate_kafka_errors
from service.settings import Settings
from streams.agents.spec import AgentSpec

TAIL_RECORDS: Final = 500
"""Enough to see past what a worker wrote that had already lost the partition."""
READ_TIMEOUT_MS: Final = 500

P = TypeVar("P", bound=PartitionProgress)


class SourcePartition(NamedTuple, Generic[P]):
    """What is known of a partition when it is assigned."""

    begin_offset: int
    """First record of the source that Kafka still has."""
    end_offset: int
    """Offset of the source's next record."""
    progress: P | None
    """What came furthest; None if nobody ever had it."""
    is_buried: bool = False
    """Whether something else was written after it, which is what compaction would keep."""


async def read_sources(
    settings: Settings, spec: AgentSpec[P], numbers: Collection[int], *, source_id: str | None
) -> dict[int, SourcePartition[P]]:
    """Return what is known of partitions of an agent's source.

    Args:
        settings: the settings in force.
        spec: the agent.
        numbers: the partitions' numbers.
        source_id: Kafka's id of the source topic, if Kafka tells one.

    Raises:
        InvariantError: the progress is about another log than the one that is there.
        DependencyDown: Kafka does not answer.
    """
    async with log_reader(settings) as consumer:
        sources = [TopicPartition(settings.topic(spec.source), number) for number in sorted(numbers)]
        newest = await _newest_progress(consumer, settings.topic(spec.progress_topic), numbers, spec.progress)
        # asked last: whoever had the partitions may read and count on until then
        begins, ends = await consumer.beginning_offsets(sources), await consumer.end_offsets(sources)
    found = {
        tp.partition: SourcePartition(begins[tp], ends[tp], *newest.get(tp.partition, (None, False))) for tp in sources
    }
    for number, source in found.items():
        _refuse_another_log(
            source, f"{settings.topic(spec.source)}-{number}", settings.topic(spec.progress_topic), source_id
        )
    return found


async def read_progress(settings: Settings, spec: AgentSpec[P], *, tail: int = TAIL_RECORDS) -> dict[int, P]:
    """Return the newest progress of every partition of an agent, whoever has it now.

    Args:
        settings: the settings in force.
        spec: the agent.
        tail: how many of a partition's last records are looked at.

    Raises:
        DependencyDown: Kafka does not answer.
    """
    async with log_reader(settings) as consumer:
        topic, numbers = settings.topic(spec.progress_topic), range(settings.partitions)
        newest = await _newest_progress(consumer, topic, numbers, spec.progress, tail=tail)
    return {number: progress for number, (progress, _) in newest.items()}


@asynccontextmanager
async def log_reader(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer without a group.

    Raises:
        DependencyDown: Kafka does not answer.
    """
    with translate_kafka_errors(settings):
        consumer = AIOKafkaConsumer(**aiokafka_consumer_config(settings))
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()


async def read_to_end(
    consumer: AIOKafkaConsumer, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> AsyncIterator[tuple[TopicPartition, Any]]:
    """Give the records of partitions from an offset on, until each has come to where it ended.

    Args:
        consumer: without a group.
        starts: partition -> where to begin.
        ends: partition -> its next offset.
    """
    consumer.assign([*starts])
    for tp, start in starts.items():
        consumer.seek(tp, start)
    unread = {tp for tp, start in starts.items() if start < ends[tp]}
    while unread:
        for tp, records in (await consumer.getmany(*unread, timeout_ms=READ_TIMEOUT_MS)).items():
            for record in records:
                yield tp, record
        unread = {tp for tp in unread if await consumer.position(tp) < ends[tp]}


async def _newest_progress(
    consumer: AIOKafkaConsumer, topic: str, numbers: Collection[int], message: type[P], *, tail: int = TAIL_RECORDS
) -> dict[int, tuple[P, bool]]:
    """Return the progress of each partition that came furthest, and whether something else was written after it.

    What somebody else wrote and nobody can read is passed over, and `millrace status` names it.

    Raises:
        InvariantError: nothing of a partition can be read, or a later version wrote it.
    """
    contract: TypeAdapter[Any] = TypeAdapter(message)
    partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
    begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    starts = {tp: max(begins[tp], ends[tp] - tail) for tp in partitions}
    newest: dict[int, tuple[P, bool]] = {}
    unreadable: dict[int, ContractError] = {}
    async for tp, record in read_to_end(consumer, starts, ends):
        known, _ = newest.get(tp.partition, (None, False))
        progress = None
        if record.value:
            try:
                progress = decode(record.value, contract)
            except ContractError as error:
                unreadable[tp.partition] = error
        if progress is not None and progress.supersedes(known):
            newest[tp.partition] = progress, False
        elif known is not None:
            newest[tp.partition] = known, True
    for number, problem in unreadable.items():
        if number not in newest or isinstance(problem, UnsupportedSchema):
            raise InvariantError(
                f"{topic}-{number} holds progress that cannot be read: {problem.message}",
                fix=f"run the version that wrote it; if it is nobody's, stop the stream workers and delete {topic}",
            ) from problem
    return newest


def _refuse_another_log(source: SourcePartition[P], log: str, progress_topic: str, source_id: str | None) -> None:
    """Raise if what was counted is not in this log: another topic of the same name, or one that lost its end."""
    progress = source.progress
    if progress is None:
        return
    fix = (
        f"stop the stream workers, delete the topic {progress_topic} too and start them, or choose another topic prefix"
    )
    if progress.next_offset > source.end_offset:
        raise InvariantError(
            f"{log} ends at {source.end_offset}, but {progress_topic} says it was read to {progress.next_offset}",
            fix=fix,
        )
    if source_id and progress.source_id and progress.source_id != source_id:
        raise InvariantError(f"{log} was made anew, but {progress_topic} speaks of the one before it", fix=fix)

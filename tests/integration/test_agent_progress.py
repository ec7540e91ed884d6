"""What an agent finds about its partitions on a real Kafka: the newest progress, and whether it is about this log."""

import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition

from contracts.errors import InvariantError
from contracts.progress import PairsProgress
from contracts.topics import JOINED_SEARCHES, PAIRS_PROGRESS
from contracts.wire import encode
from service.kafka import OutgoingRecord, admin, produce_all, producer_config, topic_ids
from service.settings import Settings
from streams.agents import progress as progress_module
from streams.agents.progress import SourcePartition, read_sources
from streams.pairs.partition_pairs import PAIRS

pytestmark = [pytest.mark.kafka]


def write(settings: Settings, topic: str, values: Iterable[bytes | None], *, partition: int = 0) -> None:
    """Write records to a partition."""
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, [OutgoingRecord(settings.topic(topic), one, b"0", (), partition) for one in values])


def progress(next_offset: int, **changes: object) -> bytes:
    """Return a progress record."""
    values = {"partition": 0, "next_offset": next_offset, "hold_offset": next_offset, **changes}
    return encode(PairsProgress.model_validate(values))


async def found(
    settings: Settings, *numbers: int, source_id: str | None = None
) -> dict[int, SourcePartition[PairsProgress]]:
    """Return what the pairs agent finds."""
    return await read_sources(settings, PAIRS, numbers, source_id=source_id)


async def test_a_partition_that_nobody_had_begins_where_its_log_begins(two_partitions: Settings) -> None:
    """Both ends of the log are told, and no progress; other partitions have theirs."""
    write(two_partitions, JOINED_SEARCHES, [b"{}"] * 5, partition=1)
    write(two_partitions, PAIRS_PROGRESS, [progress(0)])
    with admin(two_partitions) as client:
        client.delete_records({TopicPartition(two_partitions.topic(JOINED_SEARCHES), 1): 2})
    sources = await found(two_partitions, 0, 1)
    assert sources[1] == SourcePartition(2, 5, None)
    assert sources[0].progress == PairsProgress(partition=0, next_offset=0, hold_offset=0)


async def test_the_progress_that_came_furthest_counts(two_partitions: Settings) -> None:
    """A worker that was stopped for longer than its session writes once more what the next one has passed long ago."""
    write(two_partitions, JOINED_SEARCHES, [b"{}"] * 9)
    for late, is_buried in (([], False), ([progress(4)], True), ([progress(8)], False), ([None], True)):
        write(two_partitions, PAIRS_PROGRESS, late or map(progress, range(1, 9)))
        source = (await found(two_partitions, 0))[0]
        assert source.progress is not None
        assert (source.progress.next_offset, source.is_buried) == (8, is_buried)


async def test_what_is_no_progress_is_passed_over(two_partitions: Settings) -> None:
    """Whatever somebody else writes, workers start from what an agent wrote; if nobody did, they say what to do."""
    write(two_partitions, JOINED_SEARCHES, [b"{}"] * 9)
    junk = [b"{", b"[]", b'{"partition":0,"next_offset":-1,"hold_offset":0}', b"\xff"]
    write(two_partitions, PAIRS_PROGRESS, [junk[0], progress(3), *junk[1:]])
    newest = (await found(two_partitions, 0))[0].progress
    assert newest is not None
    assert newest.next_offset == 3
    write(two_partitions, PAIRS_PROGRESS, junk, partition=1)
    with pytest.raises(InvariantError, match="pairs-progress-1 holds progress that cannot be read") as refused:
        await found(two_partitions, 0, 1)
    assert two_partitions.topic(PAIRS_PROGRESS) in refused.value.fix
    write(two_partitions, PAIRS_PROGRESS, [progress(4).replace(b'"schema_version":1', b'"schema_version":2')])
    with pytest.raises(InvariantError, match="schema_version"):
        await found(two_partitions, 0)


async def test_a_predecessor_that_still_reads_is_no_other_log(
    two_partitions: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written and counted while the log is being looked at lies within it."""
    write(two_partitions, JOINED_SEARCHES, [b"{}"] * 3)
    newest_progress = progress_module._newest_progress

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        """Read the newest progress just after another worker has come further."""
        write(two_partitions, JOINED_SEARCHES, [b"{}"] * 2)
        write(two_partitions, PAIRS_PROGRESS, [progress(5)])
        return await newest_progress(*arguments, **options)

    monkeypatch.setattr(progress_module, "_newest_progress", overtaken)
    source = (await found(two_partitions, 0))[0]
    assert (source.end_offset, source.progress) == (5, PairsProgress(partition=0, next_offset=5, hold_offset=5))


async def test_progress_about_another_log_is_refused(two_partitions: Settings) -> None:
    """A log that ends before it, or that has another id, is not the one that was counted."""
    source_id = topic_ids(two_partitions, [JOINED_SEARCHES])[JOINED_SEARCHES]
    assert uuid.UUID(source_id).int
    write(two_partitions, JOINED_SEARCHES, [b"{}"] * 3)
    write(two_partitions, PAIRS_PROGRESS, [progress(2, source_id=source_id)])
    assert (await found(two_partitions, 0, source_id=source_id))[0].end_offset == 3
    with pytest.raises(InvariantError, match="was made anew") as refused:
        await found(two_partitions, 0, source_id=str(uuid.uuid4()))
    assert two_partitions.topic(PAIRS_PROGRESS) in refused.value.fix
    write(two_partitions, PAIRS_PROGRESS, [progress(4, source_id=source_id)])
    with pytest.raises(InvariantError, match="ends at 3") as refused:
        await found(two_partitions, 0, source_id=source_id)
    assert two_partitions.topic(PAIRS_PROGRESS) in refused.value.fix

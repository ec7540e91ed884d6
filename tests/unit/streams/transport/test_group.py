"""What ends a worker whose group, topic or rights are gone."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import (
    InvalidSessionTimeoutError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from contracts.errors import UsageError
from service.kafka_errors import expected_kafka_error
from service.settings import Settings
from streams.transport.group import MISSING_TOPIC_S, GroupWatch
from tests.support.topics import BadName


def consumer(**changes: Any) -> Any:
    """Return a consumer that is well, but for what is changed."""
    coordinator = SimpleNamespace(
        _pending_exception=None,
        _coordination_task=None,
        _group_instance_id="w1-join",
        group_id="millrace-join",
        member_id=changes.get("member_id", "m1"),
    )
    coordinator._pending_exception = changes.get("parked")
    cluster = SimpleNamespace(
        unauthorized_topics=changes.get("unauthorized", set()),
        partitions_for_topic=lambda topic: changes.get("partitions", {0}),
    )
    client = SimpleNamespace(cluster=cluster)
    return SimpleNamespace(_coordinator=coordinator, _client=client, subscription=lambda: {"search-events"})


def test_a_consumer_that_is_well_goes_on() -> None:
    """No error, however long it runs."""
    watch = GroupWatch()
    assert [watch.fatal_error(consumer(), now_s=now) for now in range(100)] == [None] * 100


def test_a_parked_error_is_found() -> None:
    """The client keeps it for a call that Faust never makes."""
    parked = InvalidSessionTimeoutError()
    assert GroupWatch().fatal_error(consumer(parked=parked), now_s=0) is parked


def test_a_missing_right_is_found() -> None:
    """A topic that may not be read is named."""
    error = GroupWatch().fatal_error(consumer(unauthorized={"search-events"}), now_s=0)
    assert isinstance(error, TopicAuthorizationFailedError)


@pytest.mark.parametrize("gone", [None, set()])
def test_a_topic_may_be_unknown_for_a_moment_only(gone: set[int] | None) -> None:
    """A new topic takes a moment to be known; one that stays unknown was deleted."""
    watch = GroupWatch()
    assert watch.fatal_error(consumer(partitions=gone), now_s=0) is None
    assert watch.fatal_error(consumer(), now_s=5) is None
    assert watch.fatal_error(consumer(partitions=gone), now_s=6) is None
    assert watch.fatal_error(consumer(partitions=gone), now_s=MISSING_TOPIC_S) is None
    assert isinstance(
        watch.fatal_error(consumer(partitions=gone), now_s=6 + MISSING_TOPIC_S), UnknownTopicOrPartitionError
    )


def test_losing_the_place_again_and_again_means_a_namesake() -> None:
    """Once is a pause that was too long; three times within a minute is another process of that name."""
    watch = GroupWatch()
    assert [watch.fatal_error(consumer(member_id=f"m{n}"), now_s=n) for n in range(3)] == [None] * 3
    error = watch.fatal_error(consumer(member_id="m9"), now_s=9)
    assert isinstance(error, UsageError)
    assert "w1-join" in error.message


def test_losing_the_place_now_and_then_is_no_namesake() -> None:
    """Pauses far apart are pauses."""
    watch = GroupWatch()
    assert [watch.fatal_error(consumer(member_id=f"m{n}"), now_s=n * 40.0) for n in range(9)] == [None] * 9


@pytest.mark.parametrize("codec", [0, 1, 3])
def test_a_header_whose_name_is_no_text_ends_nobody(codec: int) -> None:
    """Kafka takes it, so it will come: the record is read with its value, and so are its neighbours, packed or not."""
    builder = _DefaultRecordBatchBuilderPy(2, codec, False, -1, -1, 0, 10_000)
    names: list[str] = ["plain", BadName("é"), "冷"]
    for offset, name in enumerate(names):
        builder.append(offset, timestamp=17, key=b"k", value=b"v%d" % offset, headers=[(name, b"h"), ("null", None)])
    fetched = bytes(builder.build())
    records = fetcher.MemoryRecords(fetched)
    batch = records.next_batch()
    assert batch is not None
    assert (batch.next_offset, batch.is_control_batch, batch.validate_crc()) == (3, False, True)
    found = [(one.offset, one.value, one.headers) for one in batch]
    assert found == [
        (offset, b"v%d" % offset, [(name, b"h"), ("null", None)])
        for offset, name in enumerate(["plain", "\ufffd", "冷"])
    ]
    assert not records.has_next()


def test_the_answer_to_a_namesake_is_known() -> None:
    """Kafka's answer to a static member whose place was taken has a name here, not that of an unknown error."""
    assert for_code(82).__name__ == "FencedInstanceIdError"
    meaning = expected_kafka_error(KafkaError(repr(for_code(82)())), Settings(worker_id="w1"))
    assert isinstance(meaning, UsageError)


HANGS_IN_ITS_STOP = """
import asyncio
from types import SimpleNamespace
from streams.transport.group import GroupThread

class Hanging(GroupThread):
    def __post_init__(self): pass
    async def on_start(self): pass
    async def on_thread_stop(self): await asyncio.sleep(600)

async def main():
    thread = Hanging(SimpleNamespace(transport=SimpleNamespace(app=None)))
    await thread.start()
    await asyncio.wait([asyncio.create_task(thread.stop())], timeout=0.1)
    print("stopped")

asyncio.run(main())
"""


def test_a_thread_that_does_not_end_keeps_no_process() -> None:
    """A worker that has said why it stops must end, although its farewell to a Kafka that hangs takes a minute."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGS_IN_ITS_STOP], capture_output=True, timeout=30, check=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("stopped\n", "")

"""Whatever codec a batch is packed with, and whatever its headers are called, our readers take it and go on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as AioTopicPartition
from kafka import KafkaProducer
from kafka.admin import ConfigResource

from contracts.topics import CATALOG, SEARCH_EVENTS
from millrace.watch.kafka_view import TailCounter
from service.follow import TopicFollower
from service.kafka import (
    OffsetRange,
    OutgoingRecord,
    admin,
    aiokafka_consumer_config,
    aiokafka_producer_config,
    ensure_topics,
    produce_all,
    producer_config,
)
from service.settings import Settings
from tests.support.topics import BadName, read_compacted

pytestmark = pytest.mark.kafka

CODECS = ("gzip", "lz4", "snappy", "zstd")
VALUES = [b'{"type":"click","note":"%s"}' % (b"%d" % number * 400) for number in range(400)]
"""Packs well, and is longer unpacked than the blocks and windows that the codecs work in."""
SettingsFactory = Callable[..., Settings]


def produced_by_kafka_python(settings: Settings, topic: str, codec: str) -> None:
    """Write packed batches as a shop's Python producer does."""
    with KafkaProducer(**producer_config(settings), compression_type=codec, batch_size=2**17) as producer:
        records = [OutgoingRecord(settings.topic(topic), value, b"%d" % n) for n, value in enumerate(VALUES)]
        produce_all(producer, records)


def produced_by_aiokafka(settings: Settings, topic: str, codec: str) -> None:
    """Write packed batches with the other library, whose encoders are others."""

    async def produce() -> None:
        """Send everything."""
        packed = {"compression_type": codec, "max_batch_size": 2**17}
        async with AIOKafkaProducer(**aiokafka_producer_config(settings), **packed) as producer:
            name = settings.topic(topic)
            sent = [await producer.send(name, value, key=b"%d" % n) for n, value in enumerate(VALUES)]
            await asyncio.gather(*sent)

    asyncio.run(produce())


def packed_by_the_broker(settings: Settings, topic: str, codec: str) -> None:
    """Let Kafka itself pack, whose encoders are those of every Java producer."""
    with admin(settings) as client:
        client.alter_configs([ConfigResource("TOPIC", settings.topic(topic), {"compression.type": codec})])
    with KafkaProducer(**producer_config(settings), batch_size=2**17) as producer:
        records = [OutgoingRecord(settings.topic(topic), value, b"%d" % n) for n, value in enumerate(VALUES)]
        produce_all(producer, records)


WRITERS = (produced_by_kafka_python, produced_by_aiokafka, packed_by_the_broker)


@pytest.fixture
def settings_of_one_partition(kafka_settings: SettingsFactory) -> Settings:
    """Give a deployment whose topics have one partition."""
    settings = kafka_settings(partitions=1)
    ensure_topics(settings)
    return settings


def read_by_read_compacted(settings: Settings) -> list[bytes]:
    """Read `catalog` with kafka-python, as start-ups do."""
    return list(read_compacted(settings, CATALOG).values())


def read_by_a_follower(settings: Settings) -> list[bytes]:
    """Read `catalog` with kafka-python in a thread, as search and trainer do."""
    values: list[bytes] = []
    follower = TopicFollower(settings, CATALOG, lambda _key, value, _: values.append(value or b""))
    follower.start()
    try:
        assert follower.caught_up.wait(30), follower.failure
    finally:
        follower.stop()
    return values


def read_by_aiokafka(settings: Settings) -> list[bytes]:
    """Read `catalog` with aiokafka, as the stream worker does."""

    async def read() -> list[bytes]:
        """Take records until there are as many as were written."""
        values: list[bytes] = []
        async with AIOKafkaConsumer(**aiokafka_consumer_config(settings)) as consumer:
            consumer.assign([AioTopicPartition(settings.topic(CATALOG), 0)])
            async with asyncio.timeout(30):
                while len(values) < len(VALUES):
                    fetched: dict[Any, Any] = await consumer.getmany(timeout_ms=500)
                    values += [record.value for records in fetched.values() for record in records]
        return values

    return asyncio.run(read())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("write", WRITERS)
def test_every_reader_takes_every_codec(
    write: Callable[[Settings, str, str], None], codec: str, settings_of_one_partition: Settings
) -> None:
    """Start-up reads, followers, stream workers and the count of unread events see what was written, byte for byte."""
    settings = settings_of_one_partition
    write(settings, CATALOG, codec)
    for read in (read_by_read_compacted, read_by_a_follower, read_by_aiokafka):
        assert read(settings) == VALUES, read.__name__
    write(settings, SEARCH_EVENTS, codec)
    counter = TailCounter(settings)
    tails = counter.count({0: 0}, {0: OffsetRange(0, len(VALUES))})
    counter.close()
    assert (tails[0].events, tails[0].ticks) == (len(VALUES), 0)


def test_a_header_whose_name_is_no_text_stops_no_reader(settings_of_one_partition: Settings) -> None:
    """Kafka takes what it forbids; start-up reads, followers and counts of unread events read on."""
    settings = settings_of_one_partition
    with KafkaProducer(**producer_config(settings)) as producer:
        for topic in (CATALOG, SEARCH_EVENTS):
            bad = OutgoingRecord(settings.topic(topic), VALUES[0], b"0", headers=[(BadName("é"), b"x")])
            produce_all(producer, [bad, OutgoingRecord(settings.topic(topic), VALUES[1], b"1")])
    for read in (read_by_read_compacted, read_by_a_follower):
        assert read(settings) == VALUES[:2], read.__name__
    counter = TailCounter(settings)
    tails = counter.count({0: 0}, {0: OffsetRange(0, 2)})
    counter.close()
    assert tails[0].events == 2

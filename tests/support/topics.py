"""Whole topics read back after a test, in the order of each partition."""

import time

from kafka import KafkaConsumer, TopicPartition
from typing_extensions import override

from contracts.progress import JoinProgress, PairsProgress
from contracts.topics import JOINED_SEARCHES
from service.kafka import consumer_config
from service.settings import Settings

Records = dict[int, list["LoggedRecord"]]


class LoggedRecord:
    """A record as it stands on a topic."""

    __slots__ = ("headers", "key", "offset", "timestamp", "value")

    def __init__(self, offset: int, timestamp: int, key: bytes | None, value: bytes, headers: dict[str, bytes]) -> None:
        self.offset = offset
        self.timestamp = timestamp
        self.key = key
        self.value = value
        self.headers = headers


class BadName(str):
    """A header's name as a client writes it that does not care for UTF-8."""

    __slots__ = ()

    @override
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return the name in Latin-1."""
        return super().encode("latin-1")


def read_topic(settings: Settings, topic: str, *, timeout_s: float = 30.0) -> Records:
    """Return everything on a topic up to where it ends now, by partition."""
    with KafkaConsumer(**consumer_config(settings)) as consumer:
        name = settings.topic(topic)
        partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name))]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: Records = {tp.partition: [] for tp in partitions}
        deadline = time.monotonic() + timeout_s
        while any(consumer.position(tp) < ends[tp] for tp in partitions):
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            for tp, records in consumer.poll(200).items():
                found[tp.partition] += [
                    LoggedRecord(r.offset, r.timestamp, r.key, r.value, dict(r.headers or ()))
                    for r in records
                    if r.offset < ends[tp]
                ]
        return found


def read_lists(settings: Settings) -> Records:
    """Return everything on `joined-searches` but the watermark records, by partition."""
    records = read_topic(settings, JOINED_SEARCHES)
    return {
        number: [record for record in own if b'"type":"watermark"' not in record.value]
        for number, own in records.items()
    }


def decided(progress: PairsProgress) -> int:
    """Return of how many records of `joined-searches` the pairs agent has counted an outcome."""
    counts = progress.counts
    outcomes = [counts.paired, counts.held_out, *counts.filtered.values(), *counts.unpaired.values()]
    return sum(outcomes) + counts.dead_lettered


def read_compacted(settings: Settings, topic: str) -> dict[tuple[int, bytes], bytes]:
    """Return the newest value of each (partition, key) of a topic; tombstoned keys are absent."""
    newest: dict[tuple[int, bytes], bytes | None] = {
        (partition, record.key): record.value
        for partition, records in read_topic(settings, topic).items()
        for record in records
        if record.key is not None
    }
    return {place: value for place, value in newest.items() if value is not None}


def join_progress(settings: Settings) -> dict[int, JoinProgress]:
    """Return the newest progress of the join, by partition."""
    records = read_topic(settings, "join-progress")
    return {number: JoinProgress.model_validate_json(own[-1].value) for number, own in records.items() if own}


def pairs_progress(settings: Settings) -> dict[int, PairsProgress]:
    """Return the newest progress of the pairs agent, by partition."""
    records = read_topic(settings, "pairs-progress")
    return {number: PairsProgress.model_validate_json(own[-1].value) for number, own in records.items() if own}

"""The table of topics and groups."""

import re
import zlib

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import MESSAGES
from contracts.topics import (
    CATALOG,
    GROUP_TOPICS,
    LARGE_RECORD_BYTES,
    MODELS,
    MOST_ASIDE_BYTES,
    MOST_ASIDE_KEY_BYTES,
    SEARCH_EVENTS,
    TOPIC_BY_NAME,
    TOPICS,
    TopicSpec,
    belongs,
    kept_aside,
    partition_for,
)

NAMED_IN_THE_INTERFACES = {
    "search-events": "delete",
    "joined-searches": "delete",
    "preference-pairs": "delete",
    "holdout-searches": "delete",
    "curated-pairs": "delete",
    "propensities": "compact",
    "catalog": "compact",
    "product-vectors": "compact",
    "models": "compact",
    "join-progress": "compact",
    "late-events": "delete",
    "orphan-events": "delete",
    "dead-letters": "delete",
}


@pytest.mark.parametrize(("name", "cleanup"), NAMED_IN_THE_INTERFACES.items())
def test_a_published_topic_keeps_its_name_and_clean_up(name: str, cleanup: str) -> None:
    """Shops and tools rely on these names."""
    assert TOPIC_BY_NAME[name].cleanup == cleanup


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_topic_is_one_that_kafka_takes(topic: TopicSpec) -> None:
    """Names fit, and the configuration is text as the broker wants it; compacted topics are kept for ever."""
    assert re.fullmatch(r"[a-z-]{1,60}", topic.name)
    config = topic.config()
    assert config["cleanup.policy"] == topic.cleanup
    assert ("retention.ms" in config) is (topic.cleanup == "delete")
    assert int(config["max.message.bytes"]) >= 1_048_588
    assert all(isinstance(value, str) for value in config.values())


def test_the_broker_stamps_what_time_is_measured_from() -> None:
    """A sender's clock must not decide when an event arrived, nor how fresh a product is."""
    for name in (SEARCH_EVENTS, CATALOG, MODELS):
        assert TOPIC_BY_NAME[name].config()["message.timestamp.type"] == "LogAppendTime"


def test_a_release_of_16_mib_fits() -> None:
    """The size that the interfaces promise for `models`."""
    assert TOPIC_BY_NAME[MODELS].max_message_bytes == 16 * 1024 * 1024


def test_topics_groups_and_messages_fit_together() -> None:
    """Names are unique, every group reads topics of the table, every message stands on one."""
    names = [topic.name for topic in TOPICS]
    assert len(set(names)) == len(names)
    assert {topic for read in GROUP_TOPICS.values() for topic in read} <= set(names)
    assert {topic for spec in MESSAGES for topic in spec.topics} <= set(names)
    assert all(spec.topics for spec in MESSAGES)


@given(key=st.binary(max_size=50), partitions=st.integers(1, 64))
def test_keys_are_placed_as_kafkas_clients_place_them(key: bytes, partitions: int) -> None:
    """Murmur2 as every default client: what a shop writes itself lies beside what we write."""
    every = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, every, every)


@given(key=st.binary(max_size=50), partitions=st.integers(1, 64))
def test_a_key_belongs_to_one_partition(key: bytes, partitions: int) -> None:
    """Of all partitions exactly one is a key's own; a record without a key has none."""
    assert [number for number in range(partitions) if belongs(key, number, partitions)] == [
        partition_for(key, partitions)
    ]
    assert not any(belongs(None, number, partitions) for number in range(partitions))


def test_librdkafkas_default_partitioner_puts_most_keys_elsewhere() -> None:
    """CRC-32 agrees by chance only: one key of as many as there are partitions."""
    keys = [b"search-%d" % number for number in range(4000)]
    astray = sum(not belongs(key, zlib.crc32(key) % 4, 4) for key in keys)
    assert 0.7 * len(keys) < astray < 0.8 * len(keys)


@pytest.mark.parametrize(
    ("key_bytes", "value_bytes", "kept"),
    [
        (3, 9, (3, 9)),
        (MOST_ASIDE_KEY_BYTES + 1, 9, (MOST_ASIDE_KEY_BYTES + 1, 9)),
        (3, MOST_ASIDE_BYTES - 3, (3, MOST_ASIDE_BYTES - 3)),
        (3, MOST_ASIDE_BYTES - 2, (3, 0)),
        (MOST_ASIDE_KEY_BYTES, MOST_ASIDE_BYTES, (MOST_ASIDE_KEY_BYTES, 0)),
        (MOST_ASIDE_KEY_BYTES + 1, MOST_ASIDE_BYTES, (0, 0)),
        (3_000_000, 3_000_000, (0, 0)),
    ],
)
def test_a_record_that_is_set_aside_fits_its_topic_whatever_is_large(
    key_bytes: int, value_bytes: int, kept: tuple[int, int]
) -> None:
    """A value goes no further without its key: sent again, it would be another record, or none that a topic takes."""
    key, value = kept_aside(b"k" * key_bytes, b"v" * value_bytes)
    assert (len(key or b""), len(value)) == kept
    assert sum(kept) + 16 * 1024 < LARGE_RECORD_BYTES


def test_a_record_without_key_or_value_is_set_aside_without() -> None:
    """No key stays none, and nothing is an empty value: a null would delete nothing there, and mean nothing."""
    assert kept_aside(None, b"{") == (None, b"{")
    assert kept_aside(b"k", None) == (b"k", b"")

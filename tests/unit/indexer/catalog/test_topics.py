"""The catalogue as a member of the group reads it, on a real Kafka: where it begins, and when it may not write."""

import base64
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import MemberToRemove
from kafka.structs import OffsetAndMetadata

from contracts import wire
from contracts.progress import CatalogCounts
from contracts.telemetry import Process
from contracts.topics import CATALOG
from indexer.catalog.planning import PartitionProgress
from indexer.catalog.topics import GROUP, CatalogTopic, VectorsTopic
from indexer.ports import PartitionsMoved
from service.health import Dependency
from service.kafka import OutgoingRecord, admin, consumer_config, produce_all, producer_config
from service.settings import Settings
from tests.support.indexer_fakes import base_product
from tests.support.poll import eventually
from tests.support.tiny_encoder import TinyEncoder

pytestmark = pytest.mark.kafka

Commit = Callable[[int, str], None]


@pytest.fixture
def own(two_partitions: Settings) -> Settings:
    """Give the settings of a deployment with five records in the first partition of its catalogue."""
    producer = KafkaProducer(**producer_config(two_partitions))
    name = two_partitions.topic(CATALOG)
    produce_all(producer, [OutgoingRecord(name, b"{}", key=b"P-%d" % number, partition=0) for number in range(5)])
    producer.close()
    return two_partitions


@pytest.fixture
def kafka() -> Dependency:
    """Give what is known of Kafka."""
    return Dependency(Process.KAFKA)


@pytest.fixture
def member(own: Settings, kafka: Dependency) -> Iterator[CatalogTopic]:
    """Give the only member of the group, which has read everything."""
    topic = CatalogTopic(own, kafka)
    read = 0

    def has_read_all() -> bool:
        """Read on."""
        nonlocal read
        read += len(topic.poll(256))
        return read == 5

    eventually(has_read_all, timeout_s=60)
    yield topic
    topic.close()


@pytest.fixture
def commit(own: Settings) -> Commit:
    """Give a function that commits for the group as a tool does while no member runs."""

    def write(offset: int, metadata: str) -> None:
        """Commit an offset and a text for the first partition."""
        with KafkaConsumer(**consumer_config(own, GROUP)) as consumer:
            place = TopicPartition(own.topic(CATALOG), 0)
            consumer.assign([place])
            consumer.commit({place: OffsetAndMetadata(offset, metadata, -1)})

    return write


def progress_of(own: Settings, kafka: Dependency) -> PartitionProgress:
    """Return where a new member begins in the first partition."""
    topic = CatalogTopic(own, kafka)
    try:
        return topic.progress(0)
    finally:
        topic.close()


def test_a_group_that_never_committed_begins_with_the_first_record(own: Settings, kafka: Dependency) -> None:
    """The counts begin there too."""
    assert progress_of(own, kafka) == PartitionProgress(0, CatalogCounts())


@pytest.mark.parametrize("metadata", ["", "moved by hand"])
def test_an_offset_that_a_tool_has_moved_is_taken_and_the_counts_begin_there(
    own: Settings, kafka: Dependency, commit: Commit, metadata: str
) -> None:
    """What became of the records below is not known any more; nothing breaks for it."""
    commit(3, metadata)
    assert progress_of(own, kafka) == PartitionProgress(3, CatalogCounts(start_offset=3))


def test_an_offset_behind_the_end_begins_again(own: Settings, kafka: Dependency, commit: Commit) -> None:
    """The topic was made anew: its records are others, and none of them is passed over."""
    commit(100, CatalogCounts(catalogue=100).model_dump_json())
    assert progress_of(own, kafka) == PartitionProgress(0, CatalogCounts())


def test_a_member_is_not_ready_until_the_group_has_assigned_partitions(member: CatalogTopic, own: Settings) -> None:
    """A join that has only begun, and gives up what the member held before, is no assignment."""
    waiting = CatalogTopic(own, Dependency(Process.KAFKA))
    assert waiting.not_assigned() is not None
    waiting._assignment.on_partitions_revoked([])
    assert waiting.not_assigned() is not None
    waiting.close()
    assert member.not_assigned() is None
    assert member.leads()


def test_a_member_is_confirmed_without_moving_anything(member: CatalogTopic, own: Settings, kafka: Dependency) -> None:
    """The same offset and counts are committed once more."""
    member.commit({0: PartitionProgress(2, CatalogCounts(catalogue=2))})
    member.confirm([0, 1])
    assert progress_of(own, kafka) == PartitionProgress(2, CatalogCounts(catalogue=2))


def test_a_member_that_the_group_has_removed_is_not_confirmed(
    member: CatalogTopic, own: Settings, kafka: Dependency
) -> None:
    """It does not know of it yet, as after a long stall; that is no outage of Kafka."""
    member.confirm([0])
    group = own.group(GROUP)
    with admin(own) as client:
        (found,) = client.describe_groups([group])[group]["members"]
        client.remove_group_members(group, [MemberToRemove(member_id=found["member_id"])])
    with pytest.raises(PartitionsMoved):
        member.confirm([0])
    assert kafka.is_up


def test_a_look_ahead_gives_the_last_records_once_and_moves_nothing(own: Settings, kafka: Dependency) -> None:
    """What was read in its turn is not among them; what comes later is; the next records are those that were next."""
    topic = CatalogTopic(own, kafka)
    read: list[int] = []

    def reads(most: int) -> bool:
        """Read on; return whether there was anything."""
        read.extend(record.offset for record in topic.poll(most))
        return bool(read)

    eventually(lambda: reads(2), timeout_s=60)
    assert [record.offset for record in topic.look_ahead()] == [2, 3, 4]
    assert topic.look_ahead() == []
    producer = KafkaProducer(**producer_config(own))
    produce_all(producer, [OutgoingRecord(own.topic(CATALOG), b"{}", key=b"P-5", partition=0)])
    producer.close()
    assert [record.offset for record in topic.look_ahead()] == [5]
    eventually(lambda: reads(2) and len(read) == 6, timeout_s=60)
    assert read == [0, 1, 2, 3, 4, 5]
    topic.close()


def test_a_look_ahead_holds_no_more_than_it_may(
    own: Settings, kafka: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more records, or larger ones, the last ones stay; what there was no time for comes with the next look."""
    topic = CatalogTopic(own, kafka)
    eventually(lambda: topic.poll(1), timeout_s=60)
    monkeypatch.setattr("indexer.catalog.topics.AHEAD_BYTES", 5)
    assert [record.offset for record in topic.look_ahead()] == [3, 4]
    topic.close()
    hurried = CatalogTopic(own, kafka)
    eventually(lambda: hurried.poll(1), timeout_s=60)
    with monkeypatch.context() as at_once:
        at_once.setattr("indexer.catalog.topics.AHEAD_WITHIN_S", 0.0)
        assert hurried.look_ahead() == []
    assert [record.offset for record in hurried.look_ahead()] == [3, 4]
    hurried.close()
    behind = CatalogTopic(own, kafka)
    eventually(lambda: behind.poll(1), timeout_s=60)
    monkeypatch.setattr("indexer.catalog.topics.AHEAD_RECORDS", 2)
    assert [record.offset for record in behind.look_ahead()] == [4]
    behind.close()


def test_what_is_written_is_known_once_the_topic_was_read_to_its_end(own: Settings, kafka: Dependency) -> None:
    """Other members' base vectors too; a record that nobody can read is passed over."""
    producer = KafkaProducer(**producer_config(own))
    log = VectorsTopic(own, producer, kafka, encoder=TinyEncoder(), pause=lambda _seconds: False)
    log.follower.start()
    product = base_product(TinyEncoder(), "P-1", 3)
    newer = base_product(TinyEncoder(), "P-1", 4).to_message()
    texts = (b"x", b"AAAA", np.ones(3, "<f4"), np.full(TinyEncoder().dim, np.nan, "<f4"))  # no Base64, 3 bytes, ...
    vectors = (text if isinstance(text, bytes) else base64.b64encode(text.tobytes()) for text in texts)
    junk = [wire.encode(newer.model_copy(update={"vector": vector.decode()})) for vector in vectors]
    produce_all(producer, [OutgoingRecord(own.topic("product-vectors"), one, b"P-1") for one in (b"junk", *junk)])
    log.publish([product])
    log.read_to_end()
    known = log.known.get("P-1")
    assert known is not None
    assert known.order == (3, False)
    assert log.known.outdated() == []
    log.follower.stop()
    producer.close()

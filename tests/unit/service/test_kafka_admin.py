"""Offsets seen from outside, against a cluster in memory; and a cluster that is not there."""

from typing import Any

import pytest
from kafka import OffsetSpec, TopicPartition
from kafka.errors import CoordinatorNotAvailableError
from kafka.structs import OffsetAndMetadata, OffsetAndTimestamp

from contracts.errors import DependencyDown
from service import kafka_admin
from service.kafka_admin import Committed, OffsetRange, admin, beginning_and_end_offsets, committed_offsets
from service.settings import Settings

SETTINGS = Settings(kafka_bootstrap="broker:9092", topic_prefix="t-", partitions=2, dependency_wait_s=0.2)


class ClusterInMemory:
    """The part of an admin client that we use to look at offsets."""

    def __init__(self) -> None:
        self.topics: dict[str, int] = {}
        self.coordinator_delays = 0
        self.commits: dict[TopicPartition, OffsetAndMetadata] = {}

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        """Return the partitions of each name, none where it is unknown."""
        return [
            {"name": name, "partitions": [{"partition_index": number} for number in range(self.topics.get(name, 0))]}
            for name in names
        ]

    def list_partition_offsets(self, specs: dict[TopicPartition, OffsetSpec]) -> dict[TopicPartition, Any]:
        """Say that each partition holds offsets 5 to 9."""
        return {
            partition: OffsetAndTimestamp(5 if spec is OffsetSpec.EARLIEST else 10, -1, None)
            for partition, spec in specs.items()
        }

    def list_group_offsets(self, groups: dict[str, None]) -> dict[str, Any]:
        """Return what was committed, once a coordinator is there."""
        if self.coordinator_delays:
            self.coordinator_delays -= 1
            raise CoordinatorNotAvailableError
        return dict.fromkeys(groups, self.commits)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ClusterInMemory:
    """Give a cluster in memory whose coordinator is asked again soon."""
    monkeypatch.setattr(kafka_admin, "POLL_S", 0.001)
    return ClusterInMemory()


def test_offsets_come_with_names_of_the_contract(cluster: ClusterInMemory) -> None:
    """The prefix is the deployment's matter, not the reader's."""
    cluster.topics = {"t-catalog": 2}
    assert beginning_and_end_offsets(cluster, SETTINGS, ["catalog"]) == {
        ("catalog", 0): OffsetRange(5, 10),
        ("catalog", 1): OffsetRange(5, 10),
    }


def test_a_missing_topic_is_not_an_empty_one(cluster: ClusterInMemory) -> None:
    """A lag of nothing would look like no lag."""
    with pytest.raises(DependencyDown, match="Kafka does not know t-catalog"):
        beginning_and_end_offsets(cluster, SETTINGS, ["catalog"])


def test_commits_come_with_their_text(cluster: ClusterInMemory) -> None:
    """The counts beside an offset are read with it; a partition without a commit is absent."""
    cluster.commits = {
        TopicPartition("t-catalog", 0): OffsetAndMetadata(12, '{"applied":12}', -1),
        TopicPartition("t-catalog", 1): OffsetAndMetadata(-1, "", -1),
    }
    assert committed_offsets(cluster, SETTINGS, "indexer") == {("catalog", 0): Committed(12, '{"applied":12}')}


def test_the_first_group_of_a_new_cluster_waits_for_its_coordinator(cluster: ClusterInMemory) -> None:
    """The offsets topic is made on first use; that is no failure."""
    cluster.coordinator_delays = 2
    assert committed_offsets(cluster, SETTINGS, "indexer") == {}


def test_kafka_that_does_not_listen_is_one_clear_line() -> None:
    """The address is named, the fix says how to start it; exit code 4."""
    settings = Settings(kafka_bootstrap="127.0.0.1:1", dependency_wait_s=0)
    with pytest.raises(DependencyDown, match=r"Kafka does not answer at 127\.0\.0\.1:1") as caught:
        admin(settings)
    assert "millrace up" in caught.value.fix
    assert caught.value.exit_code == 4

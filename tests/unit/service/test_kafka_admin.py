"""Topics made by us, and offsets seen from outside, against a cluster in memory."""

from types import TracebackType
from typing import Any, Self

import pytest
from kafka import OffsetSpec, TopicPartition
from kafka.errors import CoordinatorNotAvailableError, KafkaTimeoutError
from kafka.structs import OffsetAndMetadata, OffsetAndTimestamp

from contracts.errors import DependencyDown, UsageError
from contracts.topics import MODELS, TOPIC_BY_NAME, TOPICS
from service import kafka_admin
from service.kafka_admin import Committed, OffsetRange, beginning_and_end_offsets, committed_offsets, ensure_topics
from service.settings import Settings

SETTINGS = Settings(kafka_bootstrap="broker:9092", topic_prefix="t-", partitions=2, dependency_wait_s=0.2)


class ClusterInMemory:
    """The part of an admin client that we use; `race` topics are made by another process between listing and making."""

    def __init__(self, topics: dict[str, int] | None = None, *, race: dict[str, int] | None = None) -> None:
        self.topics = dict(topics or {})
        self.race = race or {}
        self.configs: dict[str, dict[str, str]] = {}
        self.refusal = 0
        self.coordinator_delays = 0
        self.commits: dict[TopicPartition, OffsetAndMetadata] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Keep everything."""

    def list_topics(self) -> list[str]:
        """Return the names there are."""
        names = list(self.topics)
        self.topics.update(self.race)
        return names

    def create_topics(self, wanted: dict[str, Any], *, raise_errors: bool) -> dict[str, Any]:
        """Make the topics that are not there; answer each with its code."""
        assert not raise_errors
        answers = []
        for name, options in wanted.items():
            code = 36 if name in self.topics else self.refusal
            if code == 0:
                self.topics[name] = options["num_partitions"]
                self.configs[name] = options["configs"]
            answers.append({"name": name, "error_code": code, "error_message": None})
        return {"topics": answers}

    def wait_for_topics(self, names: list[str], *, timeout_ms: int) -> None:
        """Fail where a topic is missing."""
        assert timeout_ms > 0
        if not set(names) <= set(self.topics):
            raise KafkaTimeoutError("Topics not ready")

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
    """Let admin clients reach a cluster in memory."""
    made = ClusterInMemory()
    monkeypatch.setattr(kafka_admin, "admin", lambda _settings, **_: made)
    monkeypatch.setattr(kafka_admin, "POLL_S", 0.001)
    return made


def test_every_topic_of_the_table_is_made(cluster: ClusterInMemory) -> None:
    """Names with the prefix, partitions by the deployment, configuration by the table."""
    ensure_topics(SETTINGS)
    assert set(cluster.topics) == {f"t-{spec.name}" for spec in TOPICS}
    assert cluster.topics["t-search-events"] == 2
    assert cluster.topics["t-models"] == 1
    assert cluster.configs["t-models"] == TOPIC_BY_NAME[MODELS].config()


def test_doing_it_again_changes_nothing(cluster: ClusterInMemory) -> None:
    """Every service may call it at every start."""
    ensure_topics(SETTINGS)
    before = dict(cluster.topics)
    cluster.refusal = 29  # would now be refused: nothing is created again
    ensure_topics(SETTINGS)
    assert cluster.topics == before


def test_a_topic_made_by_another_process_meanwhile_is_fine(cluster: ClusterInMemory) -> None:
    """Services that start together do not trip over one another."""
    cluster.race = {"t-catalog": 2}
    ensure_topics(SETTINGS)
    assert cluster.topics["t-catalog"] == 2


def test_another_partition_count_is_refused_with_the_fix(cluster: ClusterInMemory) -> None:
    """Keys would land elsewhere than those of the topics it is read beside."""
    cluster.topics["t-catalog"] = 5
    with pytest.raises(UsageError, match="topic t-catalog has 5 partitions, not 2") as caught:
        ensure_topics(SETTINGS)
    assert "MILLRACE_PARTITIONS=5" in caught.value.fix


def test_a_single_partition_topic_with_more_is_refused(cluster: ClusterInMemory) -> None:
    """Releases are read in one order."""
    cluster.topics["t-models"] = 2
    with pytest.raises(UsageError, match="topic t-models has 2 partitions, not 1"):
        ensure_topics(SETTINGS)


def test_a_refused_creation_is_one_clear_line(cluster: ClusterInMemory) -> None:
    """Missing rights and too few brokers are named."""
    cluster.refusal = 29
    with pytest.raises(UsageError, match=r"does not allow.*t-search-events"):
        ensure_topics(SETTINGS)
    cluster.refusal = 38
    with pytest.raises(UsageError, match="MILLRACE_REPLICATION_FACTOR=1"):
        ensure_topics(SETTINGS)


def test_a_broker_that_starts_up_is_tried_again(cluster: ClusterInMemory) -> None:
    """A start that finds no controller yet is not a failure."""
    cluster.refusal = 41  # NOT_CONTROLLER
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        """Let the controller come up while pausing."""
        waits.append(seconds)
        cluster.refusal = 0
        return False

    ensure_topics(SETTINGS, wait=wait)
    assert len(waits) == 1


def test_a_stop_ends_the_waiting(cluster: ClusterInMemory) -> None:
    """A process asked to stop does not sit out its deadline."""
    cluster.refusal = 41
    settings = SETTINGS.model_copy(update={"dependency_wait_s": 3600})
    with pytest.raises(DependencyDown):
        ensure_topics(settings, wait=lambda _seconds: True)


def test_kafka_that_does_not_listen_is_one_clear_line() -> None:
    """The address is named, the fix says how to start it; exit code 4."""
    settings = Settings(kafka_bootstrap="127.0.0.1:1", dependency_wait_s=0)
    with pytest.raises(DependencyDown, match=r"Kafka does not answer at 127\.0\.0\.1:1") as caught:
        ensure_topics(settings)
    assert "millrace up" in caught.value.fix
    assert caught.value.exit_code == 4


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

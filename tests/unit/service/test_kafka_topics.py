"""Topics made by us and topics made by others, against a cluster in memory."""

from types import TracebackType
from typing import Any, Self

import pytest
from kafka.admin import ConfigResource
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from contracts.errors import DependencyDown, UsageError
from contracts.topics import MODELS, TOPIC_BY_NAME, TOPICS, TopicSpec
from service import kafka_admin
from service.kafka_admin import CHECKED, TopicFinding, TopicState, differences, ensure_topics, topic_findings
from service.settings import Settings

SETTINGS = Settings(kafka_bootstrap="broker:9092", topic_prefix="t-", partitions=2, dependency_wait_s=0.2)
BROKERS_DEFAULTS = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
}


class ClusterInMemory:
    """The part of an admin client that we use; `race` topics are made by another process between listing and making."""

    def __init__(self) -> None:
        self.topics: dict[str, int] = {}
        self.race: dict[str, int] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.copies: dict[str, int] = {}
        self.hidden: set[str] = set()
        self.brokers = 1
        self.default_copies: int | None = 1
        self.refusal = 0

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
        for name in self.race:
            self.configs[name] = TOPIC_BY_NAME[name.removeprefix("t-")].config()
        return names

    def create_topics(self, wanted: dict[str, Any], *, raise_errors: bool) -> dict[str, Any]:
        """Make the topics that are not there; answer each with its code."""
        assert not raise_errors
        answers = []
        for name, options in wanted.items():
            code = 36 if name in self.topics else self.refusal
            if code == 0:
                self.topics[name] = options["num_partitions"]
                self.copies[name] = options["replication_factor"]
                if self.copies[name] < 0:
                    self.copies[name] = self.default_copies or self.brokers
                self.configs[name] = options["configs"]
            answers.append({"name": name, "error_code": code, "error_message": None})
        return {"topics": answers}

    def wait_for_topics(self, names: list[str], *, timeout_ms: int) -> None:
        """Fail where a topic is missing."""
        assert timeout_ms > 0
        if not set(names) <= set(self.topics):
            raise KafkaTimeoutError("Topics not ready")

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        """Return the partitions of each name with their copies, none where it is unknown."""
        return [
            {"name": name, "partitions": [{"replica_nodes": [1] * self.copies.get(name, 1)}] * self.topics.get(name, 0)}
            for name in names
        ]

    def describe_cluster(self) -> dict[str, Any]:
        """Return the brokers."""
        return {"brokers": [{"broker_id": number} for number in range(1, self.brokers + 1)]}

    def describe_configs(self, asked: list[ConfigResource], *, config_filter: str) -> dict[str, Any]:
        """Return what holds for each topic; nothing of those that may not be seen, as the library does."""
        assert config_filter == "all"
        if [resource.resource_type.name for resource in asked] == ["BROKER"]:
            copies = self.default_copies
            return {"broker": {"1": {} if copies is None else {"default.replication.factor": {"value": str(copies)}}}}
        return {"topic": {resource.name: self._config(resource.name) for resource in asked}}

    def _config(self, name: str) -> dict[str, dict[str, str]]:
        """Return what holds for one topic."""
        if name in self.hidden or name not in self.topics:
            return {}
        own = self.configs.get(name, {})
        return {key: {"value": value} for key, value in {**BROKERS_DEFAULTS, **own}.items() if key in CHECKED}


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
    for refusal in (37, 40, 44):  # partitions, configuration, a policy of the cluster
        cluster.refusal = refusal
        with pytest.raises(UsageError, match="Kafka refuses to create topic t-search-events"):
            ensure_topics(SETTINGS)
    cluster.refusal = 38
    with pytest.raises(UsageError, match="MILLRACE_REPLICATION_FACTOR=-1"):
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


def test_the_brokers_decide_how_many_copies_unless_told(cluster: ClusterInMemory) -> None:
    """Whoever runs a cluster has set its default; a setting of ours is for those who want another."""
    ensure_topics(SETTINGS)
    assert set(cluster.copies.values()) == {1}
    assert all("min.insync.replicas" not in config for config in cluster.configs.values())


def test_three_copies_come_with_two_that_must_have_a_record(cluster: ClusterInMemory) -> None:
    """An acknowledged record then survives one broker, and so does writing."""
    cluster.brokers = 3
    ensure_topics(SETTINGS.model_copy(update={"replication_factor": 3}))
    assert set(cluster.copies.values()) == {3}
    assert {config["min.insync.replicas"] for config in cluster.configs.values()} == {"2"}


@pytest.mark.parametrize(("default", "in_sync"), [(3, "2"), (5, "2"), (2, None), (None, None)])
def test_the_brokers_three_copies_come_with_two_in_sync_too(
    cluster: ClusterInMemory, default: int | None, in_sync: str | None
) -> None:
    """Whose number of copies it is makes no difference; if it may not be seen, the warning about the topics stays."""
    cluster.brokers, cluster.default_copies = 5, default
    ensure_topics(SETTINGS)
    assert {config.get("min.insync.replicas") for config in cluster.configs.values()} == {in_sync}


def test_the_brokers_are_not_asked_if_nothing_is_missing(
    cluster: ClusterInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who makes topics needs the right to see a broker's configuration."""
    ensure_topics(SETTINGS)
    monkeypatch.setattr(kafka_admin, "_default_copies", lambda _client: pytest.fail("asked"))
    ensure_topics(SETTINGS)


def test_what_we_create_is_what_we_want(cluster: ClusterInMemory) -> None:
    """No process warns of topics that it made itself."""
    ensure_topics(SETTINGS)
    assert topic_findings(cluster, SETTINGS) == []
    three = SETTINGS.model_copy(update={"replication_factor": 3, "topic_prefix": "three-"})
    cluster.brokers = 3
    ensure_topics(three)
    assert topic_findings(cluster, three) == []


def test_topics_beyond_the_table_are_made_and_compared_too(cluster: ClusterInMemory) -> None:
    """A stream worker needs those of its agents."""
    own = TopicSpec("toy-progress", key="partition", cleanup="compact")
    ensure_topics(SETTINGS, (*TOPICS, own))
    assert cluster.configs["t-toy-progress"] == own.config()
    cluster.configs["t-toy-progress"] = {"cleanup.policy": "delete"}
    with pytest.raises(UsageError, match="t-toy-progress has cleanup"):
        ensure_topics(SETTINGS, (*TOPICS, own))
    ensure_topics(SETTINGS)


def state_of(name: str, config: dict[str, str] | None = None, *, copies: int = 1) -> TopicState:
    """Return a topic as we make it but for some of its configuration."""
    made = {**BROKERS_DEFAULTS, **TOPIC_BY_NAME[name].config()}
    return TopicState(2 if TOPIC_BY_NAME[name].keyed else 1, copies, {**made, **(config or {})})


def found(name: str, state: TopicState, *, brokers: int = 1, settings: Settings = SETTINGS) -> list[TopicFinding]:
    """Return what is wrong with a topic."""
    return list(differences(TOPIC_BY_NAME[name], f"t-{name}", state, settings, brokers=brokers))


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("search-events", {"message.timestamp.type": "CreateTime"}, "one event from the future closes every"),
        ("search-events", {"cleanup.policy": "compact"}, "all but the last of a key are lost"),
        ("search-events", {"cleanup.policy": "compact,delete"}, "all but the last of a key are lost"),
        ("search-events", {"retention.ms": "60000"}, "deleted before their search closes"),
        ("catalog", {"cleanup.policy": "delete"}, "what is still needed is deleted"),
        ("join-progress", {"cleanup.policy": "compact,delete"}, "what is still needed is deleted"),
        ("models", {"min.insync.replicas": "2"}, "with 1 copies nothing can be written"),
    ],
)
def test_what_loses_or_misreads_records_is_refused(name: str, config: dict[str, str], why: str) -> None:
    """No process works with it; the fix is a command that can be copied."""
    (finding,) = found(name, state_of(name, config))
    ((key, value),) = config.items()
    assert finding.refused
    assert f"topic t-{name} has {key}={value}: " in finding.cause
    assert why in finding.cause
    command = "kafka-configs.sh --bootstrap-server broker:9092 --alter --entity-type topics --entity-name"
    assert finding.fix.startswith(f"{command} t-{name} --add-config {key}=")


@pytest.mark.parametrize(
    ("name", "config", "better"),
    [
        ("catalog", {"message.timestamp.type": "CreateTime"}, "message.timestamp.type=LogAppendTime"),
        ("models", {"max.message.bytes": "1048588"}, "max.message.bytes=16777216"),
        ("search-events", {"retention.ms": "43200000"}, "retention.ms=1209600000"),
        ("preference-pairs", {"retention.ms": "60000"}, "retention.ms=1209600000"),
        ("joined-searches", {"retention.bytes": "1000000"}, "retention.bytes=-1"),
    ],
)
def test_what_may_hurt_one_day_is_a_warning(name: str, config: dict[str, str], better: str) -> None:
    """Processes start; the log and the doctor tell."""
    (finding,) = found(name, state_of(name, config))
    assert not finding.refused
    assert finding.fix.endswith(f"--add-config {better}")


@pytest.mark.parametrize(
    ("copies", "in_sync", "warned"), [(3, "1", True), (3, "2", False), (3, "3", True), (2, "2", True)]
)
def test_copies_in_sync_survive_one_broker(copies: int, in_sync: str, warned: bool) -> None:
    """Too few lose what was acknowledged, too many stop all writing with the first broker that is away."""
    state = state_of("catalog", {"min.insync.replicas": in_sync}, copies=copies)
    assert ["min.insync.replicas" in finding.cause for finding in found("catalog", state, brokers=3)] == [True] * warned


@pytest.mark.parametrize(("brokers", "wanted", "few"), [(1, -1, False), (3, -1, True), (1, 2, True)])
def test_a_single_copy_beside_other_brokers_is_a_warning(brokers: int, wanted: int, few: bool) -> None:
    """One broker can have no second copy; two can, and who asked for more is told when there are fewer."""
    own = SETTINGS.model_copy(update={"replication_factor": wanted})
    findings = found("catalog", state_of("catalog"), brokers=brokers, settings=own)
    assert [("1 copies" in finding.cause, finding.refused) for finding in findings] == [(True, False)] * few


def test_longer_and_endless_retention_is_fine() -> None:
    """Who keeps more loses nothing."""
    for kept in ("-1", str(90 * 86_400_000)):
        assert found("search-events", state_of("search-events", {"retention.ms": kept})) == []


def test_everything_that_is_refused_is_told_at_once(cluster: ClusterInMemory) -> None:
    """One start, one line, all the commands."""
    ensure_topics(SETTINGS)
    cluster.configs["t-search-events"] = {**cluster.configs["t-search-events"], "message.timestamp.type": "CreateTime"}
    cluster.configs["t-catalog"] = {}
    with pytest.raises(UsageError, match=r"t-search-events has message.*; topic t-catalog has cleanup") as caught:
        ensure_topics(SETTINGS)
    assert caught.value.fix.count("kafka-configs.sh") == 2


def test_warnings_are_logged_and_the_process_goes_on(cluster: ClusterInMemory) -> None:
    """What only may hurt is said with its fix at every start."""
    ensure_topics(SETTINGS)
    cluster.configs["t-models"] = {**cluster.configs["t-models"], "max.message.bytes": "1048588"}
    with capture_logs() as lines:
        ensure_topics(SETTINGS)
    (line,) = lines
    assert (line["event"], line["topic"], line["log_level"]) == ("topic_differs", "t-models", "warning")
    assert line["fix"].endswith("max.message.bytes=16777216")


def test_without_the_right_to_see_configurations_it_goes_on(cluster: ClusterInMemory) -> None:
    """The right that is missing is named; nothing is taken for well or for wrong."""
    ensure_topics(SETTINGS)
    cluster.configs["t-catalog"] = {}
    cluster.hidden = {"t-catalog", "t-models"}
    (finding,) = topic_findings(cluster, SETTINGS)
    assert not finding.refused
    assert "t-catalog, t-models" in finding.cause
    assert "DescribeConfigs" in finding.fix
    ensure_topics(SETTINGS)

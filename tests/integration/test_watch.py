"""Lag, ledgers and releases on a real Kafka: what stands on the topics is what is shown, again and again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata
from pydantic import BaseModel

from contracts.errors import CheckFailed, DependencyDown
from contracts.progress import CatalogCounts, EventCounts, JoinProgress, PairsProgress, SearchCounts
from contracts.topics import (
    CATALOG,
    JOIN_PROGRESS,
    JOINED_SEARCHES,
    MODELS,
    PAIRS_PROGRESS,
    PREFERENCE_PAIRS,
    SEARCH_EVENTS,
    TRAINING_SEARCHES,
)
from contracts.wire import encode
from millrace import asking
from millrace.watch.kafka_view import COUNTS, KafkaView
from millrace.watch.ledger import lag_report, ledger_report
from millrace.watch.observer import Observer, releases_report
from service.kafka import OutgoingRecord, admin, consumer_config, ensure_topics, produce_all, producer_config
from service.settings import Settings
from streams.registry import group_topics
from tests.support.command_line import command_line
from tests.support.deployment import NOW_MS, release_value, serving_value
from tests.support.poll import eventually

pytestmark = pytest.mark.kafka

CLICK = b'{"schema_version":1,"type":"click","event_time":1795196006756}'
TICK = b'{"schema_version":1,"type":"tick","event_time":1795196006756}'
SettingsFactory = Callable[..., Settings]


class Deployment:
    """Topics of a deployment, written by hand."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        ensure_topics(settings)
        self._producer = KafkaProducer(**producer_config(settings))

    def write(self, topic: str, *values: bytes, partition: int = 0, key: bytes | None = None) -> None:
        """Append records to one partition."""
        name = self.settings.topic(topic)
        produce_all(self._producer, [OutgoingRecord(name, value, key, partition=partition) for value in values])

    def progress(self, topic: str, message: BaseModel, *, partition: int = 0) -> None:
        """Append an agent's progress."""
        self.write(topic, encode(message), partition=partition, key=b"%d" % partition)

    def commit(self, group: str, topic: str, offset: int, metadata: str = "", *, partition: int = 0) -> None:
        """Commit for a group as its consumer does."""
        with KafkaConsumer(**consumer_config(self.settings, group)) as consumer:
            place = TopicPartition(self.settings.topic(topic), partition)
            consumer.assign([place])
            consumer.commit({place: OffsetAndMetadata(offset, metadata, -1)})

    def close(self) -> None:
        """Close the producer."""
        self._producer.close()


def join_progress(**changes: Any) -> JoinProgress:
    """Return the progress of a join that read four records of partition 0: three events and a tick."""
    counts = EventCounts(joined=2, pending=1, ticks=1)
    values = {"partition": 0, "next_offset": 4, "hold_offset": 2, "watermark_ms": 1, "counts": counts, **changes}
    return JoinProgress.model_validate(values)


@pytest.fixture
def deployment(kafka_settings: SettingsFactory) -> Iterator[Deployment]:
    """Give a deployment in the middle of its work, in which everything is accounted for."""
    made = Deployment(kafka_settings(partitions=2))
    made.write(SEARCH_EVENTS, CLICK, CLICK, TICK, CLICK, CLICK, b"not json", TICK)
    made.write(SEARCH_EVENTS, CLICK, CLICK, CLICK, TICK, partition=1)
    made.progress(JOIN_PROGRESS, join_progress())
    made.write(JOINED_SEARCHES, *[b"{}"] * 3)
    counts = SearchCounts(paired=1, unpaired={"no_click": 1})
    made.progress(PAIRS_PROGRESS, PairsProgress(partition=0, next_offset=2, hold_offset=1, counts=counts))
    made.write(TRAINING_SEARCHES, *[b"{}"] * 3)
    made.write(PREFERENCE_PAIRS, *[b"{}"] * 4)
    made.commit("trainer", PREFERENCE_PAIRS, 1)
    made.write(CATALOG, *[b"{}"] * 6, key=b"P-1")
    made.commit("indexer", CATALOG, 4, CatalogCounts(catalogue=3, dead_lettered=1).model_dump_json())
    for number in (1, 2):
        made.write(MODELS, release_value("query", number), key=b"query-%d" % number)
    made.write(MODELS, serving_value(2, 0), key=b"serving")
    yield made
    made.close()


@pytest.fixture
def observer(deployment: Deployment) -> Iterator[Observer]:
    """Give an observer that has read all progress and releases."""
    with Observer(deployment.settings) as watching:
        watching.wait_caught_up(30)
        yield watching


def test_both_ledgers_balance_by_counting(observer: Observer) -> None:
    """Ticks are in neither side; what the join has not read is pending, in both partitions."""
    report = ledger_report(observer.look())
    events, searches = report["events"], report["searches"]
    assert events["accepted"] == 5 + 3 + 6
    assert (events["joined"], events["catalogue"], events["dead_lettered"]) == (2, 3, 1)
    assert events["pending"] == 1 + 2 + 3 + 2
    assert events["balance"] == 0
    assert searches == {
        "closed": 3, "paired": 1, "held_out": 0, "filtered": {}, "unpaired": {"no_click": 1}, "dead_lettered": 0,
        "pending": 1, "balance": 0,
    }  # fmt: skip


def test_a_worker_that_woke_late_takes_nothing_back(deployment: Deployment, observer: Observer) -> None:
    """What it writes of a position that another has passed is no news; what came after it is."""
    deployment.progress(JOIN_PROGRESS, join_progress(next_offset=3, counts=EventCounts(joined=1, pending=2)))
    deployment.progress(JOIN_PROGRESS, join_progress(partition=7))
    eventually(lambda: 7 in observer.look().progress["join"], what="what came after it is read")
    assert observer.look().progress["join"][0] == join_progress()


def test_lag_is_what_lies_behind_each_group(observer: Observer) -> None:
    """Join and pairs are measured by their progress, the others by their commits; held records stand apart."""
    groups = lag_report(observer.look())["groups"]
    assert set(groups) == set(group_topics())
    expected = {
        "join": {"records": 3 + 4, "held": 2, "worst_partition": 4},
        "pairs": {"records": 1, "held": 1, "worst_partition": 1},
        "propensity": {"records": 3, "held": 0, "worst_partition": 3},
        "arms": {"records": 3, "held": 0, "worst_partition": 3},
        "trainer": {"records": 6, "held": 0, "worst_partition": 3},
        "indexer": {"records": 2, "held": 0, "worst_partition": 2},
        "attribution": {"records": 0, "held": 0, "worst_partition": 0},
        "attribution-orphans": {"records": 0, "held": 0, "worst_partition": 0},
        "attribution-pairs": {"records": 4, "held": 0, "worst_partition": 4},
        "attribution-clicks": {"records": 3, "held": 0, "worst_partition": 3},
    }
    assert {group: groups[group] for group in expected} == expected


def test_the_next_look_sees_what_happened_since(deployment: Deployment, observer: Observer) -> None:
    """An observer goes on reading: new records, new progress, new releases."""
    observer.look()
    deployment.write(SEARCH_EVENTS, CLICK, TICK)
    counts = EventCounts(joined=4, pending=0, dead_lettered=1, ticks=2)
    deployment.progress(JOIN_PROGRESS, join_progress(next_offset=7, hold_offset=7, counts=counts))
    deployment.write(MODELS, serving_value(1, 0, published_at=NOW_MS + 1), key=b"serving")

    def caught_up() -> bool:
        """Return whether the followers have handed over both."""
        serving = observer.models.serving()
        join = lag_report(observer.look())["groups"]["join"]
        return serving is not None and serving.query_release == 1 and join["records"] == 2 + 4

    eventually(caught_up)
    events = ledger_report(observer.look())["events"]
    assert (events["joined"], events["pending"], events["balance"]) == (4, 1 + 3 + 2, 0)


def test_an_event_that_nobody_counts_is_seen(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`millrace ledger` prints the balance as JSON and fails with the exit code of a check."""
    deployment.progress(JOIN_PROGRESS, join_progress(counts=EventCounts(joined=1, pending=1, ticks=1)))
    monkeypatch.chdir(tmp_path)
    for name in ("kafka_bootstrap", "topic_prefix"):
        monkeypatch.setenv(f"MILLRACE_{name.upper()}", getattr(deployment.settings, name))
    with pytest.raises(CheckFailed) as raised:
        asking.ledger(json=True)
    assert raised.value.exit_code == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["events"]["balance"], report["searches"]["balance"]) == (1, 0)


def test_releases_on_the_topic_are_listed(observer: Observer) -> None:
    """The newest first, the one in force marked."""
    rows = releases_report(observer.models.look())["releases"]
    assert [(row["release"], row["in_force"]) for row in rows] == [(2, True), (1, False)]


def test_topics_that_nobody_made_are_unknown(kafka_settings: SettingsFactory) -> None:
    """An empty cluster is not an empty deployment: nothing is shown as zero, and nobody waits for what is not there."""
    with Observer(kafka_settings(topic_prefix="missing-")) as watching:
        watching.wait_caught_up(3600)
        kafka = watching.look()
    assert {totals["records"] for totals in lag_report(kafka)["groups"].values()} == {None}
    assert {terms["balance"] for terms in ledger_report(kafka).values()} == {None}
    assert "missing-catalog" in kafka.unknown[CATALOG].message
    assert kafka.unknown[CATALOG].exit_code == 4


def look_until_unknown(observer: Observer, parts: int = 1) -> KafkaView:
    """Return the first view in which so many parts are not known."""

    def half_known() -> KafkaView | None:
        """Return the view of this moment if they are such."""
        kafka = observer.look()
        return kafka if len(kafka.unknown) >= parts else None

    kafka = eventually(half_known, timeout_s=30)
    assert kafka is not None
    return kafka


def test_half_a_deployment_is_half_known(deployment: Deployment, observer: Observer) -> None:
    """One topic is deleted: its group and its ledger are unknown, the others stand."""
    with admin(deployment.settings) as client:
        client.delete_topics([deployment.settings.topic(CATALOG)])
    kafka = look_until_unknown(observer)
    report = lag_report(kafka)
    assert (report["groups"]["indexer"]["records"], report["groups"]["join"]["records"]) == (None, 7)
    ledgers = ledger_report(kafka)
    assert (ledgers["events"]["balance"], ledgers["events"]["joined"], ledgers["searches"]["balance"]) == (None, 2, 0)


@pytest.mark.parametrize("value", [b"\xff not json", b'{"partition":0}', b'{"partition":"zero"}'])
def test_a_progress_record_that_cannot_be_read_is_outlived(
    value: bytes, deployment: Deployment, observer: Observer
) -> None:
    """It is named; what does not hang on it is known, and the next readable record mends it."""
    deployment.write(JOIN_PROGRESS, value, key=b"0")
    kafka = look_until_unknown(observer)
    assert "the record 0 of join-progress cannot be read" in kafka.unknown[JOIN_PROGRESS].message
    ledgers = ledger_report(kafka)
    assert (ledgers["events"]["balance"], ledgers["events"]["catalogue"], ledgers["searches"]["balance"]) == (
        None,
        3,
        0,
    )
    deployment.progress(JOIN_PROGRESS, join_progress())
    eventually(lambda: not observer.look().unknown, what="the next record mends it")
    assert ledger_report(observer.look())["events"]["balance"] == 0


def test_a_release_that_cannot_be_read_is_outlived(deployment: Deployment, observer: Observer) -> None:
    """The other releases are listed; a tombstone for it mends the list."""
    deployment.write(MODELS, b"no release", key=b"query-\xff")
    kafka = look_until_unknown(observer)
    assert set(kafka.unknown) == {MODELS}
    assert [row["release"] for row in releases_report(observer.models.look())["releases"]] == [2, 1]
    with KafkaProducer(**producer_config(deployment.settings)) as producer:
        name = deployment.settings.topic(MODELS)
        produce_all(producer, [OutgoingRecord(name, None, b"query-\xff", partition=0)])
    eventually(lambda: not observer.look().unknown, what="the tombstone mends it")


@pytest.mark.parametrize("text", ["moved by hand", '{"catalogue":-1}', "{}x"])
def test_a_foreign_text_beside_a_commit_is_outlived(text: str, deployment: Deployment, observer: Observer) -> None:
    """Somebody set the indexer's offset with a tool: its lag is known, its counts are not."""
    deployment.commit("indexer", CATALOG, 5, text)
    kafka = observer.look()
    assert set(kafka.unknown) == {COUNTS}
    assert lag_report(kafka)["groups"]["indexer"]["records"] == 1
    ledgers = ledger_report(kafka)
    assert (ledgers["events"]["balance"], ledgers["events"]["catalogue"], ledgers["events"]["joined"]) == (
        None,
        None,
        2,
    )


def test_a_position_behind_the_end_is_no_lag_of_zero(deployment: Deployment, observer: Observer) -> None:
    """The topic was made anew: nothing can be reckoned from where the group says that it was."""
    deployment.commit("trainer", PREFERENCE_PAIRS, 500)
    deployment.progress(PAIRS_PROGRESS, PairsProgress(partition=0, next_offset=900, hold_offset=900))
    kafka = look_until_unknown(observer, 2)
    groups = lag_report(kafka)["groups"]
    assert (groups["trainer"]["records"], groups["pairs"]["records"], groups["join"]["records"]) == (None, None, 7)
    assert (
        "millrace-trainer is at 500 of preference-pairs-0, which ends at 4" in kafka.unknown["millrace-trainer"].message
    )


@pytest.mark.parametrize("codec", ["lz4", "snappy", "zstd"])
def test_packed_batches_are_counted(codec: str, deployment: Deployment, observer: Observer) -> None:
    """A shop that packs what it sends hides nothing and ends nothing."""
    settings = deployment.settings
    with KafkaProducer(**producer_config(settings), compression_type=codec) as producer:
        records = [OutgoingRecord(settings.topic(SEARCH_EVENTS), CLICK, partition=1) for _ in range(50)]
        produce_all(producer, records)
    events = ledger_report(observer.look())["events"]
    assert (events["accepted"], events["balance"]) == (5 + 3 + 6 + 50, 0)


def test_a_kafka_that_is_not_there_is_a_clear_failure(settings: SettingsFactory) -> None:
    """Nothing hangs, and the address is named."""
    with pytest.raises(DependencyDown, match=r"127\.0\.0\.1:1"):
        Observer(settings(kafka_bootstrap="127.0.0.1:1", dependency_wait_s=0))


def test_a_producer_with_transactions_does_not_stop_the_look(deployment: Deployment, observer: Observer) -> None:
    """The marks that its commits leave on the topic hold no record; the end is reached all the same."""
    settings = deployment.settings
    config = {**producer_config(settings), "transactional_id": f"{settings.topic_prefix}shop"}
    before = observer.look().tails[1]
    with KafkaProducer(**config) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(settings.topic(SEARCH_EVENTS), value=CLICK, partition=1).get(timeout=30)
        producer.commit_transaction()
    eventually(lambda: observer.look().ends[SEARCH_EVENTS, 1].end == 4 + 2, what="the record and its mark")
    after = observer.look().tails[1]
    assert (after.events, after.ticks) == (before.events + 1, before.ticks)


@pytest.mark.parametrize(
    "words",
    [
        ("audit",), ("releases", "diff", "1", "2"), ("releases", "show", "1"), ("releases", "rollback"),
        ("releases", "promote", "1"), ("releases", "evaluate"), ("product", "show", "P-1"),
        ("explain", "tv", "P-1"), ("catalog", "vectors", "vectors.jsonl"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_prefix_is_named_at_once(
    kafka_settings: SettingsFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    """Whoever mistypes the prefix reads the topic's name, not that something took half a minute."""
    run = command_line(kafka_settings(qdrant_url="http://127.0.0.1:1", topic_prefix="nobodys-"), monkeypatch, tmp_path)
    assert run(*words) == 4
    told = capsys.readouterr()
    assert "error: Kafka does not know nobodys-models" in told.err
    assert "dependency_down" not in told.err
    assert not told.out

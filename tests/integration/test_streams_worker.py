"""The stream worker as a process on a real Kafka: what it makes of events, and how it ends when it cannot go on."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from contracts.topics import (
    DEAD_LETTERS,
    JOIN_PROGRESS,
    JOINED_SEARCHES,
    LATE_EVENTS,
    ORPHAN_EVENTS,
    PREFERENCE_PAIRS,
    SEARCH_EVENTS,
    TRAINING_SEARCHES,
)
from millrace.watch.ledger import lag_report, ledger_report
from millrace.watch.observer import Observer
from service.kafka import OutgoingRecord, admin, consumer_config, ensure_topics, produce_all, producer_config
from service.settings import Settings
from streams import registry
from tests.conftest import SettingsFactory
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.search_events import cart, click, dwell, encoded, impression, moved
from tests.support.stream_worker import Worker
from tests.support.topics import LoggedRecord, decided, join_progress, pairs_progress, read_lists, read_topic
from tests.support.toy_agent import LISTS, TOY

pytestmark = [pytest.mark.kafka]

WorkerFactory = Callable[..., Worker]


@pytest.fixture
def worker(kafka_settings: SettingsFactory, tmp_path: Path) -> Iterator[WorkerFactory]:
    """Give a factory of started workers with short windows, and leave none behind."""
    started: list[Worker] = []

    def start(*, module: str = "streams", **overrides: Any) -> Worker:
        """Start a worker of this test's shop."""
        windows = {"join_window_s": 3, "lateness_s": 1, "partitions": 2, "worker_id": "w1", "filters": "none"}
        settings = kafka_settings(**{**windows, "port": free_port(), **overrides})
        one = Worker(settings, tmp_path / f"worker-{len(started)}.log", module=module)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.end()


def send(settings: Settings, events: list[dict[str, Any] | bytes]) -> None:
    """Send events as a shop does, keyed by search."""
    records = [
        OutgoingRecord(
            settings.topic(SEARCH_EVENTS), encoded(event), key=b"s1" if isinstance(event, bytes) else _key(event)
        )
        for event in events
    ]
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, records)


def _key(event: dict[str, Any]) -> bytes:
    """Return the key that a shop gives an event."""
    return str(event.get("search_id") or event.get("session_id")).encode()


def everything(settings: Settings, topic: str) -> list[LoggedRecord]:
    """Return all records of a topic but watermark records."""
    records = read_lists(settings) if topic == JOINED_SEARCHES else read_topic(settings, topic)
    return [record for own in records.values() for record in own]


def now_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


def wait_paired(settings: Settings, searches: int) -> None:
    """Wait until so many searches went through both agents."""

    def paired() -> bool:
        """Return whether pairs has counted them."""
        return sum(map(decided, pairs_progress(settings).values())) >= searches

    eventually(paired, timeout_s=30, interval_s=0.3, what=f"{searches} searches paired")


def test_a_click_becomes_pairs_though_nothing_follows_it(worker: WorkerFactory) -> None:
    """A search on a partition that falls silent is closed by ticks, joined, and paired, with its stages' times."""
    one = worker()
    one.wait_ready()
    events = [impression(), click("d"), dwell("d", dwell_ms=42_000), impression("s2"), cart("e", search_id="s2")]
    send(one.settings, moved(events, now_ms()))
    wait_paired(one.settings, 2)
    pairs = [json.loads(record.value) for record in everything(one.settings, PREFERENCE_PAIRS)]
    assert {(p["search_id"], p["chosen"]["product_id"], p["chosen"]["grade"]) for p in pairs} == {
        ("s1", "d", 2),
        ("s2", "e", 3),
    }
    assert {p["rejected"]["product_id"] for p in pairs if p["search_id"] == "s1"} == {"a", "b", "c", "e", "f"}
    assert {record.key for record in everything(one.settings, JOINED_SEARCHES)} == {b"k1"}
    assert {record.key for record in everything(one.settings, TRAINING_SEARCHES)} == {b"s1", b"s2"}
    for own in read_topic(one.settings, JOINED_SEARCHES).values():
        told = [json.loads(record.value) for record in own if record.key is None]
        assert {(mark["type"], mark["partition"]) for mark in told} == {("watermark", 0), ("watermark", 1)}
    for record in everything(one.settings, PREFERENCE_PAIRS):
        assert int(record.headers["millrace.closed_at_ms"]) <= int(record.headers["millrace.paired_at_ms"])
    assert any(b'"tick"' in record.value for record in everything(one.settings, SEARCH_EVENTS))
    assert one.stop() == 0
    assert one.complaints() == []


def test_bad_records_are_set_aside_and_nothing_else_is_lost(worker: WorkerFactory) -> None:
    """An unusable record keeps its fields and gains its origin and a reason; the search beside it is joined."""
    one = worker()
    one.wait_ready()
    bad: list[dict[str, Any] | bytes] = [
        b"\xff not json",
        b'{"type":"click"}',
        b'{"type":"impression","price":NaN}',
        {**click(), "event_time": 4_000_000_000_000},
        {**impression(), "schema_version": 99},
        click("a", search_id="ghost"),
        cart("a", search_id=None, search_time_ms=None),
        click("a", time_ms=4_500, event_id="late"),
    ]
    with KafkaProducer(**producer_config(one.settings), compression_type="gzip") as packing:
        unpacked = b'{"type":"click"}'.ljust(3_000_000)
        for value, key in ((unpacked, b"s1"), (b'{"type":"click"}', b"s" * 3_000_000)):
            produce_all(packing, [OutgoingRecord(one.settings.topic(SEARCH_EVENTS), value, key)])
    send(one.settings, moved([impression(), click("b"), *bad], now_ms() - 5_000))
    wait_paired(one.settings, 1)
    eventually(lambda: len(everything(one.settings, ORPHAN_EVENTS)) == 2, timeout_s=20, interval_s=0.3)
    dead = everything(one.settings, DEAD_LETTERS)
    reasons = {record.headers["millrace.reason"].decode() for record in dead}
    assert reasons == {"malformed_json", "missing", "too_far_ahead", "too_large", "unsupported_schema"}
    assert b"" in {record.value for record in dead}
    missing = [record for record in dead if record.headers["millrace.reason"] == b"missing"]
    assert {(record.key, record.value) for record in missing} == {(b"s1", b'{"type":"click"}'), (None, b"")}
    assert {record.headers["millrace.stage"] for record in dead} == {b"join"}
    assert [json.loads(record.value)["event_id"] for record in everything(one.settings, LATE_EVENTS)] == ["late"]
    counts = [progress.counts for progress in join_progress(one.settings).values()]
    assert sum(c.joined for c in counts) == 2
    assert (sum(c.dead_lettered for c in counts), sum(c.late for c in counts), sum(c.orphan for c in counts)) == (
        7,
        1,
        2,
    )


def send_transactions(settings: Settings, *transactions: list[dict[str, Any] | bytes]) -> None:
    """Send events as somebody's transactional producer does: each commit leaves a record of its own behind."""
    with KafkaProducer(**producer_config(settings), transactional_id="shop") as producer:
        producer.init_transactions()
        for events in transactions:
            producer.begin_transaction()
            for event in events:
                producer.send(settings.topic(SEARCH_EVENTS), encoded(event), key=b"s1", partition=0)
            producer.commit_transaction()


def test_the_marks_of_transactions_hold_nothing_up(worker: WorkerFactory) -> None:
    """A log that ends with a commit's mark is read to its end: its searches close, and no record seems lost."""
    one = worker(partitions=1)
    one.wait_ready()
    send_transactions(one.settings, moved([impression()], now_ms()), moved([click("d")], now_ms()))
    wait_paired(one.settings, 1)
    assert one.complaints() == []
    one.kill()
    send_transactions(one.settings, moved([impression("s2")], now_ms()))
    one.start()
    one.wait_ready()
    wait_paired(one.settings, 2)
    assert one.complaints() == []


def test_a_restarted_worker_takes_its_place_without_moving_others(worker: WorkerFactory) -> None:
    """A worker killed and started again under its name gets its partitions back at once; its peer notices nothing."""
    peer, one = (worker(worker_id=name, session_timeout_s=60) for name in ("peer", "again"))
    eventually(lambda: share_of_each(peer, one), timeout_s=60, what="each has one partition of each agent")
    before = peer.lines().count("partitions_assigned")
    one.kill()
    one.start()
    one.wait_ready()
    assert peer.lines().count("partitions_assigned") == before


def share_of_each(*workers: Worker) -> bool:
    """Return whether each worker was last given one partition of each agent that needs no Redis."""
    agents = [spec.name for spec in registry.AGENTS if not spec.needs]
    return all(len(one.partitions(agent)) == 1 for one in workers for agent in agents)


def test_a_refused_session_timeout_ends_with_one_line(worker: WorkerFactory) -> None:
    """A session timeout that the broker refuses ends the process with a usage error that names setting and fix."""
    one = worker(session_timeout_s=7_200)
    assert one.wait_ended() == 2
    line = one.complaint()
    assert "MILLRACE_SESSION_TIMEOUT_S=7200" in line["error"]
    assert "group.max.session.timeout.ms" in line["fix"]


def test_a_deleted_topic_ends_with_one_line(worker: WorkerFactory) -> None:
    """A worker whose topic is gone ends, naming it, instead of waiting for it in silence."""
    one = worker()
    one.wait_ready()
    delete_topic(one.settings, SEARCH_EVENTS)
    assert one.wait_ended() == 4
    line = one.complaint()
    assert one.settings.topic(SEARCH_EVENTS) in line["error"]


def test_a_namesake_ends_with_one_line(worker: WorkerFactory) -> None:
    """Of two workers with one name, which would take each other's place for ever, one ends and says why."""
    first, second = worker(worker_id="same"), worker(worker_id="same")
    eventually(lambda: first.has_ended() or second.has_ended(), timeout_s=60, what="one of the two ended")
    ended = first if first.has_ended() else second
    assert ended.wait_ended() == 2, ended.lines()[-6000:]
    line = ended.complaint()
    assert "MILLRACE_WORKER_ID" in line["fix"]


def test_progress_beyond_the_log_ends_with_one_line(worker: WorkerFactory, kafka_settings: SettingsFactory) -> None:
    """Where a topic was replaced and its progress was not, the worker refuses to pass over the new records."""
    settings = kafka_settings(partitions=2)
    ensure_topics(settings)
    progress = b'{"schema_version":1,"partition":0,"next_offset":1000,"hold_offset":1000,"watermark_ms":-1}'
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, [OutgoingRecord(settings.topic(JOIN_PROGRESS), progress, key=b"0", partition=0)])
    one = worker()
    assert one.wait_ended() == 1
    line = one.complaint()
    assert "ends at 0" in line["error"]
    assert line["fix"]


def pairs_made_of(settings: Settings) -> set[str]:
    """Return the searches that pairs were made of."""
    return {json.loads(record.value)["search_id"] for record in everything(settings, PREFERENCE_PAIRS)}


def searches(*names: str) -> list[dict[str, Any] | bytes]:
    """Return a list with a click for each search, shown now."""
    events = [event for name in names for event in (impression(name), click("d", search_id=name))]
    return moved(events, now_ms())


def ledgers(settings: Settings) -> dict[str, Any]:
    """Return the ledgers as `millrace ledger` shows them."""
    with Observer(settings) as observer:
        observer.wait_caught_up(30)
        report: dict[str, Any] = ledger_report(observer.look())
        return report


@pytest.mark.parametrize("replaced", [True, False])
def test_deleting_the_progress_topic_as_the_message_says_puts_things_right(
    worker: WorkerFactory, replaced: bool
) -> None:
    """After `search-events` was made anew, or for no reason at all: new searches are paired and the ledgers balance."""
    one = worker()
    one.wait_ready()
    send(one.settings, searches("s1", "s2", "s3"))
    wait_paired(one.settings, 3)
    assert one.stop() == 0
    begun_in = {progress.begun_in for progress in join_progress(one.settings).values()}
    if replaced:
        delete_topic(one.settings, SEARCH_EVENTS)
        ensure_topics(one.settings)
        send(one.settings, searches("s4"))
        one.start()
        assert one.wait_ended() == 1
        line = one.complaint()
        assert f"delete the topic {one.settings.topic(JOIN_PROGRESS)} too" in line["fix"]
    delete_topic(one.settings, JOIN_PROGRESS)
    one.start()
    one.wait_ready()
    send(one.settings, searches("s5", "s6"))
    eventually(lambda: pairs_made_of(one.settings) >= {"s5", "s6"}, timeout_s=40, interval_s=0.3)
    assert pairs_made_of(one.settings) == {"s1", "s2", "s3", "s5", "s6"} | ({"s4"} if replaced else set())
    wait_paired(one.settings, 5)
    found = ledgers(one.settings)
    assert (found["events"]["balance"], found["searches"]["balance"]) == (0, 0)
    assert found["searches"]["filtered"].get("duplicate", 0) == (0 if replaced else 3)
    assert begun_in.isdisjoint({progress.begun_in for progress in join_progress(one.settings).values()} | {None})


@pytest.mark.parametrize("to_end", [False, True])
def test_resetting_the_groups_offsets_moves_nothing(worker: WorkerFactory, to_end: bool) -> None:
    """Where reading goes on stands in the progress: nothing is passed over, and nothing is written twice."""
    one = worker(partitions=1, worker_id=None)  # a member with a name stays in the group, which nobody may reset then
    one.wait_ready()
    send(one.settings, searches("s1", "s2"))
    wait_paired(one.settings, 2)
    assert one.stop() == 0
    send(one.settings, searches("s3"))
    for agent, topic in (("join", SEARCH_EVENTS), ("pairs", JOINED_SEARCHES)):
        with KafkaConsumer(**consumer_config(one.settings, agent)) as consumer:
            place = TopicPartition(one.settings.topic(topic), 0)
            consumer.assign([place])
            end = consumer.end_offsets([place])[place]
            consumer.commit({place: OffsetAndMetadata(end if to_end else 0, "", -1)})
    one.start()
    wait_paired(one.settings, 3)
    made = [json.loads(record.value)["pair_id"] for record in everything(one.settings, PREFERENCE_PAIRS)]
    assert pairs_made_of(one.settings) == {"s1", "s2", "s3"}
    assert len(made) == len(set(made))
    assert len(everything(one.settings, JOINED_SEARCHES)) == 3
    assert one.complaints() == []


def test_a_log_that_was_made_anew_is_never_taken_for_the_one_before_it(worker: WorkerFactory) -> None:
    """Even if the new topic holds more records than the old one: its first ones would be passed over in silence."""
    one = worker(partitions=1)
    one.wait_ready()
    send(one.settings, searches("s1"))
    wait_paired(one.settings, 1)
    assert one.stop() == 0
    delete_topic(one.settings, SEARCH_EVENTS)
    ensure_topics(one.settings)
    send(one.settings, searches(*[f"n{number}" for number in range(40)]))
    one.start()
    assert one.wait_ended() == 1
    line = one.complaint()
    assert "was made anew" in line["error"]
    assert one.settings.topic(JOIN_PROGRESS) in line["fix"]


def test_an_agent_added_by_the_recipe_runs_like_the_others(
    worker: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules, spec and one line: its topics are made, it goes on after a kill, and metrics, lag and ledger show it."""
    one = worker(module="tests.support.toy_worker")
    one.wait_ready()
    send(one.settings, [*searches("s1"), *moved([impression("s2", products="")], now_ms())])
    monkeypatch.setattr(registry, "AGENTS", (*registry.AGENTS, TOY))
    first = {"noted": 1, "left": {"empty": 1}}
    eventually(lambda: first.items() <= ledgers(one.settings)["toy"].items(), timeout_s=40, interval_s=0.3)
    one.kill()
    one.start()
    one.wait_ready()
    send(one.settings, searches("s3"))
    eventually(lambda: ledgers(one.settings)["toy"].get("noted") == 2, timeout_s=40, interval_s=0.3)
    settled = {"read": 3, "noted": 2, "left": {"empty": 1}, "dead_lettered": 0, "pending": 0, "balance": 0}
    eventually(lambda: ledgers(one.settings)["toy"] == settled, timeout_s=40, interval_s=0.3, what="marks are read too")
    notes = {record.value for record in everything(one.settings, LISTS.name)}
    assert notes == {b'{"search_id":"s1","products":6}', b'{"search_id":"s3","products":6}'}
    assert 'millrace_toy_outcomes_total{outcome="noted",reason=""} 1.0' in one.metrics()
    with Observer(one.settings) as observer:
        eventually(lambda: lag_report(observer.look())["groups"]["toy"]["records"] == 0, timeout_s=30, interval_s=0.3)
    assert one.stop() == 0
    assert one.complaints() == []


def test_an_agent_that_is_not_built_is_refused_by_name(worker: WorkerFactory, kafka_settings: SettingsFactory) -> None:
    """Asking for a planned agent is a usage error, not a worker that quietly does less."""
    one = worker(worker_id="w1")
    one.end()
    one.environ = {**one.settings.as_environ(), "MILLRACE_AGENTS": "join,erase"}
    one.log_path.unlink()
    one.start()
    assert one.wait_ended() == 2
    line = one.complaint()
    assert "erase" in line["error"]


def test_a_busy_port_ends_with_one_line(worker: WorkerFactory) -> None:
    """A port held by another process is said, with the fix."""
    one = worker()
    one.wait_ready()
    other = worker(worker_id="w2", port=one.settings.port)
    assert other.wait_ended() == 4
    line = other.complaint()
    assert f"port {one.settings.port} is in use" in line["error"]


def delete_topic(settings: Settings, topic: str) -> None:
    """Delete a topic of this test's shop."""
    client: KafkaAdminClient
    with admin(settings) as client:
        client.delete_topics([settings.topic(topic)])

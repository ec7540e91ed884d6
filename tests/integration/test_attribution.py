"""Late carts and purchases on real Kafka and Redis: each finds its pair once, whatever is killed or emptied."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kafka import KafkaProducer

from contracts.topics import PREFERENCE_PAIRS, SEARCH_EVENTS
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings
from tests.conftest import SettingsFactory
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.search_events import cart, click, encoded, impression, moved, purchase
from tests.support.stream_worker import Worker
from tests.support.topics import read_topic

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

HOURS_MS = 3_600_000
WorkerFactory = Callable[..., Worker]


@pytest.fixture
def worker(kafka_settings: SettingsFactory, redis_url: str, tmp_path: Path) -> Iterator[WorkerFactory]:
    """Give a factory of started workers with short windows and Redis, and leave none behind."""
    started: list[Worker] = []

    def start(**overrides: Any) -> Worker:
        """Start a worker of this test's shop."""
        windows = {
            "join_window_s": 2,
            "lateness_s": 1,
            "join_silence_s": 1,
            "partitions": 2,
            "worker_id": "w1",
            "redis_url": redis_url,
        }
        one = Worker(kafka_settings(**{**windows, "port": free_port(), **overrides}), tmp_path / "worker.log")
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.end()


def now_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


def send(settings: Settings, events: list[dict[str, Any] | bytes], start_ms: int) -> None:
    """Send events as a shop does, with times that count from a start."""
    records = [
        OutgoingRecord(settings.topic(SEARCH_EVENTS), encoded(event), key=key_of(event))
        for event in moved(events, start_ms)
        if isinstance(event, dict)
    ]
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, records)


def key_of(event: dict[str, Any]) -> bytes:
    """Return the key that a shop gives an event: its search, else its session."""
    named = event["items"][0] if "items" in event else event
    return str(named.get("search_id") or event["session_id"]).encode()


def visit() -> list[dict[str, Any] | bytes]:
    """Return a search with two clicks, and what came of it two hours later: four records tell of two conversions."""
    later_ms = 2 * HOURS_MS
    return [
        impression(),
        click("d", 200),
        click("e", 300),
        purchase("d", later_ms),
        purchase("d", later_ms + 5, event_id="the same order once more"),
        cart("e", later_ms + 10, search_id=None, search_time_ms=None, event_id="no search"),
        click("f", later_ms + 20),
    ]


def ledgers(settings: Settings) -> dict[str, Any]:
    """Return the ledgers as `millrace ledger` shows them."""
    with Observer(settings) as observer:
        observer.wait_caught_up(30)
        report: dict[str, Any] = ledger_report(observer.look())
        return report


def wait_decided(settings: Settings, records: int) -> dict[str, Any]:
    """Wait until attribution has decided on so many records, and return the ledgers then."""
    found: dict[str, Any] = {}

    def decided() -> bool:
        """Return whether nothing waits any more."""
        found.update(ledgers(settings))
        own = [found["late_events"], found["orphan_events"]]
        return sum(one["read"] or 0 for one in own) >= records and not any(one["pending"] for one in own)

    eventually(decided, timeout_s=90, interval_s=0.5, what=f"{records} late and orphan records decided")
    return found


def value_pairs(settings: Settings) -> list[bytes]:
    """Return the value pairs on the topic, as they were written."""
    values = [record.value for own in read_topic(settings, PREFERENCE_PAIRS).values() for record in own]
    return [value for value in values if json.loads(value)["source"] == "value"]


def clock_ms(settings: Settings, redis_url: str) -> int:
    """Return up to when attribution remembers all; -1 before it says so."""
    with redis.Redis.from_url(redis_url) as client:
        told = client.hvals(f"{settings.topic_prefix}millrace:attribution:clock")
    return min(map(int, told), default=-1)


def test_a_purchase_two_hours_late_raises_its_pair_once_though_the_worker_is_killed(
    worker: WorkerFactory, redis_url: str
) -> None:
    """Killed again and again, before and after its output, it makes the same two value pairs, and counts each once."""
    one = worker()
    one.wait_ready()
    send(one.settings, visit(), now_ms() - 2 * HOURS_MS - 1_000)
    eventually(lambda: ledgers(one.settings)["attribution_pairs"].get("kept"), timeout_s=60, interval_s=0.3)
    for _ in range(4):  # by then the events become due: some of these kills come between output and progress
        one.kill()
        one.start()
        one.wait_ready()
        started_ms = clock_ms(one.settings, redis_url)
        eventually(lambda: clock_ms(one.settings, redis_url) >= started_ms + 1_000, timeout_s=30)  # noqa: B023 - at once
    report = wait_decided(one.settings, 4)
    written = value_pairs(one.settings)
    pairs = {pair["pair_id"]: pair for pair in map(json.loads, written)}
    assert len(set(written)) == len(pairs) == 2
    bought, put = sorted(pairs.values(), key=lambda pair: str(pair["chosen"]["product_id"]))
    assert (bought["chosen"]["product_id"], bought["chosen"]["grade"], bought["factors"]["value"]) == ("d", 4, 9.0)
    assert (put["chosen"]["product_id"], put["chosen"]["grade"], put["factors"]["value"]) == ("e", 3, 3.0)
    assert ("inferred" in bought, put["inferred"]) == (False, True)
    assert {pair["search_id"] for pair in pairs.values()} == {"s1"}
    assert report["late_events"]["attributed"] == {"raised": 1}
    assert (report["late_events"]["left"]["duplicate"], report["late_events"]["left"]["other_type"]) == (1, 1)
    assert report["orphan_events"]["attributed"] == {"raised": 1}
    events = report["events"]
    assert (events["joined"], events["attributed"], events["late"], events["orphan"]) == (3, 2, 2, 0)
    assert [ledger["balance"] for ledger in report.values()] == [0] * len(report)
    assert one.stop() == 0
    assert one.complaints() == []


def test_an_emptied_redis_costs_value_pairs_alone_and_they_are_counted(worker: WorkerFactory, redis_url: str) -> None:
    """What was remembered is gone: late events are unmatched, every sum balances, and what comes later works."""
    one = worker()
    one.wait_ready()
    send(one.settings, visit(), now_ms() - 2 * HOURS_MS - 1_000)
    eventually(lambda: ledgers(one.settings)["attribution_pairs"].get("kept"), timeout_s=60, interval_s=0.3)
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{one.settings.topic_prefix}millrace:*"):
            client.delete(key)  # as FLUSHALL does, for this test's shop alone
    report = wait_decided(one.settings, 4)
    assert report["late_events"]["unmatched"] == {"no_pair": 2}
    assert report["orphan_events"]["unmatched"] == {"no_pair": 1}
    assert (report["events"]["attributed"], report["events"]["late"], report["events"]["orphan"]) == (0, 3, 1)
    assert [ledger["balance"] for ledger in report.values()] == [0] * len(report)
    assert value_pairs(one.settings) == []
    start_ms, kept = now_ms() - 1_000, report["attribution_pairs"]["kept"]
    send(one.settings, [impression("s2"), click("c", 200, "s2")], start_ms)
    eventually(lambda: ledgers(one.settings)["attribution_pairs"]["kept"] > kept, timeout_s=60, interval_s=0.3)
    late = {**purchase("c", 3_000, "s2", event_id="another order"), "order_id": "O-2"}
    send(one.settings, [late], start_ms)
    assert wait_decided(one.settings, 5)["late_events"]["attributed"] == {"raised": 1}
    assert one.stop() == 0
    assert one.complaints() == []


def test_while_redis_is_away_late_events_wait_and_the_worker_goes_on(worker: WorkerFactory, tmp_path: Path) -> None:
    """Lists are joined and paired, and `/ready` says what is away; once it is back, what waits finds its pair."""
    port = free_port()
    one = worker(redis_url=f"redis://127.0.0.1:{port}/0")
    one.wait_ready()
    send(one.settings, visit(), now_ms() - 2 * HOURS_MS - 1_000)
    eventually(lambda: ledgers(one.settings)["searches"]["paired"] == 1, timeout_s=60, interval_s=0.3)
    report = ledgers(one.settings)
    assert [report[name]["pending"] for name in ("attribution_pairs", "attribution_clicks")] != [0, 0]
    eventually(lambda: b'"redis":"down"' in one._get("/ready"), timeout_s=30)
    assert one.stop() == 0
    one.start()
    one.wait_ready()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        report = wait_decided(one.settings, 4)
        eventually(lambda: b'"redis":"up"' in one._get("/ready"), timeout_s=30)
        assert report["late_events"]["attributed"] == report["orphan_events"]["attributed"] == {"raised": 1}
        assert [ledger["balance"] for ledger in report.values()] == [0] * len(report)
        assert one.stop() == 0
    finally:
        server.terminate()
        server.wait()
    assert {line["event"] for line in one.complaints()} == {"dependency_down"}


def test_without_redis_in_the_settings_attribution_is_left_out_and_says_so(worker: WorkerFactory) -> None:
    """The other agents run; asked for by name, it is refused with what to set."""
    one = worker(redis_url=None)
    one.wait_ready()
    assert one.partitions("join")
    assert '"event":"agent_left_out"' in one.lines()
    assert one.stop() == 0
    assert one.complaints() == []
    one.environ = {**one.settings.as_environ(), "MILLRACE_AGENTS": "join,attribution"}
    one.start()
    assert one.wait_ended() == 2
    assert "MILLRACE_REDIS_URL" in one.complaint()["error"]

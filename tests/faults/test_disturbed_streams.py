"""Stream workers in the weather of a real cluster: whatever happens, join and pairs say what the oracle says.

Those that take more than a minute run in `make faults` alone.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource

from contracts.topics import JOIN_PROGRESS, JOINED_SEARCHES, PAIRS_PROGRESS, SEARCH_EVENTS
from deploy.local.supervisor import LocalMillrace
from service.kafka import OutgoingRecord, admin, consumer_config, ensure_topics, produce_all, producer_config
from service.machine import epoch_ms
from service.settings import Settings
from tests.conftest import SettingsFactory
from tests.faults.comparison import compare, is_settled
from tests.faults.shop_site import ShopSite
from tests.faults.traffic import Traffic
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.stream_worker import Worker
from tests.support.topics import read_topic

SEED = 20_261_123
SHORT_WINDOWS: dict[str, Any] = {"join_window_s": 3.0, "lateness_s": 1.0, "filters": "none"}
FULL_WINDOWS: dict[str, Any] = {"join_window_s": 600.0, "lateness_s": 10.0, "filters": "none"}
IS_LONG = os.environ.get("FAULTS") == "long"
long = pytest.mark.skipif(not IS_LONG, reason="takes minutes; `make faults` runs it")

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

WorkerFactory = Callable[..., Worker]


@pytest.fixture
def worker(kafka_settings: SettingsFactory, tmp_path: Path) -> Iterator[WorkerFactory]:
    """Give a factory of workers that are not started, and leave none behind."""
    made: list[Worker] = []

    def make(**overrides: Any) -> Worker:
        """Return a worker of this test's shop with a port, a log and a disk of its own."""
        own = {"port": free_port(), "session_timeout_s": 6, "data_dir": tmp_path / f"data-{len(made)}"}
        settings = kafka_settings(**{**SHORT_WINDOWS, **own, **overrides})
        ensure_topics(settings)
        made.append(Worker(settings, tmp_path / f"worker-{len(made)}.log"))
        return made[-1]

    yield make
    for one in made:
        one.end()


def traffic_of(settings: Settings, *, searches_per_s: float = 30) -> Traffic:
    """Return shoppers who keep to a deployment's windows."""
    return Traffic(
        SEED, searches_per_s=searches_per_s, window_ms=settings.join_window_ms, lateness_ms=settings.lateness_ms
    )


def settle_and_compare(settings: Settings, site: ShopSite, *, timeout_s: float = 120) -> dict[str, int]:
    """Wait until everything is closed and paired, and compare it with the oracle: nothing missing, nothing wrong."""
    eventually(lambda: is_settled(settings), timeout_s=timeout_s, interval_s=0.5, what="everything closed and paired")
    counts = compare(settings)
    print(json.dumps({"sent": site.acknowledged, **counts}), file=sys.stderr)  # noqa: T201 - the test's figures
    return counts


def close_all(settings: Settings) -> None:
    """Move the event time of every partition to now by an event that names no search."""
    event = {"schema_version": 1, "type": "cart", "event_id": "end", "event_time": epoch_ms(), "session_id": "end"}
    value = json.dumps({**event, "product_id": "P-1"}).encode()
    topic = settings.topic(SEARCH_EVENTS)
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(
            producer,
            [OutgoingRecord(topic, value, key=b"end", partition=number) for number in range(settings.partitions)],
        )


def test_a_full_window_outlives_kills(worker: WorkerFactory) -> None:
    """With windows of ten minutes, and shoppers whose clock runs eighty times as fast: a kill while all is open."""
    one = worker(worker_id="w1", **FULL_WINDOWS)
    settings = one.settings
    one.start()
    one.wait_ready()
    steps = itertools.count(epoch_ms() - 86_400_000, 4_000)
    traffic = traffic_of(settings, searches_per_s=10 if IS_LONG else 3)
    site = ShopSite(settings, traffic, clock=lambda: next(steps))
    with site:
        for _ in range(4 if IS_LONG else 1):
            eventually(lambda: one.open_searches() > 500, timeout_s=60, what="many searches are open")
            site.wait_for_more(1_000)
            one.kill()
            one.start()
            one.wait_ready()
        site.wait_for_more(1_000)
        site.finish()
    close_all(settings)
    counts = settle_and_compare(settings, site)
    assert counts["events"] == site.acknowledged + settings.partitions
    assert one.complaints() == []


@long
def test_members_that_come_and_go_every_few_seconds_lose_nothing(worker: WorkerFactory) -> None:
    """Three workers without names join, leave and are killed under load, in any order, sixteen times."""
    steady, *guests = (worker() for _ in range(3))
    rng = random.Random(SEED)
    steady.start()
    steady.wait_ready()
    with ShopSite(steady.settings, traffic_of(steady.settings)) as site:
        for _ in range(16):
            guest = rng.choice(guests)
            if guest.process is None or guest.has_ended():
                guest.start()
            elif rng.random() < 0.5:
                assert guest.stop() in (0, -signal.SIGTERM)  # the latter if it had hardly begun
            else:
                guest.kill()
            site.wait_for_more(rng.randint(100, 400))
        site.finish()
    for guest in guests:
        guest.end()
    counts = settle_and_compare(steady.settings, site)
    assert counts["events"] == site.acknowledged
    assert steady.complaints() == []


@long
def test_a_worker_stopped_past_its_session_overwrites_nothing(worker: WorkerFactory) -> None:
    """It wakes after another took its partitions and died, writes once more, and compaction keeps what it wrote."""
    first, second = worker(worker_id="w1"), worker(worker_id="w2")
    settings = first.settings
    keep_only_the_newest(settings, JOIN_PROGRESS, PAIRS_PROGRESS)
    for one in (first, second):
        one.start()
    for one in (first, second):
        one.wait_ready()
    with ShopSite(settings, traffic_of(settings)) as site:
        for stopped, other in ((first, second), (second, first)):
            eventually(lambda one=stopped: one.open_searches(), timeout_s=60, what="searches are open")  # type: ignore[misc]
            assert stopped.process is not None
            stopped.process.send_signal(signal.SIGSTOP)
            eventually(lambda one=other: len(one.partitions("join")) == 4, timeout_s=60, what="the other has all")  # type: ignore[misc]
            site.wait_for_more(300)
            other.kill()
            stopped.process.send_signal(signal.SIGCONT)
            site.wait_for_more(600)
            eventually(lambda: is_compacted(settings, JOIN_PROGRESS), timeout_s=90, interval_s=1, what="compaction")
            other.start()
            other.wait_ready()
            stopped.wait_ready()
        site.finish()
    counts = settle_and_compare(settings, site)
    assert counts["events"] == site.acknowledged


def keep_only_the_newest(settings: Settings, *topics: str) -> None:
    """Let Kafka compact topics as soon and as often as it can."""
    config = {"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.001", "cleanup.policy": "compact"}
    with admin(settings) as client:
        client.alter_configs([ConfigResource("TOPIC", settings.topic(topic), config) for topic in topics])


def is_compacted(settings: Settings, topic: str) -> bool:
    """Return whether each partition that was written often lacks most of its records by now."""
    written = [own for own in read_topic(settings, topic).values() if own]
    return bool(written) and all(len(own) < own[-1].offset // 2 for own in written if own[-1].offset > 20)


@long
def test_offsets_reset_by_others_lose_and_repeat_nothing(worker: WorkerFactory) -> None:
    """To the beginning, to the end and beyond it, between one run and the next, while events go on arriving."""
    one = worker()
    settings = one.settings
    with ShopSite(settings, traffic_of(settings)) as site:
        for beyond in (None, 0, 1_000):
            one.start()
            one.wait_ready()
            site.wait_for_more(200)
            assert one.stop() == 0
            for agent, topic in (("join", SEARCH_EVENTS), ("pairs", JOINED_SEARCHES)):
                commit(settings, agent, topic, beyond)
            site.wait_for_more(100)
        one.start()
        one.wait_ready()
        site.finish()
    counts = settle_and_compare(settings, site)
    assert counts["events"] == site.acknowledged
    assert counts["repeated_searches"] == counts["repeated"] == 0
    assert one.complaints() == []


def commit(settings: Settings, agent: str, topic: str, beyond: int | None) -> None:
    """Commit, for a group that has no members, so much beyond the end of each partition; 0 if None."""
    with KafkaConsumer(**consumer_config(settings, agent)) as consumer:
        places = [TopicPartition(settings.topic(topic), number) for number in range(settings.partitions)]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        offsets = {place: 0 if beyond is None else end + beyond for place, end in ends.items()}
        consumer.commit({place: OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()})


@long
def test_a_broker_that_is_away_costs_time_only(settings: SettingsFactory, tmp_path: Path) -> None:
    """It hangs for ten seconds, then it is killed and comes back, while shoppers shop and searches are open."""
    with LocalMillrace(processes=["kafka"], data_dir=tmp_path / "kafka", environ={}) as running:
        bootstrap = running.settings.kafka_bootstrap
        own = settings(**SHORT_WINDOWS, port=free_port(), worker_id="w1", kafka_bootstrap=bootstrap)
        ensure_topics(own)
        one = Worker(own, tmp_path / "worker.log")
        one.start()
        try:
            one.wait_ready()
            with ShopSite(own, traffic_of(own)) as site:
                eventually(one.open_searches, timeout_s=60, what="searches are open")
                running.kill("kafka", signal.SIGSTOP)
                time.sleep(10)  # how long the broker is away is what this test is about
                running.kill("kafka", signal.SIGCONT)
                site.wait_for_more(300)
                running.kill("kafka", signal.SIGKILL)
                site.wait_for_more(300)
                running.wait_ready("kafka")
                site.finish()
            if one.has_ended():
                one.start()
            counts = settle_and_compare(own, site)
            assert counts["events"] >= site.acknowledged
        finally:
            one.end()


@long
@pytest.mark.parametrize("more", [False, True])
def test_a_topic_made_anew_under_a_running_worker_is_noticed(worker: WorkerFactory, more: bool) -> None:
    """Whether the new log is shorter or longer than the old one was, no new event is passed over in silence."""
    one = worker(worker_id="w1")
    settings = one.settings
    one.start()
    one.wait_ready()
    with ShopSite(settings, traffic_of(settings)) as site:
        site.wait_for_more(400)
    with admin(settings) as client:
        client.delete_topics([settings.topic(SEARCH_EVENTS)])
    ensure_topics(settings)
    with ShopSite(settings, traffic_of(settings, searches_per_s=300 if more else 5)) as site:
        site.wait_for_more(3_000 if more else 40)
    assert one.wait_ended(timeout_s=120) in (1, 4)
    line = one.complaint()
    assert settings.topic(SEARCH_EVENTS) in line["error"]
    assert line["fix"]

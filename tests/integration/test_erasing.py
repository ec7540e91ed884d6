"""Erasing a person on real Kafka and Redis, from what the stages themselves wrote."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from kafka import KafkaProducer

from contracts.topics import DAY_MS, JOINED_SEARCHES, SEARCH_EVENTS
from millrace.erasing import erased, person_of
from millrace.output import print_json
from service.kafka import OutgoingRecord, ensure_topics, produce_all, producer_config
from service.settings import Settings
from tests.conftest import SettingsFactory
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.search_events import click, encoded, impression, moved
from tests.support.stream_worker import Worker

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


@pytest.fixture
def worker(kafka_settings: SettingsFactory, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    """Give a worker with short windows that is not started yet, and leave none behind."""
    own = kafka_settings(
        join_window_s=2, lateness_s=1, join_silence_s=1, partitions=1, worker_id="w1", redis_url=redis_url,
        port=free_port(),
    )  # fmt: skip
    ensure_topics(own)
    one = Worker(own, tmp_path / "worker.log")
    yield one
    one.end()


def silent(_what: str, _done: int, _of: int) -> None:
    """Show nothing."""


def found(settings: Settings, client_id: str, *, dry_run: bool) -> dict[str, Any]:
    """Erase a shopper, or look what there is of them."""
    person = person_of(settings, client_id=client_id, user_id="", session_id="")
    return erased(settings, person, dry_run=dry_run, tell=silent)


def test_what_redis_holds_of_a_person_goes_and_what_kafka_holds_is_told(
    worker: Worker, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run changes nothing; other shoppers keep what they have; records are said to go with their segments."""
    settings = worker.settings
    start_ms = time.time_ns() // 1_000_000 - 10_000
    lists = [
        (impression(one, client_id=f"c-{one}", session_id=f"k-{one}"), click(search_id=one)) for one in ("s1", "s2")
    ]
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(
            producer,
            [
                OutgoingRecord(settings.topic(SEARCH_EVENTS), encoded(event), key=str(listed[0]["search_id"]).encode())
                for listed in lists
                for event in moved(listed, start_ms)
            ],
        )
    worker.start()
    with redis.Redis.from_url(redis_url) as server:
        clicks = [f"{settings.topic_prefix}millrace:session-clicks:k-{one}" for one in ("s1", "s2")]
        eventually(lambda: server.exists(*clicks) == 2, timeout_s=60, what="clicks of both sessions")
        before = found(settings, "c-s1", dry_run=True)
        assert before["redis_keys"] >= 1
        assert server.exists(*clicks) == 2
        assert found(settings, "c-s1", dry_run=False)["redis_keys"] >= 1
        assert [server.exists(one) for one in clicks] == [0, 1]
    print_json(before)
    assert orjson.loads(capsys.readouterr().out) == before
    held = {row["topic"]: row for row in before["topics"] if row["records"]}
    assert {topic: row["records"] for topic, row in held.items()} == {SEARCH_EVENTS: 1, JOINED_SEARCHES: 1}
    assert all(row["gone_by"] - row["newest_at"] == (14 + 7) * DAY_MS for row in held.values())

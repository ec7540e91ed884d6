"""`millrace replay` on what a real stream worker made of a real log."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from contracts.topics import JOINED_SEARCHES, PREFERENCE_PAIRS, SEARCH_EVENTS
from millrace import cli
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings, env_name
from tests.conftest import SettingsFactory
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.search_events import cart, click, encoded, impression, moved
from tests.support.stream_worker import Worker
from tests.support.topics import pairs_progress, read_topic

pytestmark = [pytest.mark.kafka]

Replay = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def start_ms() -> int:
    """Give the moment at which the shop opened."""
    return time.time_ns() // 1_000_000


@pytest.fixture
def shop(kafka_settings: SettingsFactory, tmp_path: Path, start_ms: int) -> Iterator[Settings]:
    """Give a deployment whose worker has joined and paired four lists of two sessions."""
    own = kafka_settings(join_window_s=2, lateness_s=1, partitions=2, worker_id="w1", port=free_port())
    worker = Worker(own, tmp_path / "worker.log")
    worker.start()
    try:
        worker.wait_ready()
        events: list[dict[str, Any] | bytes] = []
        for number in range(4):
            search = f"s{number}"
            events += [
                impression(search, session_id=f"k{number % 2}", client_id=f"c{number % 2}", query=f"query {number}"),
                click("d", 50, search),
                cart("e", 60, search),
            ]
        records = [
            OutgoingRecord(own.topic(SEARCH_EVENTS), encoded(event), key=str(event["search_id"]).encode())
            for event in moved(events, start_ms)
            if isinstance(event, dict)
        ]
        with KafkaProducer(**producer_config(own)) as producer:
            produce_all(producer, records)

        def paired() -> bool:
            """Return whether all four lists went through."""
            return sum(progress.counts.paired for progress in pairs_progress(own).values()) == 4

        eventually(paired, timeout_s=40, interval_s=0.3, what="four lists paired")
        assert worker.stop() == 0
        yield own
    finally:
        worker.end()


@pytest.fixture
def replay(
    shop: Settings, start_ms: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Replay:
    """Give a function that replays what was shown, under other settings if they are given; code and report."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Run `millrace replay --json`."""
        environ = {**shop.as_environ(), **{env_name(name): str(value) for name, value in changes.items()}}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        times = [str((start_ms + moved_ms) / 1000) for moved_ms in (-1_000, 60_000)]
        monkeypatch.setattr(sys, "argv", ["millrace", "replay", "--from", times[0], "--to", times[1], "--json", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr().out
        return code, json.loads(shown) if shown else {}

    return call


def values(settings: Settings, topic: str) -> set[bytes]:
    """Return what stands on a topic, watermark records aside."""
    return {record.value for own in read_topic(settings, topic).values() for record in own if record.key}


def test_the_log_gives_the_same_lists_and_pairs_once_more(shop: Settings, replay: Replay) -> None:
    """Nothing differs, and written under another prefix they are the very bytes; a prefix is used once."""
    prefix = f"{shop.topic_prefix}again-"
    code, report = replay("--topic-prefix", prefix)
    assert code == 0
    lists, pairs = report["joined_searches"], report["preference_pairs"]
    assert (lists["same"], lists["original"], lists["reasons"]) == (4, 4, [])
    assert (pairs["same"], pairs["original"], pairs["reasons"]) == (pairs["rebuilt"], pairs["rebuilt"], [])
    assert pairs["same"] > 0
    again = shop.model_copy(update={"topic_prefix": prefix})
    for topic in (JOINED_SEARCHES, PREFERENCE_PAIRS):
        assert values(again, topic) == values(shop, topic)
    assert report["written"][again.topic(JOINED_SEARCHES)] == 4
    assert replay("--topic-prefix", prefix)[0] == 2
    assert replay("--topic-prefix", shop.topic_prefix)[0] == 2


def test_other_settings_make_other_lists_and_the_reason_is_told(replay: Replay) -> None:
    """A shorter window closes earlier; another key gives other persons; pairs differ with their lists only."""
    _, report = replay(join_window_s=1.5)
    (reason,) = report["joined_searches"]["reasons"]
    assert (reason["reason"], reason["count"], report["open_searches"]) == ("window", 4, 0)
    assert [one["reason"] for one in report["preference_pairs"]["reasons"]] == ["its_list"]
    _, report = replay(join_window_s=2, person_key="another key")
    assert [(one["reason"], one["count"]) for one in report["joined_searches"]["reasons"]] == [("person_key", 4)]
    assert report["preference_pairs"]["reasons"] == []

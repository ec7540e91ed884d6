"""Arms on a real Kafka: what the stream worker counts is what a look from outside tells, whoever is killed."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from kafka import KafkaProducer

from contracts.topics import SEARCH_EVENTS
from millrace.watch.arms import arms_report
from millrace.watch.ledger import ledger_report
from millrace.watch.observer import Observer
from service.kafka import OutgoingRecord, produce_all, producer_config
from service.settings import Settings
from tests.conftest import SettingsFactory
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.search_events import click, encoded, impression, moved
from tests.support.stream_worker import Worker

pytestmark = [pytest.mark.kafka]

ARMS: Final = ("live", "anchor", "interleaved")
SEARCHES: Final = 20
"""Of each arm."""


@pytest.fixture
def own(kafka_settings: SettingsFactory) -> Settings:
    """Give the settings of a worker with short windows."""
    return kafka_settings(join_window_s=3, lateness_s=1, partitions=2, worker_id="w1", port=free_port())


@pytest.fixture
def workers(own: Settings, tmp_path: Path) -> Iterator[list[Worker]]:
    """Give two workers, one to be killed and one to go on, none of which is started or left behind."""
    both = [Worker(own, tmp_path / f"worker-{number}.log") for number in range(2)]
    yield both
    for one in both:
        one.end()


def shown(number: int, arm: str) -> list[dict[str, Any]]:
    """Return a search of an arm, of which the second product is clicked; on the anchor arm none, but another query."""
    ranking = {"query_release": 0 if arm == "anchor" else 7, "product_release": 1, "arm": arm}
    event = impression(f"{arm}-{number}", surface="search", session_id=f"k{number}", ranking=ranking)
    if arm == "interleaved":
        event["slots"][0]["team"], event["slots"][1]["team"] = "anchor", "live"
    if arm == "anchor":
        again = impression(f"again-{number}", 40, surface="search", session_id=f"k{number}", query="small fridge")
        return [event, {**again, "ranking": ranking}]
    return [event, click("b", search_id=event["search_id"])]


def send(settings: Settings) -> None:
    """Send the searches of all arms, as of now."""
    events = [event for number in range(SEARCHES) for arm in ARMS for event in shown(number, arm)]
    topic, now_ms = settings.topic(SEARCH_EVENTS), time.time_ns() // 1_000_000
    records = [
        OutgoingRecord(topic, encoded(one), key=str(old["search_id"]).encode())
        for one, old in zip(moved(events, now_ms), events, strict=True)
    ]
    with KafkaProducer(**producer_config(settings)) as producer:
        produce_all(producer, records)


def told(settings: Settings) -> dict[str, Any]:
    """Return what a look from outside shows: searches and what became of them by arm, who won, and the balance."""
    with Observer(settings) as observer:
        observer.wait_caught_up(20)
        seen = observer.look()
    report = arms_report(seen)
    assert report is not None
    what = ("searches", "clicked", "abandoned", "reformulated")
    cells = {row["arm"]: tuple(row[name] for name in what) for row in report["arms"]}
    won = tuple(report["interleaving"][team] for team in ("live", "anchor", "tied"))
    return {**cells, "won": won, "balance": ledger_report(seen)["arms"]["balance"]}


def test_arms_are_counted_once_though_the_worker_is_killed(own: Settings, workers: list[Worker]) -> None:
    """What a shop sees of its arms is in the progress that outlives a SIGKILL, and its ledger balances."""
    first, second = workers
    first.start()
    first.wait_ready()
    send(own)
    eventually(lambda: sum(told(own)["won"]) > 0, timeout_s=60, interval_s=0.5, what="some lists are counted")
    first.kill()
    second.start()
    second.wait_ready()
    cells = {"live": (20, 20, 0, 0), "anchor": (40, 0, 40, 20), "interleaved": (20, 20, 0, 0)}
    whole = {**cells, "won": (20, 0, 0), "balance": 0}
    eventually(lambda: told(own) == whole, timeout_s=60, interval_s=1, what="all arms")

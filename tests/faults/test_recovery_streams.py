"""Half a million open searches: what they cost a worker, and how long it takes to have them again after a kill.

It prints its figures; how good they are is judged in `docs/experiments.md`, whether they are right is judged here.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaProducer

from contracts.topics import SEARCH_EVENTS
from service.kafka import ensure_topics
from service.machine import epoch_ms
from service.settings import Settings
from simulator.bench.streams import LOGS, SEARCH_EVERY_MS, bench_log
from streams.transport.app import producer_arguments
from streams.transport.output import Output
from tests.conftest import SettingsFactory
from tests.faults.test_disturbed_streams import long
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.stream_worker import Worker

SEARCHES = 500_000
SLICE = 20_000
WINDOW_S = 86_400

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(1_800)]


@pytest.fixture
def worker(kafka_settings: SettingsFactory, tmp_path: Path) -> Iterator[Worker]:
    """Give a worker of the join alone whose log holds half a million searches, all open for a day."""
    settings = kafka_settings(agents="join", join_window_s=WINDOW_S, lateness_s=10, worker_id="w1", port=free_port())
    ensure_topics(settings)
    one = Worker(settings, tmp_path / "worker.log")
    yield one
    one.end()


async def write_searches(settings: Settings) -> int:
    """Write the log in slices, up to now; return how many events it holds."""
    start_ms, written = epoch_ms() - SEARCHES * SEARCH_EVERY_MS, 0
    async with AIOKafkaProducer(**producer_arguments(settings)) as producer:
        for first in range(0, SEARCHES, SLICE):
            log = bench_log(LOGS[0], SLICE, seed=first, start_ms=start_ms, partitions=settings.partitions, first=first)
            for partition, records in log.items():
                await Output(producer).send(settings.topic(SEARCH_EVENTS), partition, records)
                written += len(records)
    return written


class LongestPause:
    """How long a worker takes to answer, at worst, while it is asked over and over."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.seconds = 0.0

    def __enter__(self) -> "LongestPause":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _ask(self) -> None:
        """Ask until told to stop, and keep the longest wait."""
        while not self._over.wait(0.05):
            asked_s = time.monotonic()
            if self._worker.metrics():
                self.seconds = max(self.seconds, time.monotonic() - asked_s)


def open_again_s(worker: Worker) -> float:
    """Start a worker anew and return the seconds from the loading of its partitions until every search is open."""
    begin = len(worker.lines())
    worker.start()
    eventually(lambda: worker.open_searches() == SEARCHES, timeout_s=900, interval_s=0.2, what="all are open again")
    open_s = time.time()
    loaded = [json.loads(line) for line in worker.lines()[begin:].splitlines() if '"partition_loaded"' in line]
    return open_s - min(datetime.fromisoformat(line["ts"]).timestamp() for line in loaded)


@long
def test_half_a_million_open_searches_are_held_and_are_there_again_after_a_kill(worker: Worker) -> None:
    """With the saved state and without it, every search that was open is open again."""
    events = asyncio.run(write_searches(worker.settings))
    worker.start()
    with LongestPause(worker) as pause:
        eventually(lambda: worker.open_searches() == SEARCHES, timeout_s=600, interval_s=0.5, what="all are open")
    assert worker.process is not None
    memory_mb = psutil.Process(worker.process.pid).memory_info().rss / 2**20
    saved = worker.settings.data_dir / "join"
    eventually(lambda: len(list(saved.glob("*.state"))) == worker.settings.partitions, timeout_s=120, what="saved")
    worker.kill()
    from_saved_s = open_again_s(worker)
    worker.kill()
    for file in saved.iterdir():
        file.unlink()
    from_log_s = open_again_s(worker)
    assert worker.complaints() == []
    figures = {
        "open_searches": SEARCHES,
        "events": events,
        "memory_mb": round(memory_mb),
        "longest_pause_s": round(pause.seconds, 2),
        "open_again_from_saved_state_s": round(from_saved_s, 1),
        "open_again_from_log_s": round(from_log_s, 1),
        "replayed_events_per_s": round(events / from_log_s),
    }
    print(json.dumps(figures), file=sys.stderr)  # noqa: T201 - the test's figures

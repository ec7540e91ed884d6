"""The stream worker's delivery promise, tested by killing it: nothing lost, nothing counted twice, nothing wrong.

Two real workers on a real Kafka, ten SIGKILLs while events arrive and searches are open, one of them while a worker
still reads a second time what the kill before had left open. Afterwards everything that was written is compared with
an oracle that read the same log.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.kafka import ensure_topics
from tests.conftest import SettingsFactory
from tests.faults.comparison import compare, is_settled
from tests.faults.shop_site import ShopSite
from tests.faults.traffic import Traffic
from tests.support.poll import eventually
from tests.support.ports import free_port
from tests.support.stream_worker import READY_TIMEOUT_S, Worker
from tests.support.topics import join_progress

KILLS = 10
KILL_IN_REPLAY = 5
SEED = 20_261_121
WINDOW_S, LATENESS_S = 3.0, 1.0

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def workers(kafka_settings: SettingsFactory, tmp_path: Path) -> Iterator[list[Worker]]:
    """Give two workers of one group that are ready, and leave none behind."""
    windows = {"join_window_s": WINDOW_S, "lateness_s": LATENESS_S, "session_timeout_s": 10, "filters": "none"}
    both = [
        Worker(kafka_settings(worker_id=f"w{n}", port=free_port(), **windows), tmp_path / f"w{n}.log") for n in (1, 2)
    ]
    ensure_topics(both[0].settings)
    try:
        for worker in both:
            worker.start()
        for worker in both:
            worker.wait_ready()
        yield both
    finally:
        for worker in both:
            worker.end()


def test_ten_kills_lose_nothing_and_repeat_only_the_same(workers: list[Worker]) -> None:
    """After ten SIGKILLs every pair that the oracle expects is there, byte for byte, and every count balances."""
    settings = workers[0].settings
    traffic = Traffic(SEED, searches_per_s=30, window_ms=int(WINDOW_S * 1000), lateness_ms=int(LATENESS_S * 1000))
    with ShopSite(settings, traffic) as site:
        kill_while_busy(workers, site)
        for worker in workers:
            worker.wait_ready()
        site.finish()
        eventually(lambda: is_settled(settings), timeout_s=60, interval_s=0.5, what="everything closed and paired")
    assert [worker.stop() for worker in workers] == [0, 0]
    counts = compare(settings)
    print(json.dumps({"kills": KILLS, "sent": site.acknowledged, **counts}), file=sys.stderr)  # noqa: T201 - the test's figures
    assert site.acknowledged == counts["events"]
    assert counts["pairs_expected"] > 500


def kill_while_busy(workers: list[Worker], site: ShopSite) -> None:
    """Kill one worker after the other, each while events arrive and it holds searches open, and start it again.

    One is killed again before it has rebuilt what it held.
    """
    rng = random.Random(SEED)
    for number in range(KILLS):
        if number == KILL_IN_REPLAY:
            eventually(lambda: was_killed_in_replay(workers[(KILL_IN_REPLAY - 1) % len(workers)]), timeout_s=300)
            continue
        worker = workers[number % len(workers)]
        worker.wait_ready()
        eventually(worker.open_searches, timeout_s=30, what=f"{worker.name} holds searches open")
        site.wait_for_more(rng.randint(5, 120))
        assert worker.open_searches() > 0
        worker.kill()
        worker.start()
        site.wait_for_more(1)


def was_killed_in_replay(worker: Worker) -> bool:
    """Kill a worker that was just started as soon as it reads a second time; return whether that was soon enough.

    It was where the progress that it began from still stands: the first that it writes lies beyond the replay.
    """
    replays = eventually(
        worker.replays, timeout_s=READY_TIMEOUT_S, interval_s=0.005, what=f"{worker.name} reads a second time"
    )
    worker.kill()
    stands = {number: progress.next_offset for number, progress in join_progress(worker.settings).items()}
    worker.start()
    return any(stands[number] == offset for number, offset in replays.items())
